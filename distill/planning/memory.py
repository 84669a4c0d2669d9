"""Bytes of a run, part by part. Letters as in `distill.planning.activations`, and N answer rows, V vocabulary."""

from dataclasses import dataclass, field

from distill.planning.activations import (
    adapter_parameters,
    autocast_copies,
    backward_transient,
    forward_transient,
    recomputed_layer,
    student_activations,
    vision_transient,
)
from distill.planning.recorded import load_recorded
from distill.planning.shapes import DecoderShape, ModelShape
from distill.planning.step import StepShape, matched_rows
from distill.recipe import LayerPair, Quantization, Recipe
from rope_gain import RopeGainConfig

MIB = 2**20
_MAPS = 5
"""Maps that the attention matching has at a time: four, as it says, and a copy for a product over samples."""
_PATCH_CACHE_BYTES = 256 * MIB
"""Of `distill.data.collate`, for preprocessed images."""

Parts = dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Execution:
    """What the recipe does not say of a run."""

    device: str = "cpu"
    """`cpu` or `cuda`; on `cpu` the host's memory is the device's."""
    num_processes: int = 1
    """Devices that split each step's samples, one process each."""
    is_sharded: bool = False
    """Whether they also share the student's weights, gradients and optimizer states (FSDP2); a teacher is whole in
    each, and so is a frozen vision tower."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on each device."""

    always: Parts
    """From the second step to the end of the run."""
    phases: dict[str, Parts]
    """What the student's step holds beside: one phase follows the other."""
    teacher_phases: dict[str, Parts]
    """What the teacher holds while it makes the next step's signals, beside the student's step."""
    host: Parts = field(default_factory=dict)
    """In the host's memory, where the device is not the host."""
    teacher_device: Parts = field(default_factory=dict)
    """Where a teacher has a device of its own: everything that is there."""

    @property
    def peak(self) -> int:
        """The largest sum that can come up."""
        return sum(self.always.values()) + _largest(self.phases) + _largest(self.teacher_phases)


def _largest(phases: dict[str, Parts]) -> int:
    return max((sum(parts.values()) for parts in phases.values()), default=0)


def plan_memory(
    recipe: Recipe, student: ModelShape, teacher: ModelShape | None, step: StepShape, execution: Execution
) -> Memory:
    """The bytes of the largest part of a step that a device has in memory at a time: `step` is that part.

    The next part's batch and teacher signals are made beside this one (`distill.prefetch`), so the teacher's
    largest moment is added to the student's, which is an upper bound: the two need not meet.
    """
    always = _student_always(recipe, student, teacher, step, execution)
    teacher_phases: dict[str, Parts] = {}
    if teacher is not None:
        always["teacher signals, two of them"] = 2 * signal_bytes(recipe, teacher, step)
    teacher_device: Parts = {}
    if teacher is not None and not is_recorded(recipe):
        teacher_always, teacher_phases = _teacher(recipe, teacher, step)
        if has_own_device(recipe, execution):
            largest = max(teacher_phases.values(), key=lambda parts: sum(parts.values()))
            teacher_device = {**teacher_always, **largest, "signals": signal_bytes(recipe, teacher, step)}
            teacher_phases = {}
        else:
            always.update(teacher_always)
    phases = _student_phases(recipe, student, teacher, step, execution)
    host = _host(recipe, student, step)
    if execution.device == "cpu":
        always, host = {**always, **host}, {}
    return Memory(always=always, phases=phases, teacher_phases=teacher_phases, host=host, teacher_device=teacher_device)


def _teacher(recipe: Recipe, teacher: ModelShape, step: StepShape) -> tuple[Parts, dict[str, Parts]]:
    """What a live teacher holds all the time, and in its phases."""
    always = {
        "teacher weights": teacher_bytes(recipe, teacher),
        "teacher image features, cached": _feature_cache(recipe, teacher, step),
    }
    forward = {"activations": forward_transient(teacher, step)}
    if _quantization(recipe) is not None:
        forward["one matrix, unpacked"] = teacher.decoder.hidden * teacher.decoder.mlp * teacher.value_bytes
    return always, {"images": {"vision tower": vision_transient(teacher, step)}, "forward": forward}


