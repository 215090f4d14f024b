"""What is frozen is computed once: features F(x), or activations of a backbone's lower blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from vl2v.io import replacing
from vl2v.session import Progress, silent
from vl2v.students.student import Student, evaluating
from vl2v.training.device import Device

BATCH = 64  # always as many at a time: with another number the last digits are others


def compute_features(
    student: Student, pixels: Iterable[Tensor], fabric: Device, total: int = 0, progress: Progress = silent
) -> Tensor:
    """Return F(x) [N, p] in float32 on the CPU, of batches of uint8 pixels [n, s, s, 3], n at most `BATCH`.

    An image's features are the same bit for bit, whichever others are computed with it.

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


def cached_activations(
    student: Student,
    pixels: Callable[[], Iterable[Tensor]],
    fabric: Device,
    file: Path,
    rows: int,
    progress: Progress = silent,
) -> Tensor:
    """Return a student's activations at its cut, [rows, ...] in float16, mapped from a file; computed if it's missing.

    Args:
        student: cut; batch norms and dropout are in eval mode.
        pixels: called for batches of uint8 pixels [n, s, s, 3], in order.
        fabric: device and precision.
        file: appears once it is complete.
        rows: how many images, or views of them, there are.
        progress: called after each batch.

    Raises:
        RunError: the disk is full.
    """
    size = student.spec.image_size
    with evaluating(student), fabric.autocast():
        shape = student.activations(torch.zeros(1, size, size, 3, dtype=torch.uint8)).shape[1:]
        count = rows * shape.numel()
        if not file.is_file() or file.stat().st_size != 2 * count:
            done = 0
            with replacing(file) as draft, draft.open("wb") as opened:
                for batch in pixels():
                    padded = torch.cat([batch, batch.new_zeros(-len(batch) % BATCH, *batch.shape[1:])])
                    for part in padded.split(BATCH):
                        found = student.activations(fabric.to_device(part))[: len(batch)].cpu()
                        opened.write(found.contiguous().numpy().tobytes())
                        batch = batch[len(found) :]
                        done += len(found)
                    progress("lower blocks", done, rows, "")
    return torch.from_file(str(file), shared=False, size=count, dtype=torch.float16).view(rows, *shape)
