"""A finished run with its images at hand: what student and teacher predict of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vl2v.data.auditing import Audit
from vl2v.data.dataset import DomainDataset
from vl2v.embeddings.plan import clean_view
from vl2v.embeddings.rows import FILE_NAME
from vl2v.embeddings.schema import image_key
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import DataError, RunError
from vl2v.evaluation.alignment import accuracy_by_group
from vl2v.evaluation.compare import paired_difference, wilson
from vl2v.evaluation.metrics import Evaluation, Role, Row, measure
from vl2v.report.charts import Chart, Series, axis, calibration, coverage
from vl2v.report.page import lead, percent, thumbnail
from vl2v.runs.datasets import Images, at_hand
from vl2v.runs.evaluate import STUDENT, TEACHER, evaluate_images, zero_shot_logits
from vl2v.runs.folder import Run
from vl2v.runs.predictions import Predictions, content
from vl2v.session import Session
from vl2v.students.classifier import Classifier
from vl2v.training.batches import read_image

Indices = NDArray[np.int64]
NAMED = 3  # weak classes in a verdict


@dataclass(frozen=True)
class EvaluatedRun:
    """A run and its predictions; arrays are [n], over the images that were measured.

    Attributes:
        store: the folder of the embedding store.
        evaluation: by domain, the teacher's rows where all of its embeddings are cached.
        teacher: the teacher's prediction, -1 where its embedding isn't cached.
    """

    run: Run
    store: Path
    images: Images
    evaluation: Evaluation
    predictions: Predictions
    teacher: Indices

    @property
    def dataset(self) -> DomainDataset:
        """All images that can be used."""
        return self.images.all[0]

    @property
    def audit(self) -> Audit:
        """What their files hold."""
        return self.images.all[1]

    @property
    def classifier(self) -> Classifier:
        """The student."""
        return self.run.classifier

    @property
    def sources(self) -> list[str]:
        """The domains that were seen in training."""
        return list(self.classifier.about["sources"])

    @cached_property
    def unseen(self) -> NDArray[np.bool_]:
        """Whether each image is of an unseen domain."""
        return ~np.isin(np.array(self.predictions.domains)[self.predictions["domain"]], self.sources)

    @cached_property
    def focus(self) -> NDArray[np.bool_]:
        """Which images to show closely: those of unseen domains, or all if there are none."""
        return self.unseen if self.unseen.any() else ~self.unseen

    @property
    def name(self) -> str:
        """The run folder's name."""
        return self.run.folder.resolve().name

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """Whether the student's prediction of each is right."""
        return self.predictions.right

    def thumbnail(self, number: int) -> str:
        """Return a measured image, small, as a data URI."""
        return thumbnail(read_image(self.dataset, int(self.predictions["index"][number])))

    def teacher_vectors(self, indices: Indices) -> tuple[Indices, NDArray[np.float32]]:
        """Return which of some measured images the teacher's embedding is cached of, and those [m, d]."""
        about = self.classifier.about["teacher"]
        if about is None or not (self.store / FILE_NAME).is_file():
            return indices[:0], np.zeros((0, 0), np.float32)
        view = clean_view(about.get("fit", "own"))
        keys = [image_key(self.audit.contents[i], view) for i in self.predictions["index"][indices]]
        with EmbeddingStore(self.store, read_only=True) as embeddings:
            cached = embeddings.cached(about["fingerprint"], keys)
            there = [key for key, one in zip(keys, cached, strict=True) if one]
            if not there:
                return indices[:0], np.zeros((0, 0), np.float32)
            return indices[cached], embeddings.get(about["fingerprint"], there)