def _student_always(
    recipe: Recipe, student: ModelShape, teacher: ModelShape | None, step: StepShape, execution: Execution
) -> Parts:
    """AdamW keeps two values for each trained parameter, in its dtype (Loshchilov and Hutter, arXiv 1711.05101)."""
    shards = execution.num_processes if execution.is_sharded else 1
    small = gain_parameters(recipe.gain, student.decoder) + mixing_parameters(recipe, student, teacher)
    unshared = student.parameters.vision if recipe.train.freeze_vision else 0
    parts = {
        "student weights": (unshared + (student.parameters.total - unshared) // shards) * student.value_bytes,
        "optimizer states": 2 * trained_bytes(recipe, student) // shards,
        "gains and mixing, with gradients and states": 4 * 4 * small,
        "image features, cached": _feature_cache(recipe, student, step),
    }
    if recipe.lora is not None:
        parts["adapters"] = 4 * adapter_parameters(student.decoder, recipe.lora)
    if execution.is_sharded:
        # One layer of the student is gathered while the next one is on its way; the embeddings or the head, and a
        # tower in training, are there all the time.
        gathered = 2 * student.parameters.layers // student.decoder.num_layers + student.parameters.embeddings
        parts["gathered"] = (gathered + student.parameters.vision - unshared) * student.value_bytes
    elif execution.num_processes > 1:
        parts["gradient buckets"] = trained_bytes(recipe, student)
    return parts


def _student_phases(
    recipe: Recipe, student: ModelShape, teacher: ModelShape | None, step: StepShape, execution: Execution
) -> dict[str, Parts]:
    shards = execution.num_processes if execution.is_sharded else 1
    gradients = {"gradients": trained_bytes(recipe, student) // shards}
    # The first part of a step begins without gradients.
    earlier = gradients if recipe.train.micro_batches > 1 else {}
    maps, kept = matching_bytes(recipe, student, teacher, step)
    losses = {
        "matching: gradients of q and k": kept,
        "alignment": alignment_bytes(recipe, student, teacher, step),
        "logits": logit_bytes(recipe, student, teacher, step),
    }
    activations = {"activations": student_activations(recipe, student, step)}
    # Shards are gathered in bfloat16.
    copies = {} if execution.is_sharded else {"bf16 weights": autocast_copies(recipe, student)}
    kept_copies = {} if recipe.train.gradient_checkpointing else copies
    inside = {"inside one layer": backward_transient(student, step) + recomputed_layer(recipe, student, step)}
    # Where it works tensor by tensor, AdamW needs two copies of one; the fused one, on GPUs, needs none.
    scratch = 2 * student.parameters.largest * student.value_bytes if execution.device == "cpu" else 0
    return {
        "images": {**earlier, "vision tower": vision_transient(student, step)},
        "losses": {**earlier, **activations, **copies, **losses, "matching: maps": maps},
        # The backward passes of the losses come first, and what they kept is gone.
        "backward, last layer": {**earlier, **activations, **kept_copies, **inside},
        "backward, first layer": {**gradients, **inside},
        "optimizer": {**gradients, "copies": scratch},
    }


def is_recorded(recipe: Recipe) -> bool:
    """Whether the teacher's signals come from a recording, and the teacher is not loaded."""
    return recipe.teacher is not None and recipe.teacher.recording is not None


def has_own_device(recipe: Recipe, execution: Execution) -> bool:
    """Whether a live teacher runs on a device that is not the student's."""
    name = None if recipe.teacher is None or is_recorded(recipe) else recipe.teacher.device
    return name is not None and name not in (execution.device, f"{execution.device}:0")


def teacher_bytes(recipe: Recipe, teacher: ModelShape) -> int:
    """Bytes of a live teacher's weights.

    Quantised are the linear layers but the head. NF4 with double quantization has half a byte a weight, a byte for
    each block of 64 and a float32 for each 256 of these (arXiv 2305.14314); the others a byte, and scales of rows,
    which are a thousandth of that and left out.
    """
    quantization, linear = _quantization(recipe), teacher.parameters.linear
    if quantization is None:
        return teacher.parameters.total * teacher.value_bytes
    bits = 4 + 8 / 64 + 32 / (64 * 256) if quantization == "bitsandbytes_4bit" else 8
    return round(linear * bits / 8) + (teacher.parameters.total - linear) * teacher.value_bytes


def _quantization(recipe: Recipe) -> Quantization | None:
    return None if recipe.teacher is None else recipe.teacher.quantization


def trained_bytes(recipe: Recipe, student: ModelShape) -> int:
    """Bytes of the trained parameters, and so of their gradients; gains and mixing weights left out."""
    if recipe.lora is not None:
        return 4 * adapter_parameters(student.decoder, recipe.lora)
    return trained_parameters(recipe, student) * student.value_bytes


def trained_parameters(recipe: Recipe, student: ModelShape) -> int:
    """Parameters with a gradient: the adapters, or all, or all but the vision tower's; gains and mixing left out."""
    if recipe.lora is not None:
        return adapter_parameters(student.decoder, recipe.lora)
    frozen = student.parameters.vision if recipe.train.freeze_vision else 0
    return student.parameters.total - frozen


def gain_parameters(gain: RopeGainConfig | None, decoder: DecoderShape) -> int:
    """Parameters of the response gain, float32."""
    if gain is None:
        return 0
    shapes = gain.gain_shapes(
        num_heads=decoder.num_heads, num_key_value_heads=decoder.num_key_value_heads, head_dim=decoder.head_size
    )
    per_layer = sum(heads * pairs for heads, pairs in shapes.values())
    return per_layer * len(gain.gained_layers(decoder.num_layers))


def mixing_parameters(recipe: Recipe, student: ModelShape, teacher: ModelShape | None) -> int:
    """Weights of the head mixing of alignment (q and k) and matching (maps), float32."""
    if teacher is None:
        return 0
    ours, theirs = student.decoder, teacher.decoder
    loss = recipe.loss
    count = 0
    if loss.alignment_weight > 0:
        pair = ours.num_heads * theirs.num_heads + ours.num_key_value_heads * theirs.num_key_value_heads
        count += len(loss.alignment.layers) * pair
    if loss.matching_weight > 0 and loss.matching.mixing == "softmax":
        count += len(loss.matching.layers) * ours.num_heads * theirs.num_heads
    return count


def signal_bytes(recipe: Recipe, teacher: ModelShape, step: StepShape) -> int:
    """What one step keeps of the teacher: q and k of each layer that a loss looks at, and logits on the answer.

    From a recording, q and k come in its dtype, and of the likeliest tokens a float32, an int64, and for each row a
    float32 of the others.
    """
    loss = recipe.loss
    pairs: list[LayerPair] = []
    if loss.alignment_weight > 0:
        pairs.extend(loss.alignment.layers)
    if loss.matching_weight > 0:
        pairs.extend(loss.matching.layers)
    layers = {pair.teacher % teacher.decoder.num_layers for pair in pairs}
    per_token = len(layers) * (teacher.decoder.query + teacher.decoder.key)
    answers = step.num_samples * step.answer_rows
    recorded = load_recorded(recipe)
    if recorded is None:
        return teacher.value_bytes * (per_token * step.num_tokens + answers * teacher.decoder.vocabulary)
    of_answer = teacher.value_bytes * teacher.decoder.vocabulary if recorded.top_k is None else 12 * recorded.top_k + 4
    return recorded.value_bytes * per_token * step.num_tokens + answers * of_answer


def matching_bytes(recipe: Recipe, student: ModelShape, teacher: ModelShape | None, step: StepShape) -> tuple[int, int]:
    """Bytes of the attention matching: its chunk maps, and what it keeps for the backward pass.

    A map is at most `chunk_mib` large, at least one row of all samples and heads, and never more than all rows.
    Kept, in float32, per pair of layers: the gradients of q at the rows, and once more among all tokens (8qR), and of k
    (4kT); in the forward pass beside it the keys of both models in float32.
    """
    loss = recipe.loss
    if teacher is None or loss.matching_weight == 0:
        return 0, 0
    row_map, all_maps = map_bytes(recipe, student, teacher, step)
    maps = _MAPS * max(row_map, min(loss.matching.chunk_mib * MIB, all_maps))
    keys = 4 * step.num_tokens * (student.decoder.key + teacher.decoder.key)
    rows = step.num_samples * matched_rows(step, loss.matching)
    kept = 8 * rows * student.decoder.query + 4 * step.num_tokens * student.decoder.key
    return maps + keys, len(loss.matching.layers) * kept


def map_bytes(recipe: Recipe, student: ModelShape, teacher: ModelShape, step: StepShape) -> tuple[int, int]:
    """Bytes of a float32 attention map of one row of every sample, and of all rows: 4·B·heads·rows·T."""
    row = 4 * step.num_tokens * max(student.decoder.num_heads, teacher.decoder.num_heads)
    return row, row * matched_rows(step, recipe.loss.matching)


def alignment_bytes(recipe: Recipe, student: ModelShape, teacher: ModelShape | None, step: StepShape) -> int:
    """Bytes of the Q/K alignment at its rows: the teacher's heads in float32, their mix, and the error twice."""
    loss = recipe.loss
    if teacher is None or loss.alignment_weight == 0:
        return 0
    rows = step.num_samples * step.rows(loss.alignment.rows)
    ours = student.decoder.query + student.decoder.key
    theirs = teacher.decoder.query + teacher.decoder.key
    return len(loss.alignment.layers) * rows * (12 * ours + 4 * theirs)


def logit_bytes(recipe: Recipe, student: ModelShape, teacher: ModelShape | None, step: StepShape) -> int:
    """Bytes of the student's logits on the answer rows and of the losses on them.

    The logits and, for each loss, their gradient (bNV each); float32 copies of one piece of the rows at a time
    (`distill.losses.by_rows`), about six of them: both models' logits, scaled, and their log-softmaxes.
    """
    values = step.num_samples * step.answer_rows * student.decoder.vocabulary
    has_kl = teacher is not None and recipe.loss.lambda_kl > 0
    num_losses = (1 if recipe.loss.lambda_sft > 0 else 0) + (1 if has_kl else 0)
    return student.value_bytes * values * (1 + num_losses) + 6 * min(64 * MIB, 4 * values)


def _feature_cache(recipe: Recipe, model: ModelShape, step: StepShape) -> int:
    """Features of a frozen tower: the cache's capacity, or those of the miniature's whole collection of images."""
    if not recipe.train.freeze_vision:
        return 0
    feature = step.image_tokens * model.feature_values * model.value_bytes
    # A step's own features are held whatever the cache does.
    at_least = step.distinct_images * feature
    num_images = _num_images(recipe, step)
    capacity = recipe.train.feature_cache_mib * MIB
    return max(at_least, capacity if num_images is None else min(capacity, num_images * feature))


def _num_images(recipe: Recipe, step: StepShape) -> int | None:
    """Different images of the miniature world that a run can meet; None for data that is not the miniature's."""
    miniature = recipe.data.miniature
    if miniature is None:
        return None
    from distill.miniature.objects import OBJECTS

    collection = miniature.renderings * len(OBJECTS) * (len(OBJECTS) - 1) // 2
    return min(collection, recipe.train.steps * recipe.train.micro_batches * step.num_samples * step.sample_images)


def _host(recipe: Recipe, student: ModelShape, step: StepShape) -> Parts:
    """Preprocessed images of two steps and of the cache, float32."""
    image = 4 * step.image_patches * student.vision.patch_values
    num_images = _num_images(recipe, step)
    cached = _PATCH_CACHE_BYTES if num_images is None else min(_PATCH_CACHE_BYTES, num_images * image)
    return {"preprocessed images": max(cached, 2 * step.distinct_images * image)}
