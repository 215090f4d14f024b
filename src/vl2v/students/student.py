"""The student: a backbone F and a projector P (paper, section 4)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vl2v.errors import StudentError
from vl2v.teachers.protocol import BackboneSpec

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


class Student(nn.Module):
    """Pixels to embeddings of the teacher's space, or to class logits.

    The projector is one linear layer with bias: R^p -> R^d into the teacher's space, where the text
    classifier decides; R^p -> R^C for methods that train a head of their own (`head="linear"`); and nothing
    at all where the backbone already ends in the space (VL2V-SD).

    Pixels and features may be on any device; what comes out is on the student's.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, projector: nn.Module, spec: BackboneSpec, head: str = "text") -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.spec = spec
        self.head = head
        self.split: Split | None = None
        self._is_fastvit = any(type(part).__module__ == "timm.models.fastvit" for part in backbone.modules())
        self.register_buffer("mean", torch.tensor(spec.mean, device="cpu").view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(spec.std, device="cpu").view(1, 3, 1, 1) * 255, persistent=False)

    @property
    def layout(self) -> torch.memory_format:
        """How images lie in memory. With channels last, oneDNN crashes in FastViT's backward pass (PyTorch 2.14)."""
        on_cpu = self.mean.device.type == "cpu"
        return torch.contiguous_format if self._is_fastvit and on_cpu else torch.channels_last

    @property
    def width(self) -> int:
        """p, the number of features."""
        first = self.projector[0] if isinstance(self.projector, nn.Sequential) else self.projector
        if isinstance(first, nn.Linear):
            return first.in_features
        size = self.spec.image_size
        with evaluating(self):
            return self.features(torch.zeros(1, size, size, 3, dtype=torch.uint8)).shape[1]

    def features(self, pixels: Tensor) -> Tensor:
        """Return F(x) [n, p] of uint8 pixels [n, s, s, 3] (0 to 255), or of `activations` of a student that is cut."""
        if self.split is not None and pixels.is_floating_point():
            x = pixels.to(self.mean.device).float()
            return self.split.upper(self._laid_out(x.permute(0, 3, 1, 2)) if x.ndim == 4 else x).float()
        features: Tensor = self.backbone(self._normalised(pixels))
        return features.float()

    def _normalised(self, pixels: Tensor) -> Tensor:
        x = pixels.to(self.mean.device).permute(0, 3, 1, 2).to(self.mean.dtype)  # stays channels-last in memory
        return self._laid_out((x - self.mean) / self.std)

    def _laid_out(self, x: Tensor) -> Tensor:
        return x if self.layout is torch.channels_last else x.contiguous()

    def cut(self, block: str) -> None:
        """Cut the backbone in two, so that `features` takes `activations`, too; see `vl2v.students.student`.

        Args:
            block: the first of the upper part, a module's name; "auto": where most of the work lies below.

        Raises:
            StudentError: it can't be cut there.
        """
        size = self.spec.image_size
        with evaluating(self):
            blank = self._normalised(torch.zeros(1, size, size, 3, dtype=torch.uint8))
            self.split = split(self.backbone, block, blank)

    def freeze_below_cut(self) -> None:
        """Let what lies below the cut have no gradient, and the rest of the backbone have one."""
        assert self.split is not None
        with evaluating(self):
            self.split.freeze()

    def activations(self, pixels: Tensor) -> Tensor:
        """Return what reaches the cut, [n, h, w, c] or [n, t, c] in float16, of uint8 pixels [n, s, s, 3]."""
        assert self.split is not None
        found = self.split.lower(self._normalised(pixels))
        largest = torch.finfo(torch.float16).max
        return (found.permute(0, 2, 3, 1) if found.ndim == 4 else found).clamp(-largest, largest).half()

    def project(self, features: Tensor) -> Tensor:
        """Return P(F(x)): unit rows [n, d] for a text head, logits [n, C] for a linear one.

        Always in full precision: a cosine in bfloat16 has three digits.
        """
        with torch.autocast(self.mean.device.type, enabled=False):
            out: Tensor = self.projector(features.to(self.mean.device).float())
            return functional.normalize(out, dim=-1) if self.head == "text" else out

    def classify_by(self, texts: Tensor) -> None:
        """Let a linear head on a projector start as the class texts T [C, d]: logits e . T^T of the embedding e."""
        assert isinstance(self.projector, nn.Sequential)
        _, head = self.projector
        assert isinstance(head, nn.Linear)
        with torch.no_grad():
            head.weight.copy_(texts)
            head.bias.zero_()

    def start_from(self, parent: Student) -> None:
        """Take another student's weights, and its last layer as it is: it may have been fitted as another head."""
        self.projector, self.head = copy.deepcopy(parent.projector), parent.head
        self.load_state_dict(parent.state_dict())

    def fold(self) -> None:
        """Make one linear layer of a linear head on a projector; what comes out is the same."""
        if isinstance(self.projector, nn.Sequential):
            first, second = self.projector
            assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
            folded = nn.Linear(first.in_features, second.out_features).to(second.weight)
            with torch.no_grad():
                folded.weight.copy_(second.weight @ first.weight)
                folded.bias.copy_(second.weight @ first.bias + second.bias)
            self.projector = folded

    def embed(self, pixels: Tensor) -> Tensor:
        """Return z [n, d], unit rows, of uint8 pixels [n, s, s, 3]."""
        return self.project(self.features(pixels))

    def forward(self, x: Tensor) -> Tensor:
        """Return `project`'s output for pixels [n, s, s, 3] (uint8) or for features [n, p] (float)."""
        return self.project(x) if x.ndim == 2 else self.embed(x)

    def logits(self, x: Tensor, classifier: Tensor | None, scale: float) -> Tensor:
        """Return logits [n, C]: s z . T^T for a text head, P's output for a linear one.

        Args:
            x: as for `forward`.
            classifier: T [C, d], unit rows; not used by a linear head.
            scale: the teacher's logit scale s.
        """
        return as_logits(self(x), classifier, scale)


def as_logits(out: Tensor, classifier: Tensor | None, scale: float) -> Tensor:
    """Return a student's output as logits [n, C]."""
    return out if classifier is None else scale * out @ classifier.to(out.device).T


def new_projector(features: int, dim: int, seed: int) -> nn.Linear:
    """Return the projector, its initialisation decided by the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(features, dim)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, without gradients, and give every module its mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
