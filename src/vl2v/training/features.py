"""Features F(x), computed once for stages that leave the backbone frozen."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from lightning_fabric import Fabric
from torch import Tensor

from vl2v.progress import Progress, silent
from vl2v.students import Student, evaluating

BATCH = 64  # always as many at a time: with another number the last digits are others


def compute_features(
    student: Student, pixels: Iterable[Tensor], fabric: Fabric, total: int = 0, progress: Progress = silent
) -> Tensor:
    """Return F(x) [N, p] in float32 on the CPU, of batches of uint8 pixels [n, s, s, 3], n at most `BATCH`.

    An image's features are the same bit for bit, whichever others are asked for with it.

    Args:
        student: its backbone is F; batch norms and dropout are in eval mode.
        pixels: batches, in order.
        fabric: device and precision.
        total: how many images there are, for the progress.
        progress: called after each batch.
    """
    parts: list[Tensor] = []
    done = 0
    with evaluating(student), fabric.autocast():
        for batch in pixels:
            padded = torch.cat([batch, batch.new_zeros(BATCH - len(batch), *batch.shape[1:])])
            parts.append(student.features(fabric.to_device(padded))[: len(batch)].cpu())
            done += len(batch)
            progress("student's features", done, total, "")
    return torch.cat(parts)
