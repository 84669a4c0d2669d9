"""InternVL3 in its Hugging Face form, over a Qwen2 decoder."""

from rope_gain.families.family import Family

INTERNVL = Family(
    architecture="InternVLForConditionalGeneration",
    decoder="model.language_model",
    attention="transformers.models.qwen2.modeling_qwen2:Qwen2Attention",
    rotary_embedding="transformers.models.qwen2.modeling_qwen2:Qwen2RotaryEmbedding",
    vllm_model="vllm.model_executor.models.interns1:InternS1ForConditionalGeneration",
    vllm_decoder="language_model.model",
)