def open_evaluated(run: Run, session: Session) -> EvaluatedRun:
    """Return a run with its images; evaluated anew where predictions weren't saved, or images or classes differ.

    Raises:
        RunError: the run isn't finished.
        DataError: the images aren't where they were, or none has a label.
    """
    classifier = run.classifier
    if run.config.data.classes:
        raise DataError(
            f"{run.folder}: learnt from images without labels, so there is nothing to report; "
            "`vl2v evaluate RUN --data SAMPLE` measures its accuracy on images with labels"
        )
    images = Images(at_hand(run.config.data), session)
    dataset, audit = images.all
    predictions, evaluation = _saved(run, dataset, audit), run.evaluation
    if predictions is None or evaluation is None:
        evaluation, predictions = evaluate_images(run, session=session, images=images)
        since = "The run's saved evaluation isn't of these images and classes: everything here was measured anew."
        evaluation = replace(evaluation, notes=(*evaluation.notes, since))
    teacher, rows = predictions["teacher"].copy(), list(evaluation.rows)
    measured = {row.domain for row in evaluation.of(TEACHER)}
    for row in evaluation.of():
        mine = predictions.in_domain(row.domain)
        if (teacher[mine] >= 0).all():
            continue
        logits = zero_shot_logits(classifier, audit, predictions["index"][mine], session.store)
        if logits is not None:  # it was queried after the run had been measured
            teacher[mine] = logits.argmax(-1).numpy()
            if row.domain not in measured:
                labels = torch.from_numpy(predictions["label"][mine])
                rows.append(Row(TEACHER, row.domain, row.role, measure(logits, labels)))
    return EvaluatedRun(run, session.store, images, replace(evaluation, rows=tuple(rows)), predictions, teacher)


def _saved(run: Run, dataset: DomainDataset, found: Audit) -> Predictions | None:
    """Return the predictions that the run saved, if they are of these very images and of its classes of now."""
    try:
        predictions = Predictions.load(run.folder)
    except RunError:
        return None
    same = predictions.content == content(dataset, found) and predictions.classes == run.classifier.classes
    return predictions if same else None


def verdict(evaluated: EvaluatedRun) -> str:
    """Return in a sentence whether a student is good enough: against chance, its teacher, a baseline; where it fails.

    It is of unseen domains, or of the seen ones' validation images if there are none.
    """
    return "; ".join([*_against(evaluated), _fails(evaluated)]) + "."


def _against(evaluated: EvaluatedRun) -> Iterator[str]:
    focus, evaluation = evaluated.focus, evaluated.evaluation
    labels = evaluated.predictions["label"][focus]
    right, count = int(evaluated.right[focus].sum()), int(focus.sum())
    usual = float(np.bincount(labels).max() / count)
    better = "better" if wilson(right, count)[0] > usual else "not surely better"
    where = "unseen domains" if evaluated.unseen.any() else "seen domains' validation images"
    yield (
        f"On {where} it is right about {percent(right / count)}% of {count:,} images, {better} than always naming the "
        f"most frequent class ({percent(usual)}%)"
    )
    queried = focus & (evaluated.teacher >= 0)
    if queried.any():
        gap = paired_difference(
            evaluated.right[queried], evaluated.teacher[queried] == evaluated.predictions["label"][queried]
        )
        level = "level with" if gap.low <= 0 <= gap.high else "better than" if gap.low > 0 else "worse than"
        points, interval = lead(gap.mean, gap.low, gap.high)
        yield f"{level} its teacher ({points} points; {interval})"
    role: Role = "unseen" if evaluated.unseen.any() else "seen"
    own = evaluation.mean(STUDENT, role)
    for who in evaluation.models():
        base = evaluation.mean(who, role)
        if who not in (STUDENT, TEACHER) and own is not None and base is not None:
            yield f"{100 * (own - base):+.1f} points against {who}"


def _fails(evaluated: EvaluatedRun) -> str:
    """Return the domain, of several, and the classes that are surely worse than the whole."""
    focus = evaluated.focus
    rows = evaluated.evaluation.of(STUDENT, "unseen" if evaluated.unseen.any() else "seen")
    whole = float(evaluated.right[focus].mean())
    shares = accuracy_by_group(
        tuple(evaluated.predictions.classes), evaluated.predictions["label"][focus], evaluated.right[focus]
    )
    poor = sorted((share for share in shares if share.interval[1] < whole), key=lambda share: share.accuracy)
    worst = min(rows, key=lambda row: row.metrics.accuracy)
    named = [f"{worst.domain} ({percent(worst.metrics.accuracy)}%)"] if len(rows) > 1 else []
    named += [f"{share.name} ({percent(share.accuracy)}%)" for share in poor[:NAMED]]
    return f"it fails most on {', '.join(named)}" if named else "no class is surely worse than the others"


