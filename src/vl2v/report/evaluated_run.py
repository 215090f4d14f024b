"""A finished run with its images at hand: what was answered about each of them, by the student and by its teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vl2v.data import Audit, DomainDataset, decode
from vl2v.embeddings import EmbeddingStore, clean_view, image_key
from vl2v.embeddings.store import FILE_NAME
from vl2v.errors import RunError
from vl2v.evaluation import Evaluation, Row, measure
from vl2v.report.thumbnails import thumbnail
from vl2v.runs import Run
from vl2v.runs.datasets import open_data, usable
from vl2v.runs.evaluate import TEACHER, evaluate_images, zero_shot_logits
from vl2v.runs.predictions import Predictions, content
from vl2v.session import Session
from vl2v.students import Classifier

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class EvaluatedRun:
    """A run and what it answered; arrays are [n], over the images that were measured.

    Attributes:
        run: the run.
        store: the folder of the teacher's answers.
        dataset: all images of the run's data.
        audit: of them.
        evaluation: by domain, the teacher's rows where all of its answers are known.
        kept: the answers.
        teacher: the teacher's answer, -1 where it isn't known.
    """

    run: Run
    store: Path
    dataset: DomainDataset
    audit: Audit
    evaluation: Evaluation
    kept: Predictions
    teacher: Indices

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
        return ~np.isin(np.array(self.kept.domains)[self.kept["domain"]], self.sources)

    @cached_property
    def focus(self) -> NDArray[np.bool_]:
        """Which images to look at closely: those of unseen domains, or all if there are none."""
        return self.unseen if self.unseen.any() else ~self.unseen

    @property
    def name(self) -> str:
        """The run folder's name."""
        return self.run.folder.resolve().name

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """Whether the student's answer about each is right."""
        return self.kept.right

    def thumbnail(self, place: int) -> str:
        """Return a measured image, small, as a data URI."""
        return thumbnail(decode(self.dataset.read(int(self.kept["index"][place]))))

    def teacher_vectors(self, places: Indices) -> tuple[Indices, NDArray[np.float32]]:
        """Return which of some measured images the teacher's embedding is known of, and those [m, d]."""
        about = self.classifier.about["teacher"]
        if about is None or not (self.store / FILE_NAME).is_file():
            return places[:0], np.zeros((0, 0), np.float32)
        view = clean_view(about.get("fit", "own"))
        keys = [image_key(self.audit.contents[i], view) for i in self.kept["index"][places]]
        with EmbeddingStore(self.store, read_only=True) as answers:
            known = answers.known(about["fingerprint"], keys)
            there = [key for key, one in zip(keys, known, strict=True) if one]
            if not there:
                return places[:0], np.zeros((0, 0), np.float32)
            return places[known], answers.get(about["fingerprint"], there)


def look(run: Run, session: Session) -> EvaluatedRun:
    """Return a run with its images; evaluated anew where predictions weren't saved, or images or classes differ.

    Raises:
        RunError: the run isn't finished.
        DataError: the images aren't where they were.
    """
    classifier = run.classifier
    dataset, audit = usable(open_data(run.config.data), session)
    kept, evaluation = _kept(run, dataset, audit), run.evaluation
    if kept is None or evaluation is None:
        evaluation, kept = evaluate_images(run, session=session)
        since = "The run's saved evaluation isn't of these images and classes: everything here was measured anew."
        evaluation = replace(evaluation, notes=(*evaluation.notes, since))
    teacher, rows = kept["teacher"].copy(), list(evaluation.rows)
    measured = {row.domain for row in evaluation.of(TEACHER)}
    for row in evaluation.of():
        mine = kept.in_domain(row.domain)
        if (teacher[mine] >= 0).all():
            continue
        logits = zero_shot_logits(classifier, audit, kept["index"][mine], session.store)
        if logits is not None:  # it was asked after the run had been measured
            teacher[mine] = logits.argmax(-1).numpy()
            if row.domain not in measured:
                labels = torch.from_numpy(kept["label"][mine])
                rows.append(Row(TEACHER, row.domain, row.role, measure(logits, labels)))
    return EvaluatedRun(run, session.store, dataset, audit, replace(evaluation, rows=tuple(rows)), kept, teacher)


def _kept(run: Run, dataset: DomainDataset, found: Audit) -> Predictions | None:
    """Return the answers that the run kept, if they are about these very images and of its classes of now."""
    try:
        kept = Predictions.load(run.folder)
    except RunError:
        return None
    return kept if kept.content == content(dataset, found) and kept.classes == run.classifier.classes else None
