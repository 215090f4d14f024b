"""The student: a backbone F and a projector P (paper, section 4)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from vl2v.students.split import Split, split
from vl2v.teachers.protocol import BackboneSpec


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
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1) * 255, persistent=False)

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
            return self.split.upper(x.permute(0, 3, 1, 2) if x.ndim == 4 else x).float()
        features: Tensor = self.backbone(self._normalised(pixels))
        return features.float()

    def _normalised(self, pixels: Tensor) -> Tensor:
        x = pixels.to(self.mean.device).permute(0, 3, 1, 2).to(self.mean.dtype)  # stays channels-last in memory
        return (x - self.mean) / self.std

    def cut(self, block: str) -> None:
        """Cut the backbone in two, so that `features` takes `activations`, too; see `vl2v.students.split`.

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
