"""What a student makes of images: its embeddings on a plane, and which part of an image its prediction depends on."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vl2v.session import Progress, silent
from vl2v.students.classifier import Classifier
from vl2v.students.student import evaluating

Vectors = NDArray[np.floating]
GREY = 128
GRID = 8  # cells a side; the patch that covers is 2 x 2 of them


class Plane:
    """The two directions in which vectors [n, d] differ most: their first principal components."""

    def __init__(self, vectors: Vectors) -> None:
        self.centre = vectors.mean(0)
        _, sizes, axes = np.linalg.svd(vectors - self.centre, full_matrices=False)
        self.axes = axes[:2]
        self.explained = float((sizes[:2] ** 2).sum() / max((sizes**2).sum(), 1e-12))

    def of(self, vectors: Vectors) -> Vectors:
        """Return where vectors [n, d] lie on the plane: [n, 2]."""
        return np.asarray((vectors - self.centre) @ self.axes.T)


def embeddings(classifier: Classifier, pixels: Tensor) -> Tensor:
    """Return z [n, d] of uint8 pixels [n, s, s, 3]; of a student with a linear head, features F(x) [n, p]."""
    student = classifier.student
    with evaluating(student):
        parts = [student.embed(x) if student.head == "text" else student.features(x) for x in pixels.split(64)]
    return torch.cat(parts)


def occlusion(
    classifier: Classifier, pixels: Tensor, progress: Progress = silent
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return how much the prediction's probability falls where an image is covered (Zeiler and Fergus, ECCV 2014).

    A grey patch of 2 x 2 cells goes over a grid of `GRID` x `GRID`; a cell has the mean of the patches over it.

    Args:
        classifier: whose predictions.
        pixels: uint8 [n, s, s, 3].
        progress: called after each image.

    Returns:
        Drops [n, GRID, GRID], and the smallest probability that a patch leaves [n].
    """
    edges = np.linspace(0, pixels.shape[1], GRID + 1).round().astype(int)
    drops, least = [], []
    for number, image in enumerate(pixels):
        covered = image.repeat((GRID - 1) ** 2 + 1, 1, 1, 1)
        for patch in range((GRID - 1) ** 2):
            row, column = divmod(patch, GRID - 1)
            covered[patch, edges[row] : edges[row + 2], edges[column] : edges[column + 2]] = GREY
        probabilities = torch.cat([classifier.probabilities(part) for part in covered.split(32)])
        best = probabilities[-1].argmax()
        left = probabilities[:-1, best].reshape(1, 1, GRID - 1, GRID - 1)
        fallen = (probabilities[-1, best] - left).clamp(min=0)
        drops.append(_spread(fallen))
        least.append(float(left.min()))
        progress("occluding", number + 1, len(pixels), "")
    return torch.stack(drops).numpy(), np.array(least, np.float32)


def _spread(patches: Tensor) -> Tensor:
    """Return the mean over the patches that cover each cell, [GRID, GRID] of [1, 1, GRID - 1, GRID - 1]."""
    ones = torch.ones(1, 1, 2, 2)
    total = functional.conv_transpose2d(patches, ones)
    return (total / functional.conv_transpose2d(torch.ones_like(patches), ones))[0, 0]


def lit(pixels: NDArray[np.uint8], drops: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return an image [s, s, 3] bright where covering it costs most, and pale elsewhere."""
    heat = torch.from_numpy(drops / max(float(drops.max()), 1e-6))[None, None]
    light = functional.interpolate(heat, size=pixels.shape[:2], mode="bicubic").clamp(0, 1)[0, 0, :, :, None].numpy()
    pale = 0.3 * pixels.mean(-1, keepdims=True) + 0.7 * 205
    return np.asarray(light * pixels + (1 - light) * pale).astype(np.uint8)
