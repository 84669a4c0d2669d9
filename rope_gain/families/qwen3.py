"""Qwen3, the plain text model, with norms on query and key."""

from rope_gain.families.family import Family

QWEN3 = Family(
    architecture="Qwen3ForCausalLM",
    decoder="model",
    attention="transformers.models.qwen3.modeling_qwen3:Qwen3Attention",
    rotary_embedding="transformers.models.qwen3.modeling_qwen3:Qwen3RotaryEmbedding",
    vllm_model="vllm.model_executor.models.qwen3:Qwen3ForCausalLM",
    vllm_decoder="model",
)
