"""What a run computes on: one device, or the processes that torchrun starts, each with its part of every batch.

`OneDevice` is what the loop needs of Lightning Fabric, without importing it and PyTorch's compiler with it: both take
longer to import than PyTorch itself. A run of several processes has Fabric in its place. With FSDP each process holds a
part of every weight, gradient and optimiser tensor of the model that a stage trains; before and after the stage, and in
checkpoints, everything is whole.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import shutil
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union

import numpy as np
import torch
from torch import Tensor, nn

from vl2v.config import TrainConfig
from vl2v.errors import ConfigError, RunError, need_extra
from vl2v.system import best_device, has_bfloat16, world_size
from vl2v.training.batches import Indices

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch.distributed.device_mesh import DeviceMesh

COMPILERS = ("c++", "g++", "clang++", "cl")
M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")
Device = Union["OneDevice", "Fabric"]
"""What a run computes on."""


class OneDevice:
    """A device and a precision, with the methods of Lightning's `Fabric` that the loop uses.

    Args:
        config: accelerator and precision.

    Raises:
        ConfigError: no such accelerator, or none in this machine.
    """

    world_size = 1
    global_rank = 0
    is_global_zero = True

    def __init__(self, config: TrainConfig) -> None:
        wanted = best_device() if config.accelerator in ("auto", "gpu") else config.accelerator
        there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not there.get(wanted, False):
            raise ConfigError(
                f"train.accelerator = {config.accelerator!r}: this machine has no such device; use auto, or cpu"
            )
        self.device = torch.device(wanted, 0) if wanted != "cpu" else torch.device("cpu")
        self.precision = precision_name(config)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context that computes in the precision."""
        if self.precision == "32-true":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def to_device(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the device."""
        return tensor.to(self.device)

    def setup_module(self, model: M) -> M | _Mixed:
        """Return what is called to train a model: its forward pass is in the precision."""
        model.to(self.device)
        return model if self.precision == "32-true" else _Mixed(model, self)

    def setup_optimizers(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Return the optimiser."""
        return optimizer

    def backward(self, tensor: Tensor, gradient: Tensor | None = None) -> None:
        """Add the gradients of a tensor."""
        tensor.backward(gradient)

    def clip_gradients(self, model: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        """Scale the gradients of the optimiser's weights down to a norm, if theirs is larger."""
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        torch.nn.utils.clip_grad_norm_(weights, max_norm, error_if_nonfinite=True)

    def no_backward_sync(self, model: nn.Module, *, enabled: bool = True) -> AbstractContextManager[None]:
        """Return a context without effect: there is nobody to synchronise with."""
        return nullcontext()

    def broadcast(self, value: T) -> T:
        """Return the value: this is the first process."""
        return value

    def all_reduce(self, value: Tensor) -> Tensor:
        """Return the value: there is no other."""
        return value


class _Mixed(nn.Module):
    """A model called in mixed precision; floating-point numbers go in and come out in float32, as with Fabric."""

    def __init__(self, model: nn.Module, device: OneDevice) -> None:
        super().__init__()
        self.model = model
        self._device = device

    def forward(self, x: Tensor, **options: Any) -> Any:
        with self._device.autocast():
            found = self.model(x.float() if x.is_floating_point() else x, **options)
        return _in_full(found)


def _in_full(found: Any) -> Any:
    if isinstance(found, Tensor):
        return found.float() if found.is_floating_point() else found
    if isinstance(found, tuple):
        parts = [_in_full(part) for part in found]
        return type(found)(*parts) if hasattr(found, "_fields") else tuple(parts)
    return found


def precision_name(config: TrainConfig) -> Literal["32-true", "bf16-mixed"]:
    """Return Fabric's name of the precision; "auto" is bf16 where the device computes in it."""
    if config.precision == "auto":
        device = "cpu" if config.accelerator == "cpu" else best_device()
        return "bf16-mixed" if has_bfloat16(device) else "32-true"
    return "bf16-mixed" if config.precision == "bf16" else "32-true"


class Adam(torch.optim.Adam):
    """PyTorch's Adam; its methods don't import the compiler, which they do to keep it away from themselves."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))
    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)


class AdamW(Adam):
    """PyTorch's AdamW: Adam whose weights decay apart from the gradients."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, decoupled_weight_decay=True, **options)


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


PATIENCE = timedelta(days=30)  # of ranks that wait while rank 0 queries a teacher


def launched_fabric(config: TrainConfig) -> Device:
    """Return Fabric on all devices of a run: data-parallel where torchrun has started several processes.

    Raises:
        ConfigError: there are fewer GPUs than processes, or devices that can't work together.
        MissingExtra: several processes, and Lightning Fabric isn't installed.
    """
    world = world_size()
    if world == 1:
        return OneDevice(config)
    import logging

    need_extra("lightning_fabric", "devices")
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # its notes would stand among our bars
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    device = best_device() if config.accelerator in ("auto", "gpu") else config.accelerator
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"train.accelerator = {device!r}: several processes work on cpu or cuda only")
    if device == "cuda" and here > torch.cuda.device_count():
        raise ConfigError(f"torchrun --nproc-per-node {here}: this machine has {torch.cuda.device_count()} GPUs")
    if here == world:
        _stay_on_this_machine()
    fabric = Fabric(
        accelerator=device,
        devices=here,
        num_nodes=world // here,
        strategy=DDPStrategy(timeout=PATIENCE, broadcast_buffers=False)
        if config.strategy == "ddp"
        else ModelParallelStrategy(shard, data_parallel_size=world, tensor_parallel_size=1, timeout=PATIENCE),
        precision=precision_name(config),
    )
    fabric.launch()
    return fabric


def _stay_on_this_machine() -> None:
    """Let the processes' connections, which nothing protects, listen on the loopback interface only."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback is not None:
        for backend in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{backend}_SOCKET_IFNAME", loopback)


def from_first(fabric: Device, work: Callable[[], T]) -> T:
    """Return what the first process makes of something; the others wait for it, and get a copy.

    Raises:
        RunError: in the others, if the first one failed.
    """
    if fabric.world_size == 1:
        return work()
    if fabric.global_rank:
        sent: list[T] | None = fabric.broadcast(None)
        if sent is None:
            raise RunError(f"process {fabric.global_rank} ends, because the first one failed")
        return sent[0]
    try:
        made = work()
    except Exception:
        fabric.broadcast(None)
        raise
    fabric.broadcast([made])
    return made


def lacks_compiler(device: str) -> str:
    """Return what torch.compile lacks for a kind of device, in words; "" if nothing."""
    if device == "mps":
        return "it isn't used on this kind of device"
    if device == "cuda":
        return "" if importlib.util.find_spec("triton") else "it needs Triton, which isn't installed"
    there = os.environ.get("CXX") or any(map(shutil.which, COMPILERS))
    return "" if there else f"it needs a C++ compiler, and none of {', '.join(COMPILERS)} is found"


def own_part(fabric: Device, images: Indices) -> Indices:
    """Return this process's part of images, as many as every other's: the last ones may be there twice."""
    if fabric.world_size == 1:
        return images
    count = -(-len(images) // fabric.world_size)
    indices = np.arange(count) + fabric.global_rank * count
    part: Indices = images[indices.clip(max=len(images) - 1)]
    return part


def put_together(fabric: Device, rows: Tensor, total: int) -> Tensor:
    """Return the rows [total, p] that all processes made of their own parts, in order, on the CPU."""
    if fabric.world_size == 1:
        return rows
    assert not isinstance(fabric, OneDevice)
    found = fabric.all_gather(rows.to(fabric.device))
    assert isinstance(found, Tensor)
    return found.flatten(0, 1)[:total].cpu()
