"""A map of images: what student and teacher make of them, on the plane in which that differs most."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vl2v.report.evaluated_run import EvaluatedRun
from vl2v.report.page import sprite
from vl2v.session import Progress, derive, silent
from vl2v.students.classifier import Classifier
from vl2v.students.student import evaluating
from vl2v.training.batches import clean_pixels

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
        pixels: uint8 [n, s, s, 3].

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


IMAGES = 360
SIDE, MARGIN = 400, 16  # of a panel, in the units of its view box
THUMB, COLUMNS = 56, 20  # pixels a side, and images in a row of the sheet
COLOURS = 8  # that can be distinguished
LINE, LETTER = 10, 2.6  # height of a name's line, half the width of a letter
NAMED = 12  # more classes than that get no words beside their texts
Indices = NDArray[np.int64]
Points = NDArray[np.floating]


def embedding_map(evaluated: EvaluatedRun, progress: Progress) -> dict[str, Any]:
    """Return a panel of the student's embeddings and, where they are cached, one of the teacher's.

    A student that classifies by texts lives in its teacher's space: both panels, and the texts, are on one plane then.
    """
    predictions, classifier = evaluated.predictions, evaluated.classifier
    indices = _drawn(evaluated)
    size, workers = classifier.student.spec.image_size, evaluated.run.config.data.processes
    pixels: list[NDArray[np.uint8]] = []
    made = []
    numbers, fit = predictions["index"][indices], classifier.fit
    for chunk in clean_pixels(evaluated.dataset, numbers, size, workers=workers, fit=fit):
        made.append(embeddings(classifier, chunk).numpy())
        pixels += list(chunk.numpy())
        progress("mapping", len(pixels), len(indices), "")
    student = np.concatenate(made)
    cached, teacher = evaluated.teacher_vectors(indices)
    queried = np.flatnonzero(np.isin(indices, cached))
    texts = np.zeros((0, student.shape[1])) if classifier.texts is None else classifier.texts.numpy()
    together = len(texts) > 0 and len(cached) > 0
    plane = Plane(np.concatenate([student, teacher]) if together else student)
    models = [_Model("Student", np.arange(len(indices)), predictions["answer"], plane, student, texts)]
    if len(cached):
        other = plane if together else Plane(teacher)
        models.append(_Model("Teacher", queried, evaluated.teacher, other, teacher, texts if together else texts[:0]))
    everything = np.concatenate([model.everything for model in models]) if together else None
    words = "Principal components (PCA) of what each model makes of an image."
    if together:
        cosine = (student[queried] * teacher).sum(1).mean()
        words = (
            "Principal components (PCA) of both models' embeddings: the two panels have the same axes. "
            f"The mean cosine between an image's two embeddings is {cosine:.2f}."
        )
    return {
        "count": len(indices),
        "words": words,
        "texts": len(texts) > 0,
        "panels": [_panel(evaluated, indices, m, m.everything if everything is None else everything) for m in models],
        "classes": predictions.classes,
        "domains": predictions.domains,
        "side": SIDE,
        "columns": COLUMNS,
        "sheet": sprite(pixels, THUMB, COLUMNS),
    }


@dataclass(frozen=True)
class _Model:
    """What one model makes of m of the map's images.

    Attributes:
        numbers: [m] which of the map's images.
        predicted: by the model, of all images that were measured.
        vectors: [m, d].
        texts: [C, d], or none.
    """

    title: str
    numbers: Indices
    predicted: Indices
    plane: Plane
    vectors: Points
    texts: Points

    @cached_property
    def points(self) -> Points:
        return self.plane.of(self.vectors)

    @cached_property
    def marks(self) -> Points:
        return self.plane.of(self.texts) if len(self.texts) else np.zeros((0, 2))

    @property
    def everything(self) -> Points:
        return np.concatenate([self.points, self.marks])


def _drawn(evaluated: EvaluatedRun) -> Indices:
    """Return measured images, of every domain as many, drawn by lot."""
    of = evaluated.predictions["domain"]
    rng = np.random.default_rng(derive(0, "map"))
    domains = np.unique(of)
    each = [rng.permutation(np.flatnonzero(of == domain))[: IMAGES // len(domains)] for domain in domains]
    return np.sort(np.concatenate(each))


def _panel(evaluated: EvaluatedRun, indices: Indices, model: _Model, frame: Points) -> dict[str, Any]:
    """Return the points and texts of a model, laid out so that `frame` [n, 2] fills the panel."""
    predictions, low = evaluated.predictions, frame.min(0)
    unit = (SIDE - 2 * MARGIN) / np.maximum(frame.max(0) - low, 1e-9)
    points = []
    for number, (x, y) in zip(model.numbers, (MARGIN + (model.points - low) * unit).round(1).tolist(), strict=True):
        index = indices[number]
        label, domain, said = (
            int(predictions["label"][index]),
            int(predictions["domain"][index]),
            int(model.predicted[index]),
        )
        words_of = (
            "" if said < 0 else "\npredicted correctly" if said == label else f"\ntaken for {predictions.classes[said]}"
        )
        points.append(
            {
                "x": x,
                "y": y,
                "label": label,
                "domain": domain,
                "unseen": bool(evaluated.unseen[index]),
                "n": int(number),
                "tip": f"{predictions.classes[label]}, {predictions.domains[domain]}{words_of}",
            }
        )
    at = (MARGIN + (model.marks - low) * unit).round(1).tolist()
    texts = [
        {"x": x, "y": y, "label": label, "name": name if len(at) <= NAMED else "", "tip": f"the text of {name}"}
        for label, (name, (x, y)) in enumerate(zip(predictions.classes, at, strict=False))
    ]
    words = f"The two axes hold {model.plane.explained:.0%} of the variance."
    middles = _middles(points, predictions.classes) if len(predictions.classes) > COLOURS else []
    return {"title": model.title, "points": points, "texts": texts, "words": words, "middles": middles}


def _middles(points: list[dict[str, Any]], classes: list[str]) -> list[dict[str, Any]]:
    """Return where the names of classes stand: at the median of their images, where no other name does."""
    found: list[dict[str, Any]] = []
    for label, name in enumerate(classes):
        mine = [(point["x"], point["y"]) for point in points if point["label"] == label]
        if mine:
            x, y = np.median(mine, axis=0).round(1).tolist()
            while any(
                abs(y - other["y"]) < LINE and abs(x - other["x"]) < LETTER * len(name + other["name"])
                for other in found
            ):
                y += LINE
            found.append({"x": x, "y": round(y, 1), "label": label, "name": name})
    return found
