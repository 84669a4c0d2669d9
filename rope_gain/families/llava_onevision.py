"""LLaVA-OneVision, over a Qwen2 decoder."""

from rope_gain.families.family import Family

LLAVA_ONEVISION = Family(
    architecture="LlavaOnevisionForConditionalGeneration",
    decoder="model.language_model",
    attention="transformers.models.qwen2.modeling_qwen2:Qwen2Attention",
    rotary_embedding="transformers.models.qwen2.modeling_qwen2:Qwen2RotaryEmbedding",
    vllm_model="vllm.model_executor.models.llava_onevision:LlavaOnevisionForConditionalGeneration",
    vllm_decoder="language_model.model",
    # transformers 5 leaves out a level of the SigLIP tower's names.
    vllm_renames=tuple(
        (f"model.vision_tower.{part}.", f"model.vision_tower.vision_model.{part}.")
        for part in ("embeddings", "encoder", "post_layernorm")
    ),
)
