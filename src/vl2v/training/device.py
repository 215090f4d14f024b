"""One device: what the loop needs of Lightning Fabric, without importing it and PyTorch's compiler with it.

Both take longer to import than PyTorch itself. A run of several processes has Fabric in place of `OneDevice`.
"""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union

import torch
from torch import Tensor, nn

from vl2v.config import TrainConfig
from vl2v.errors import ConfigError
from vl2v.system import best_device, has_bfloat16

if TYPE_CHECKING:
    from lightning_fabric import Fabric

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
