"""A backbone cut in two: lower blocks that stay as they are, and upper ones that go on from their activations.

Nothing of the backbone is rebuilt. The lower part is a forward pass that ends at the first upper block; the upper part
is one that starts there: the lower blocks see a single blank image, and what reaches the cut is replaced by the
activations. Whether a backbone can be cut at a block, no other path leading past it, is tried, not assumed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vl2v.errors import StudentError

SHARE = 0.8  # of the backbone's activations that lie under an automatic cut


class _Reached(Exception):
    """The forward pass has come to the cut."""

    def __init__(self, activations: Tensor) -> None:
        super().__init__()
        self.activations = activations


class Split:
    """A backbone in two parts.

    Args:
        backbone: in eval mode below the cut; it isn't changed.
        cut: the first block of the upper part, a module's name.
        blank: the input of a single image [1, 3, s, s].
    """

    def __init__(self, backbone: nn.Module, cut: str, blank: Tensor) -> None:
        self.backbone = backbone
        self.cut = cut
        self.blank = blank

    def lower(self, x: Tensor) -> Tensor:
        """Return the activations at the cut of images [n, 3, s, s]."""

        def leave(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            raise _Reached(inputs[0])

        handle = self.backbone.get_submodule(self.cut).register_forward_pre_hook(leave)
        try:
            self.backbone(x)
        except _Reached as reached:
            return reached.activations
        finally:
            handle.remove()
        raise StudentError(f"student: its forward pass never comes to {self.cut}")

    def upper(self, activations: Tensor) -> Tensor:
        """Return the features [n, p] of images by their activations at the cut."""

        def replaced(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return activations, *inputs[1:]

        handle = self.backbone.get_submodule(self.cut).register_forward_pre_hook(replaced)
        try:
            features: Tensor = self.backbone(self.blank.to(activations.device))
        finally:
            handle.remove()
        return features

    def freeze(self) -> None:
        """Let the lower part's parameters have no gradient: those that the upper pass doesn't reach. In eval mode."""
        self.backbone.requires_grad_(True)
        with torch.enable_grad():
            self.backbone.zero_grad()
            self.upper(self.lower(self.blank).detach().float()).sum().backward()
        for weight in self.backbone.parameters():
            weight.requires_grad_(weight.grad is not None)
            weight.grad = None

    def is_whole(self, x: Tensor) -> bool:
        """Return whether both parts together are the backbone."""
        with torch.no_grad():
            whole = self.backbone(x)
            try:
                parts = self.upper(self.lower(x))
            except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
                return False
        return parts.shape == whole.shape and torch.allclose(parts, whole, rtol=1e-3, atol=1e-4)


def cuts(backbone: nn.Module, blank: Tensor) -> list[tuple[str, float]]:
    """Return the blocks at which a backbone might be cut, in order, each with the share of activations below it.

    Blocks are modules with parts of their own that are called once, with images or tokens in their first argument.

    Args:
        backbone: in eval mode.
        blank: the input of an image [1, 3, s, s].
    """
    names = {module: name for name, module in backbone.named_modules()}
    blocks = {module for module in names if module is not backbone and [*module.children()]}
    found: list[tuple[str, int, nn.Module]] = []
    below = 0

    def come(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if module in blocks and inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim in (3, 4):
            found.append((names[module], below, module))

    def leave(module: nn.Module, _: Any, output: Any) -> None:
        nonlocal below
        if isinstance(output, Tensor) and not [*module.children()]:
            below += output.numel()

    handles = [module.register_forward_pre_hook(come) for module in names]
    handles += [module.register_forward_hook(leave) for module in names]
    try:
        with torch.no_grad():
            backbone(blank)
    finally:
        for handle in handles:
            handle.remove()
    modules = [module for _, _, module in found]
    return [(name, before / below) for name, before, module in found if before and modules.count(module) == 1]


def split(backbone: nn.Module, cut: str, blank: Tensor) -> Split:
    """Return a backbone, in eval mode, cut at a block; "auto": where about `SHARE` of its activations lie below.

    Raises:
        StudentError: there is no such block, or the backbone can't be cut there; the message names blocks that work.
    """
    possible = cuts(backbone, blank)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *blank.shape[1:], generator=generator).to(blank).to(memory_format=torch.channels_last)
    nearest = sorted(possible, key=lambda one: abs(one[1] - SHARE))
    for name, _ in nearest if cut == "auto" else [(cut, 0.0)] if cut in dict(possible) else []:
        if (made := Split(backbone, name, blank)).is_whole(images):
            return made
    working = [name for name, _ in possible if Split(backbone, name, blank).is_whole(images)]
    if not working:
        raise StudentError("train.quick: this student can't be cut in two; train it whole, without --quick")
    raise StudentError(f"train.quick = {cut!r}: no block where the student can be cut; use one of {', '.join(working)}")
