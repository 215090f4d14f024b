"""A student as it is trained: it returns everything that a loss needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vl2v.methods import Output
from vl2v.students.student import Student


class Learner(nn.Module):
    """A student, with the regularizer of its stage if there is one.

    In training mode it returns what the loss needs, in eval mode the student's own output.

    Args:
        student: is trained.
        regularizer: see `Stage.regularizer`.
    """

    def __init__(self, student: Student, regularizer: nn.Module | None = None) -> None:
        super().__init__()
        self.student = student
        self.regularizer = regularizer

    def forward(self, x: Tensor, *, features_only: bool = False) -> Tensor | tuple[Output, Tensor]:
        """Return (output, penalty) of pixels [n, s, s, 3] or features [n, p]; the penalty is 0 without regularizer."""
        if features_only:
            return self.student.features(x)
        if not self.training:
            out: Tensor = self.student(x)
            return out
        features = x.float() if x.ndim == 2 else self.student.features(x)
        output = self._output(features)
        penalty = features.new_zeros(()) if self.regularizer is None else self.regularizer(x, output)
        return output, penalty

    def _output(self, features: Tensor) -> Output:
        projector = self.student.projector
        with torch.autocast(features.device.type, enabled=False):
            if isinstance(projector, nn.Sequential):
                embedding = projector[0](features)
                return Output(features, projector[1](embedding), embedding)
            return Output(features, projector(features))
