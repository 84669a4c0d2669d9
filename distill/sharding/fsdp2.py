"""FSDP2: each process keeps a share of the student's parameters, gradients and optimizer states.

Every tensor is cut along its first dimension. A decoder layer is gathered when it is about to run, and let go after.
"""

import os
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from distill.distiller import Distiller
from rope_gain import gain_modules
from rope_gain.attachment import decoder_layers
from rope_gain.families import find_family

if TYPE_CHECKING:
    from distill.signals import Signals


def shard(distiller: Distiller, accelerator: Accelerator) -> None:
    """Cuts the parameters, in place, and moves them to the process's device; `distiller` is an `FSDPModule` after.

    Units that are gathered at a time are the decoder layers, the embedding and the output layer where they are two,
    and the rest. A frozen vision tower stays whole: which images a process still has to encode is its own affair,
    and what others wait for must not depend on it.
    """
    model, objective = distiller.student, distiller.objective
    layers = decoder_layers(model, find_family(type(model).__name__))
    exact = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    lower = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if accelerator.mixed_precision == "bf16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    settings: dict[str, Any] = {
        "mesh": init_device_mesh(accelerator.device.type, (accelerator.num_processes,)),
        "reshard_after_forward": os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true",
    }
    for gain in gain_modules(model).values():
        # float32 among weights of another dtype, which one unit cannot have.
        fully_shard(gain, mp_policy=exact, **settings)
    for layer in layers:
        fully_shard(layer, mp_policy=lower, **settings)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding.weight is not head.weight:
        fully_shard(embedding, mp_policy=exact, **settings)
        fully_shard(head, mp_policy=lower, **settings)
    for mixing in (*objective.query_mixing, *objective.key_mixing, *objective.map_mixing):
        # Not the objective itself: a unit hands back a gradient, if only of zeros, to all that it is given.
        fully_shard(mixing, mp_policy=exact, **settings)
    frozen = _frozen_vision(model)
    for parameter in frozen:
        parameter.data = parameter.data.to(accelerator.device)
    fully_shard(distiller, mp_policy=exact, ignored_params=frozen, **settings | {"reshard_after_forward": False})
    objective.register_forward_pre_hook(_gather_for_losses(layers))


def _frozen_vision(model: Any) -> set[nn.Parameter]:
    """The frozen parameters that neither the decoder nor the output layer has."""
    decoder = model.get_submodule(find_family(type(model).__name__).decoder)
    others = {*decoder.parameters(), *model.get_output_embeddings().parameters()}
    return {parameter for parameter in model.parameters() if parameter not in others and not parameter.requires_grad}


def _gather_for_losses(layers: Any) -> Any:
    """A hook that gathers a layer again when a loss reaches its queries and keys.

    FSDP does so when a gradient reaches the layer's output, which none does above the highest layer in a loss.
    """

    def hook(_objective: nn.Module, inputs: tuple["Signals", ...]) -> None:
        for number, query_key in inputs[0].layers.items():
            for tensor in (query_key.q_BHTD, query_key.k_BKTD):
                tensor.register_hook(  # type: ignore[no-untyped-call]
                    lambda _gradient, layer=layers[number]: layer.unshard()
                )

    return hook
