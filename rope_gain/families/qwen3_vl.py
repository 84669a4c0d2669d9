"""Qwen3-VL, with norms on query and key, interleaved M-RoPE and deepstack."""

from rope_gain.families.family import Family

QWEN3_VL = Family(
    architecture="Qwen3VLForConditionalGeneration",
    decoder="model.language_model",
    attention="transformers.models.qwen3_vl.modeling_qwen3_vl:Qwen3VLTextAttention",
    rotary_embedding="transformers.models.qwen3_vl.modeling_qwen3_vl:Qwen3VLTextRotaryEmbedding",
    vllm_model="vllm.model_executor.models.qwen3_vl:Qwen3VLForConditionalGeneration",
    vllm_decoder="language_model.model",
)