Mask = NDArray[np.bool_]


def confidence(evaluated: EvaluatedRun) -> dict[str, Any]:
    """Return the reliability diagrams and the curve of coverage against accuracy."""
    predictions, right, unseen = evaluated.predictions, evaluated.right, evaluated.unseen
    groups = [(name, mine) for name, mine in (("unseen domains", unseen), ("seen domains", ~unseen)) if mine.any()]
    reliability, curves = [], []
    threshold = evaluated.classifier.threshold
    accuracies: list[float] = []
    for number, (name, mine) in enumerate(groups):
        reliability.append(
            _reliability(name, predictions["probability"][mine], predictions["uncalibrated"][mine], right[mine])
        )
        line = [
            (100 * share, 100 * hit, f"threshold {at:.3f}: coverage {share:.1%}, {hit:.1%} of it right")
            for at, share, hit in coverage(predictions["probability"][mine], right[mine])
        ]
        sure = predictions["probability"][mine] >= threshold
        curves.append(Series(name, number, line))
        accuracies += [point[1] for point in line]
        if sure.any():
            share, hit = float(sure.mean()), float(right[mine][sure].mean())
            words = f"{name}, threshold {threshold:.3f}: coverage {share:.1%}, {hit:.1%} of it right"
            curves.append(Series("", number, [(100 * share, 100 * hit, words)], kind="dots"))
            accuracies.append(100 * hit)
    chart = Chart(
        "Coverage against accuracy",
        axis("coverage: images above the threshold, %", [0, 100], low=0, high=100),
        axis("accuracy on these, %", accuracies, high=100),
        curves,
    )
    return {
        "reliability": reliability,
        "coverage": chart,
        "thresholds": _thresholds(evaluated, groups),
        "temperature": f"{evaluated.classifier.temperature:.3g}",
        "threshold": f"{threshold:.3f}",
    }


def _thresholds(evaluated: EvaluatedRun, groups: Sequence[tuple[str, Mask]]) -> dict[str, Any]:
    """Return what some thresholds, and the run's own, would cover and how much of that is right."""
    own = evaluated.classifier.threshold
    rows = []
    for threshold in sorted({0.0, 0.3, 0.5, 0.7, 0.9, own}):
        cells = []
        for _, mine in groups:
            sure = mine & (evaluated.predictions["probability"] >= threshold)
            hit = percent(evaluated.right[sure].mean()) if sure.any() else ""
            cells += [percent(sure.sum() / mine.sum()), hit]
        rows.append({"threshold": f"{threshold:.3g}", "own": threshold == own, "cells": cells})
    return {"groups": [name.partition(" ")[0] for name, _ in groups], "rows": rows}


def _reliability(
    name: str, probability: NDArray[np.float32], before: NDArray[np.float32], right: Mask
) -> tuple[Chart, str]:
    after, raw = calibration(probability, right), calibration(before, right)
    bins = len(after.counts)
    bars = [
        ((number + 0.5) * 100 / bins, 100 * hit, f"{count:,} predictions around {sure:.0%}: {hit:.0%} right")
        for number, (count, sure, hit) in enumerate(zip(after.counts, after.confidence, after.accuracy, strict=True))
        if count
    ]
    dots = [
        (100 * sure, 100 * hit, f"before the temperature: {count:,} predictions around {sure:.0%}, {hit:.0%} right")
        for count, sure, hit in zip(raw.counts, raw.confidence, raw.accuracy, strict=True)
        if count
    ]
    chart = Chart(
        f"Reliability, {name}",
        axis("probability, %", [0, 100], low=0, high=100),
        axis("share that is right, %", [0, 100], low=0, high=100),
        [
            Series("after the temperature", "student", bars, kind="bars", width=100 / bins),
            Series("", "soft", [(0, 0, ""), (100, 100, "")], dashed=True),
            Series("before", 1, dots, kind="dots"),
        ],
    )
    words = f"Expected calibration error {percent(raw.ece)}% before the temperature, {percent(after.ece)}% after it."
    return chart, words
