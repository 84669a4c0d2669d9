"""Tensors of which each process has a share, and their whole ones."""

from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from distill.sharding import zero3


def whole(value: Any) -> Any:
    """A sharded tensor's full one, for which every process has to ask; any other value as it is."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, zero3.Moment):
        return value.whole()
    return zero3.whole(value) if zero3.is_shared(value) else value


def placed(value: Any, like: Tensor) -> Any:
    """A copy of a full tensor, sharded as another tensor of its shape is; any other value as it is."""
    if not isinstance(value, Tensor):
        return value
    if zero3.is_shared(like) and value.shape == zero3.shape(like):
        return zero3.share(value, like)
    if isinstance(like, DTensor) and value.shape == like.shape:
        # Every process cuts its own share out, without a word to the others.
        value = distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return value.clone()


def fill(parameter: nn.Parameter, value: Tensor) -> None:
    """Puts a full tensor into a parameter, sharded or not."""
    if zero3.is_shared(parameter):
        zero3.fill(parameter, value)
    else:
        parameter.copy_(placed(value, parameter))
