"""DeepSpeed's ZeRO-3: each process keeps a share of the student's parameters, gradients and optimizer states.

Every tensor is cut, flat, into equal parts. A module is gathered when it is about to run, and let go after.
"""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers.integrations import unset_hf_deepspeed_config

from distill.data.batch import Batch
from distill.distiller import Distiller
from distill.objective import Losses
from distill.recipe import Recipe
from distill.sharding.asked import ZERO3_EXAMPLE
from distill.signals import Signals
from rope_gain.families import find_family

_MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's states that have the parameter's shape."""


def check(recipe: Recipe, config: Mapping[str, Any], device: torch.device) -> None:
    """Makes sure that DeepSpeed would train as the recipe says.

    Args:
        config: DeepSpeed's, as Accelerate has put it together.
        device: of this process.

    Raises:
        ValueError: it would not, or it is configured for what a student cannot be shared by.
    """
    if recipe.student.dtype != "float32":
        raise ValueError(
            f"student.dtype: {recipe.student.dtype!r}, expected 'float32' with DeepSpeed, which keeps all weights in "
            "one type, and gains are float32; train.mixed_precision: bf16 computes in bfloat16"
        )
    if recipe.train.device == "cpu" and device.type != "cpu":
        raise ValueError("train.device: 'cpu', expected 'auto' with DeepSpeed, which takes the GPUs that are there")
    if recipe.train.weight_decay > 0 and recipe.loss.lambda_kl == recipe.loss.lambda_sft == 0:
        raise ValueError(
            f"train.weight_decay: {recipe.train.weight_decay} with loss.lambda_kl: 0 and loss.lambda_sft: 0, expected "
            "0 with DeepSpeed, which would let weights decay that no loss reaches; or FSDP2"
        )
    for key, expected in (
        ("zero_optimization.stage", (3,)),
        ("zero_optimization.offload_optimizer.device", (None, "none")),
        ("zero_optimization.offload_param.device", (None, "none")),
        ("gradient_accumulation_steps", (None, 1, "auto")),
        ("gradient_clipping", (None, "auto")),
        ("bf16.enabled", (None, False)),
        ("fp16.enabled", (None, False)),
        ("torch_autocast", (None,)),
        ("optimizer", (None,)),
        ("scheduler", (None,)),
    ):
        found: Any = config
        for name in key.split("."):
            found = None if found is None else found.get(name)
        if found not in expected:
            raise ValueError(
                f"accelerate: DeepSpeed's {key}: {found!r}, expected {expected[0] or 'none'!r}, as in {ZERO3_EXAMPLE}; "
                "precision, accumulation, clipping and the optimizer are the recipe's"
            )


def load_models_whole() -> None:
    """Has transformers load models as ever, the teacher too, where Accelerate has told it of ZeRO-3."""
    unset_hf_deepspeed_config()


def prepare(
    distiller: Distiller, optimizer: torch.optim.Optimizer, accelerator: Accelerator, recipe: Recipe
) -> tuple[Any, "SharedOptimizer"]:
    """Cuts the parameters, in place, and moves them to the process's device, one by one.

    A frozen vision tower stays whole: which images a process still has to encode is its own affair, and what others
    wait for must not depend on it.

    Returns:
        What runs in place of `distiller`, and what stands for the optimizer, whose steps are taken by the last
        `accelerator.backward` of each of the recipe's steps.
    """
    import deepspeed  # type: ignore[import-not-found, unused-ignore]

    # Of torch, for what DeepSpeed calls in every step.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    config: dict[str, Any] = accelerator.deepspeed_plugin.deepspeed_config
    config["train_micro_batch_size_per_gpu"] = 1
    config["gradient_accumulation_steps"] = recipe.train.micro_batches
    config["train_batch_size"] = recipe.train.micro_batches * accelerator.num_processes
    config["gradient_clipping"] = recipe.train.max_grad_norm
    if recipe.train.mixed_precision == "bf16":
        # No module's weights and gradients travel in less than float32.
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    shared = _Shared(distiller, is_vision_frozen=recipe.train.freeze_vision)
    groups = [list(group["params"]) for group in optimizer.param_groups]
    deepspeed.zero.Init(module=shared, config_dict_or_path=config, dtype=torch.float32)
    distiller.to(accelerator.device)
    engine, prepared = accelerator.prepare(shared, optimizer)
    return engine, SharedOptimizer(prepared, engine.optimizer, groups)


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One of AdamW's states of a parameter, of which each process has a share."""

    parameter: nn.Parameter
    key: str

    def whole(self) -> Tensor:
        """The full tensor, for which every process has to ask."""
        from deepspeed.utils import safe_get_full_optimizer_state  # type: ignore[import-not-found, unused-ignore]

        full: Tensor = safe_get_full_optimizer_state(self.parameter, self.key)
        return full


