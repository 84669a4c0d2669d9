"""Qwen2, the plain text model."""

from rope_gain.families.family import Family

QWEN2 = Family(
    architecture="Qwen2ForCausalLM",
    decoder="model",
    attention="transformers.models.qwen2.modeling_qwen2:Qwen2Attention",
    rotary_embedding="transformers.models.qwen2.modeling_qwen2:Qwen2RotaryEmbedding",
    vllm_model="vllm.model_executor.models.qwen2:Qwen2ForCausalLM",
    vllm_decoder="model",
)
