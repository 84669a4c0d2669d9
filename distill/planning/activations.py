"""What autograd keeps of a forward pass, per token.

Letters: h hidden size, m MLP width, q and k widths of all query and of all key heads, d head size, b bytes of a value.
The counts are read off the operations of transformers' decoders in training with SDPA, whose flash kernels keep
q, k, v, the output and one float32 per row and head (Dao, arXiv 2307.08691, section 3.1). Tests hold them against
what autograd really saves, to the byte.
"""

from distill.planning.shapes import DecoderShape, ModelShape, VisionShape
from distill.planning.step import StepShape
from distill.recipe import LoraConfig, Recipe
from rope_gain import RopeGainConfig

_INPUTS = ("hidden", "hidden", "hidden", "query", "hidden", "hidden", "mlp")
_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def student_activations(recipe: Recipe, student: ModelShape, step: StepShape) -> int:
    """Bytes from the student's forward pass until its backward pass.

    Every layer's, or with gradient checkpointing every layer's input, bh; the final norm's 4h + bh; the rotation's
    cosines and sines, 2bd; of a vision tower in training, that of its blocks. The copies of autocast are extra.
    """
    decoder, b = student.decoder, student.value_bytes
    layers = sum(_layer_bytes(recipe, student, layer) for layer in range(decoder.num_layers))
    if recipe.train.gradient_checkpointing:
        layers = decoder.num_layers * b * decoder.hidden
    per_token = layers + (4 + b) * decoder.hidden + 2 * b * decoder.head_size
    total = step.num_tokens * per_token
    if not recipe.train.freeze_vision:
        total += step.distinct_images * step.image_patches * vision_bytes_per_patch(student.vision, b)
    return total


def autocast_copies(recipe: Recipe, student: ModelShape) -> int:
    """The bf16 copies of float32 weights, which autocast makes once and keeps until the forward pass is over.

    Without gradient checkpointing the backward pass needs them too.
    """
    if not is_autocast(recipe, student):
        return 0
    parameters = student.parameters
    return 2 * (parameters.layers + (parameters.head or parameters.embeddings))


def recomputed_layer(recipe: Recipe, student: ModelShape, step: StepShape) -> int:
    """Bytes of the one layer that gradient checkpointing computes again at a time."""
    if not recipe.train.gradient_checkpointing:
        return 0
    return step.num_tokens * max(_layer_bytes(recipe, student, layer) for layer in range(student.decoder.num_layers))


def is_autocast(recipe: Recipe, student: ModelShape) -> bool:
    """Whether products are computed in bf16 from float32 weights."""
    return recipe.train.mixed_precision == "bf16" and student.value_bytes == 4


def _layer_bytes(recipe: Recipe, student: ModelShape, layer: int) -> int:
    decoder = student.decoder
    gain = recipe.gain if recipe.gain is not None and layer in recipe.gain.gained_layers(decoder.num_layers) else None
    if is_autocast(recipe, student):
        return autocast_layer_bytes(decoder, gain)
    if recipe.lora is not None:
        return adapted_layer_bytes(decoder, student.value_bytes, gain, recipe.lora)
    return layer_bytes(decoder, student.value_bytes, gain)


def layer_bytes(decoder: DecoderShape, b: int, gain: RopeGainConfig | None) -> int:
    """One decoder layer in full fine-tuning, in the dtype of its weights.

    Two RMSNorms, each with its float32 input, its normalised input and its output, which the projections share:
    2(4h + 2bh + 4). MLP: gate, its SiLU, up and their product: 4bm. Attention: see `_attention_bytes`.
    """
    norms = 2 * (4 * decoder.hidden + 2 * b * decoder.hidden + 4)
    return norms + 4 * b * decoder.mlp + _attention_bytes(decoder, b, gain, trains_norms=True)


def autocast_layer_bytes(decoder: DecoderShape, gain: RopeGainConfig | None) -> int:
    """The same under autocast to bf16: norms in float32, 2(8h + 4), and a bf16 copy of their output for each of the
    five projections that take one, 5·2h; the rest in bf16."""
    norms = 2 * (8 * decoder.hidden + 4) + 10 * decoder.hidden
    return norms + 8 * decoder.mlp + _attention_bytes(decoder, 2, gain, trains_norms=True)


