"""Qwen2-VL, with M-RoPE in chunks."""

from rope_gain.families.family import Family

QWEN2_VL = Family(
    architecture="Qwen2VLForConditionalGeneration",
    decoder="model.language_model",
    attention="transformers.models.qwen2_vl.modeling_qwen2_vl:Qwen2VLAttention",
    rotary_embedding="transformers.models.qwen2_vl.modeling_qwen2_vl:Qwen2VLRotaryEmbedding",
    vllm_model="vllm.model_executor.models.qwen2_vl:Qwen2VLForConditionalGeneration",
    vllm_decoder="language_model.model",
)