class SharedOptimizer:
    """Stands for an AdamW whose states DeepSpeed keeps in flat shares, with torch's names for what one does with it."""

    def __init__(self, prepared: Any, zero: Any, groups: Sequence[Sequence[nn.Parameter]]) -> None:
        """Takes Accelerate's optimizer, DeepSpeed's in it, and the parameters of each group."""
        self._prepared = prepared
        self._zero = zero
        self._groups = groups

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups' settings; their parameters are not there."""
        groups: list[dict[str, Any]] = self._prepared.param_groups
        return groups

    def zero_grad(self) -> None:
        """Nothing: DeepSpeed does so after its step."""

    def step(self) -> None:
        """Nothing: the step's last backward pass has taken it."""

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with a `Moment` in place of each sharded tensor."""
        parameters = [parameter for group in self._groups for parameter in group]
        numbers = iter(range(len(parameters)))
        settings = [
            {**group, "params": list(itertools.islice(numbers, len(of_group)))}
            for group, of_group in zip(self.param_groups, self._groups, strict=True)
        ]
        states = list(self._adam.state.values())
        if not states:
            return {"param_groups": settings, "state": {}}
        # All are stepped together.
        return {
            "param_groups": settings,
            "state": {
                index: {"step": states[0]["step"], **{key: Moment(parameter=parameter, key=key) for key in _MOMENTS}}
                for index, parameter in enumerate(parameters)
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what torch's would give, with this process's share in place of each tensor."""
        from deepspeed.utils import safe_set_local_optimizer_state  # type: ignore[import-not-found, unused-ignore]

        for group, saved in zip(self.param_groups, state["param_groups"], strict=True):
            group.update({key: value for key, value in saved.items() if key != "params"})
        if not state["state"]:
            return
        steps = [of_parameter["step"] for of_parameter in state["state"].values()]
        step = max(steps)
        if min(steps) < step:
            raise ValueError(
                f"optimizer: weights that were updated {int(min(steps))} and {int(step)} times, since some steps had "
                "no images; expected to go on without DeepSpeed, which counts once for all"
            )
        for flat in self._zero.fp32_partitioned_groups_flat:
            self._adam.state[flat] = {"step": step.clone(), **{key: torch.zeros_like(flat) for key in _MOMENTS}}
        parameters = [parameter for group in self._groups for parameter in group]
        for index, of_parameter in state["state"].items():
            for key in _MOMENTS:
                safe_set_local_optimizer_state(parameters[index], of_parameter[key], key)

    @property
    def _adam(self) -> torch.optim.AdamW:
        adam: torch.optim.AdamW = self._zero.optimizer
        return adam


def is_shared(value: Any) -> bool:
    """Whether it is a parameter that DeepSpeed has cut."""
    return hasattr(value, "ds_tensor")


def shape(parameter: Any) -> torch.Size:
    """Of the whole parameter."""
    full: torch.Size = parameter.ds_shape
    return full


def whole(parameter: Any) -> Tensor:
    """The full tensor of a trained parameter, for which every process has to ask."""
    from deepspeed.utils import safe_get_full_fp32_param  # type: ignore[import-not-found, unused-ignore]

    full: Tensor = safe_get_full_fp32_param(parameter)
    return full


def share(value: Tensor, parameter: Any) -> Tensor:
    """This process's part of a full tensor, on its device, cut as the parameter is: the last part ends in zeros."""
    size, rank = parameter.ds_tensor.numel(), torch.distributed.get_rank()
    part = value.flatten()[rank * size : (rank + 1) * size].to(parameter.ds_tensor.device)
    return nn.functional.pad(part, (0, size - part.numel()))


def fill(parameter: Any, value: Tensor) -> None:
    """Puts a full tensor into a trained parameter; every process does so with the same one."""
    import deepspeed  # type: ignore[import-not-found, unused-ignore]
    from deepspeed.utils import safe_set_local_fp32_param  # type: ignore[import-not-found, unused-ignore]

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.copy_(value)
    # What the optimizer steps is a copy.
    safe_set_local_fp32_param(parameter, share(value, parameter))


class _Shared(nn.Module):
    """A distiller without what stays whole in each process, which runs nevertheless."""

    def __init__(self, distiller: Distiller, *, is_vision_frozen: bool) -> None:
        super().__init__()
        model: Any = distiller.student
        decoder = model.get_submodule(find_family(type(model).__name__).decoder)
        self.modules_shared = nn.ModuleList(
            [*([decoder, model.get_output_embeddings()] if is_vision_frozen else [model]), distiller.objective]
        )
        # Not a module of this one.
        self._run = distiller.forward

    def forward(self, batch: Batch, teacher: Signals | None, progress: float, counts: Mapping[str, float]) -> Losses:
        """As the distiller's."""
        return self._run(batch, teacher, progress, counts)