def adapted_layer_bytes(decoder: DecoderShape, b: int, gain: RopeGainConfig | None, lora: LoraConfig) -> int:
    """One decoder layer with adapters over frozen weights.

    The norms keep their float32 input alone, 2(4h + 4), and the MLP its three factors, 3bm. Adapters are float32:
    each keeps its own float32 copy of its input, which the projections of float32 weights share, and 4·rank.
    """
    total = 2 * (4 * decoder.hidden + 4) + 3 * b * decoder.mlp + _attention_bytes(decoder, b, gain, trains_norms=False)
    widths = {"hidden": decoder.hidden, "query": decoder.query, "mlp": decoder.mlp}
    inputs: list[tuple[str, int]] = []
    for target, name in zip(_TARGETS, _INPUTS, strict=True):
        if target in lora.targets:
            shared = target if b < 4 else {"q_proj": "x", "k_proj": "x", "v_proj": "x"}.get(target, name)
            inputs.append((shared, widths[name]))
            total += 4 * lora.rank
    # With float32 weights the output of the attention is kept already.
    copies = dict(inputs) if b < 4 else {name: width for name, width in inputs if name != "query"}
    return total + 4 * sum(copies.values())


def adapter_parameters(decoder: DecoderShape, lora: LoraConfig) -> int:
    """Two matrices for each target of each layer: rank times its inputs and its outputs."""
    h, q, k, m = decoder.hidden, decoder.query, decoder.key, decoder.mlp
    sizes = ((h, q), (h, k), (h, k), (q, h), (h, m), (h, m), (m, h))
    per_layer = sum(sum(size) for target, size in zip(_TARGETS, sizes, strict=True) if target in lora.targets)
    return lora.rank * per_layer * decoder.num_layers


def _attention_bytes(decoder: DecoderShape, b: int, gain: RopeGainConfig | None, *, trains_norms: bool) -> int:
    """q, k, v, the output and the log-sum-exps: 2bq + 2bk + 4 per head; norms on heads (Qwen3): the float32 input
    4(q + k), the normalised input b(q + k) where their weights are trained, and 4 per head."""
    widths = decoder.query + decoder.key
    total = 2 * b * widths + 4 * decoder.num_heads
    if decoder.has_head_norms:
        total += 4 * widths + 4 * (decoder.num_heads + decoder.num_key_value_heads)
        total += b * widths if trains_norms else 0
    return total + gain_bytes(decoder, gain)


def gain_bytes(decoder: DecoderShape, gain: RopeGainConfig | None) -> int:
    """What the gain adds, all float32 (`rope_gain.gain`).

    The rotated vector before the product with its gain, 4q. A gain that depends on the position has a value for each
    token, head (where heads differ) and pair, and a copy of it for both members of the pair: 4·1.5d per gained head,
    and the log positions, 4·d/2.
    """
    if gain is None:
        return 0
    widths = [(decoder.num_heads, decoder.query)]
    if gain.target == "query_key":
        widths.append((decoder.num_key_value_heads, decoder.key))
    total = 0
    for num_heads, width in widths:
        total += 4 * width
        if gain.position == "log":
            gained_heads = num_heads if gain.granularity == "layer_head_frequency" else 1
            total += 6 * decoder.head_size * gained_heads + 2 * decoder.head_size
    return total


def vision_bytes_per_patch(vision: VisionShape, b: int) -> int:
    """Blocks in training: two norms, 2(4h + 2bh), attention with q, k, v, pieces and output, 7bh, and the MLP."""
    mlp = (4 if vision.is_gated else 2) * b * vision.mlp
    return vision.depth * (2 * (4 + 2 * b) * vision.hidden + 7 * b * vision.hidden + mlp)


def backward_transient(student: ModelShape, step: StepShape) -> int:
    """Gradients inside one layer: of the two factors of the MLP's product and of the residual, 2bm + 2bh a token."""
    return 2 * student.value_bytes * (student.decoder.mlp + student.decoder.hidden) * step.num_tokens


def forward_transient(model: ModelShape, step: StepShape) -> int:
    """One layer's tensors without gradients: the residual, the norm's output and the MLP's three, b(2h + 3m)."""
    return model.value_bytes * (2 * model.decoder.hidden + 3 * model.decoder.mlp) * step.num_tokens


def vision_transient(model: ModelShape, step: StepShape) -> int:
    """The tower on all distinct images at once, in a block without gradients.

    The pixels, float32; then the larger of attention, whose q, k and v are bh each beside the residual and the
    norm, with q and k rotated in float32 (about 6·4h), and the MLP, b(2h + 3m).
    """
    b, h = model.value_bytes, model.vision.hidden
    attention = 5 * b * h + 24 * h
    mlp = b * (2 * h + 3 * model.vision.mlp)
    return step.distinct_images * step.image_patches * (4 * model.vision.patch_values + max(attention, mlp))
