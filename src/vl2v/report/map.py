"""A map of images: what student and teacher make of them, on the plane in which that differs most."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vl2v.report.evaluated_run import EvaluatedRun
from vl2v.report.insight import Plane, embeddings
from vl2v.report.page import sprite
from vl2v.seeds import derive
from vl2v.session import Progress
from vl2v.training.batches import clean_pixels

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
    size, workers = classifier.student.spec.image_size, evaluated.run.config.data.workers
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
        title: of the panel.
        numbers: [m] which of the map's images.
        predicted: by the model, of all images that were measured.
        plane: where they are shown.
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
