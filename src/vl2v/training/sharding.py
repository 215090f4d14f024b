"""FSDP: each process holds a part of every weight, gradient and optimiser tensor; whole weights only to compute with.

What is sharded is the model that a stage trains. Before and after the stage, and in checkpoints, everything is whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from copy import deepcopy
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from vl2v.errors import ConfigError
from vl2v.training.device import Device, OneDevice

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

M = TypeVar("M", bound=nn.Module)

warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")  # nothing here writes into outputs


def shard(model: M, mesh: DeviceMesh) -> M:
    """Share a model's parameters out among the processes, in place.

    Those of a block are put together while it is called, in training and in evaluation, and are parts again after it.
    """
    from torch.distributed.fsdp import fully_shard

    modules: list[nn.Module] = [*_blocks(model), model]
    for module in modules:
        fully_shard(module, mesh=mesh["data_parallel"], reshard_after_forward=True)
    return model


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the elements of a model's outermost sequences: the blocks or stages of any backbone."""
    for child in model.children():
        if isinstance(model, (nn.Sequential, nn.ModuleList)) and not isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _blocks(child)


def refuse_scalars(fabric: Device, model: nn.Module) -> None:
    """Refuse a model that is to be sharded and has a parameter without a dimension, which has no parts.

    Raises:
        ConfigError: it has one.
    """
    if _shards(fabric):
        for name, parameter in model.named_parameters():
            if not parameter.ndim:
                raise ConfigError(
                    f"train.strategy = 'fsdp': the student's {name} is a single number, which can't be shared out; "
                    "use ddp"
                )


def _shards(fabric: Device) -> bool:
    if isinstance(fabric, OneDevice):
        return False
    from lightning_fabric.strategies import ModelParallelStrategy

    return isinstance(fabric.strategy, ModelParallelStrategy)


def set_up(fabric: Device, model: M) -> tuple[nn.Module, M]:
    """Return what is called to train a model, and the model whose parameters are trained.

    It is the same model, or where they are sharded a copy; the model is empty then until `make_whole`.
    """
    if not _shards(fabric):
        return fabric.setup_module(model), model
    trained = deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    for parameter in trained.parameters():
        parameter.data = parameter.data.contiguous()  # fully_shard takes no channels-last layout
    called = fabric.setup_module(trained)
    for parameter in model.parameters():
        parameter.data = parameter.data.new_empty(0)
    return called, trained


def make_whole(model: nn.Module, trained: nn.Module) -> None:
    """Put the parameters that were trained into the model that they were taken from."""
    if model is not trained:
        for parameter, part in zip(model.parameters(), trained.parameters(), strict=True):
            parameter.data = whole(part)
        model.to(memory_format=torch.channels_last)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor whole; every process has to call this for one that is sharded."""
    return tensor.full_tensor().detach() if hasattr(tensor, "full_tensor") else tensor  # a DTensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a copy of a whole tensor, on the device and in the layout of another; if that is sharded, of our part."""
    if hasattr(other, "full_tensor"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(other, DTensor)
        tensor = distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)
    return torch.empty_like(other).copy_(tensor)
