"""Qwen2.5-VL, the paper's family, with M-RoPE in chunks."""

from rope_gain.families.family import Family

QWEN2_5_VL = Family(
    architecture="Qwen2_5_VLForConditionalGeneration",
    decoder="model.language_model",
    attention="transformers.models.qwen2_5_vl.modeling_qwen2_5_vl:Qwen2_5_VLAttention",
    rotary_embedding="transformers.models.qwen2_5_vl.modeling_qwen2_5_vl:Qwen2_5_VLRotaryEmbedding",
    vllm_model="vllm.model_executor.models.qwen2_5_vl:Qwen2_5_VLForConditionalGeneration",
    vllm_decoder="language_model.model",
)
