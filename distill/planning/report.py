"""A plan as text and as JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from distill.planning.compute import Compute
from distill.planning.fit import Fit
from distill.planning.memory import Memory, Parts, gain_parameters, mixing_parameters, trained_parameters
from distill.planning.shapes import ModelShape
from distill.planning.step import StepShape, matched_rows
from distill.recipe import Recipe

_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that `distill plan` found out."""

    recipe: Recipe
    student: ModelShape
    teacher: ModelShape | None
    step: StepShape
    part: StepShape
    """What one device has in memory at a time."""
    memory: Memory
    compute: Compute
    flops_per_second: float | None
    """Of all devices together; None where it is not known."""
    limit_bytes: int | None
    fits: list[Fit]
    """With a limit: what of the matching fits."""
    fitting_rows: int | None
    """With a limit: how many of the recipe's rows of each sample may be matched, with the smallest chunks."""
    measured_bytes: int | None

    @property
    def step_seconds(self) -> float | None:
        """Seconds of the largest step."""
        return None if self.flops_per_second is None else self.compute.total / self.flops_per_second

    def to_dict(self) -> dict[str, Any]:
        """Plain values: bytes, operations, seconds."""
        seconds = self.step_seconds
        return {
            "parameters": _parameters(self),
            "step": asdict(self.step),
            "part": asdict(self.part),
            "memory": {**asdict(self.memory), "peak": self.memory.peak},
            "flops": {**asdict(self.compute), "total": self.compute.total},
            "flops_per_second": self.flops_per_second,
            "step_seconds": seconds,
            "total_seconds": None if seconds is None else seconds * self.recipe.train.steps,
            "limit_bytes": self.limit_bytes,
            "matching_fits": [asdict(fit) for fit in self.fits],
            "fitting_rows": self.fitting_rows,
            "measured_bytes": self.measured_bytes,
        }

    def to_text(self) -> str:
        """The plan for a person."""
        blocks = [_parameter_lines(self), _step_lines(self), _memory_lines(self), _compute_lines(self)]
        if self.limit_bytes is not None:
            blocks.append(_fit_lines(self, self.limit_bytes))
        if self.measured_bytes is not None:
            ratio = self.memory.peak / self.measured_bytes
            blocks.append([f"measured   {_bytes(self.measured_bytes)}; the plan is {ratio:.2f} of it"])
        return "\n\n".join("\n".join(block) for block in blocks)


def _parameters(plan: Plan) -> dict[str, int]:
    trained = trained_parameters(plan.recipe, plan.student)
    adapters = trained if plan.recipe.lora is not None else 0
    return {
        "student": plan.student.parameters.total,
        "trained": trained,
        "frozen": plan.student.parameters.total - (trained - adapters),
        "teacher": 0 if plan.teacher is None else plan.teacher.parameters.total,
        "gains": gain_parameters(plan.recipe.gain, plan.student.decoder),
        "mixing": mixing_parameters(plan.recipe, plan.student, plan.teacher),
    }


def _parameter_lines(plan: Plan) -> list[str]:
    names = {"student": plan.student.path, "teacher": "" if plan.teacher is None else plan.teacher.path}
    return ["parameters", *(_row(key, f"{value:,}", names.get(key, "")) for key, value in _parameters(plan).items())]


def _step_lines(plan: Plan) -> list[str]:
    step, part = plan.step, plan.part
    lines = [
        f"largest step   {step.num_samples} samples of {step.sample_images} images and {step.sample_tokens:,} tokens, "
        f"{step.num_tokens:,} tokens in all",
    ]
    if part != step:
        lines.append(f"  in memory at a time: {part.num_samples} samples, {part.num_tokens:,} tokens")
    return lines


def _memory_lines(plan: Plan) -> list[str]:
    memory = plan.memory
    lines = ["memory on each device", *_part_lines("all the time", memory.always)]
    for name, parts in memory.phases.items():
        lines.extend(_part_lines(name, parts))
    for name, parts in memory.teacher_phases.items():
        lines.extend(_part_lines(f"teacher, beside: {name}", parts))
    lines.append(_row("peak", _bytes(memory.peak), "all the time + the largest of the student + that of the teacher"))
    if memory.host:
        lines.extend(_part_lines("on the host", memory.host))
    if memory.teacher_device and plan.recipe.teacher is not None:
        lines.extend(_part_lines(f"on the teacher's own device, {plan.recipe.teacher.device}", memory.teacher_device))
    return lines


def _part_lines(title: str, parts: Parts) -> list[str]:
    lines = [f"  {title:<44} {_bytes(sum(parts.values())):>12}"]
    return lines + [f"    {name:<42} {_bytes(value):>12}" for name, value in parts.items() if value]


def _compute_lines(plan: Plan) -> list[str]:
    lines = ["floating-point operations of the largest step"]
    lines += [_row(name.replace("_", " "), f"{value:.3g}") for name, value in asdict(plan.compute).items() if value]
    lines.append(_row("total", f"{plan.compute.total:.3g}"))
    seconds = plan.step_seconds
    if seconds is None or plan.flops_per_second is None:
        return [*lines, _row("seconds", "unknown", "no such device here to measure; give --tflops")]
    rate = f"at {plan.flops_per_second / 1e12:.3g} TFLOP/s, matrix products alone: a lower bound"
    steps = plan.recipe.train.steps
    return [
        *lines,
        _row("seconds a step", f"{seconds:.3g}", rate),
        _row("all steps", f"{seconds * steps / 3600:.3g} h", f"{steps:,} steps, if all were the largest"),
    ]


def _fit_lines(plan: Plan, limit_bytes: int) -> list[str]:
    lines = [f"attention matching in {_bytes(limit_bytes)}"]
    for fit in plan.fits:
        found = f"chunk_mib up to {fit.chunk_mib}" if fit.chunk_mib else "does not fit with chunk_mib 1"
        lines.append(_row(f"rows: {fit.rows}", found, f"{fit.num_rows:,} rows a sample, peak {_bytes(fit.peak)}"))
    if plan.fitting_rows:
        matched = matched_rows(plan.part, plan.recipe.loss.matching)
        lines.append(_row("rows at most", f"{plan.fitting_rows:,}", f"of a sample's {matched:,} by the recipe"))
    else:
        lines.append(
            "  the rest alone is too large: lower data.tokens_per_step, raise train.micro_batches, turn on "
            "train.gradient_checkpointing, or add a lora block"
        )
    return lines


def _row(name: str, value: str, note: str = "") -> str:
    return f"  {name:<24} {value:>20}   {note}".rstrip()


def _bytes(value: int) -> str:
    for size, unit in _UNITS:
        if value >= size:
            return f"{value / size:.3g} {unit}" if value / size < 1000 else f"{value / size:.0f} {unit}"
    return f"{value} B"
