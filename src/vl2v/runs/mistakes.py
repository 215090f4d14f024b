"""Labels that are probably wrong, found without a query: from the teacher's stored embeddings."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vl2v.config import RunConfig
from vl2v.data.dataset import DomainDataset
from vl2v.embeddings.maintain import find_teacher
from vl2v.embeddings.rows import FILE_NAME
from vl2v.embeddings.schema import image_key, text_key
from vl2v.embeddings.store import EmbeddingStore
from vl2v.embeddings.targets import text_targets
from vl2v.embeddings.views import clean_view
from vl2v.errors import DataError, StoreError
from vl2v.evaluation.mistakes import Suspect, suspects
from vl2v.io import write_text
from vl2v.runs.datasets import open_data, usable
from vl2v.session import Progress, Session, silent
from vl2v.teachers.prompts import prompts_for

HEAD = ("path", "class", "domain", "suggested", "probability", "probability_of_suggested")


@dataclass(frozen=True)
class Mistakes:
    """Images whose labels are probably wrong.

    Attributes:
        dataset: the images.
        suspects: the most suspect first; `image` and classes are indices of the dataset.
        checked: how many labelled images have an embedding.
        unknown: how many have none.
        teacher: its name.
    """

    dataset: DomainDataset
    suspects: list[Suspect]
    checked: int
    unknown: int
    teacher: str

    def rows(self) -> list[tuple[str, ...]]:
        """Return a row of `HEAD` for each suspect."""
        names, domains = self.dataset.classes, self.dataset.domains
        return [
            (
                self.dataset.paths[one.image],
                names[one.label],
                domains[self.dataset.domain_ids[one.image]],
                names[one.suggested],
                f"{one.probability:.4f}",
                f"{one.of_suggested:.4f}",
            )
            for one in self.suspects
        ]

    def write_csv(self, file: Path) -> None:
        """Write all suspects as CSV; the file can be given as `data.exclude`, once somebody has checked it."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([HEAD, *self.rows()])
        write_text(file, text.getvalue())


def find_mistakes(
    config: RunConfig, store: Path, *, teacher: str | None = None, progress: Progress = silent
) -> Mistakes:
    """Return the labels that a teacher and a linear student of its embeddings agree to be wrong; query nothing.

    Args:
        config: of a run: its images, class prompts and `teacher.fit`.
        store: the folder of the embedding store.
        teacher: its name or fingerprint; None: the store's only one.
        progress: called as files are read.

    Raises:
        DataError: fewer than two classes with labelled images.
        StoreError: no such teacher, no embeddings of these images, or none of these class prompts.
    """
    dataset, found = usable(open_data(config.data), Session(store, progress=progress))
    if not (store / FILE_NAME).is_file():
        raise StoreError(f"{store}: no embeddings in it; run `vl2v embed` first")
    sources = [name for name in dataset.labelled_domains if name not in config.data.target]
    prompts = prompts_for(dataset.classes, config.prompts, sources)
    labelled = np.flatnonzero(dataset.labels >= 0)
    if len(np.unique(dataset.labels[labelled])) < 2:
        raise DataError(f"{dataset.root}: labelled images of fewer than two classes; nothing to take for one another")
    with EmbeddingStore(store, read_only=True) as embeddings:
        record = find_teacher(embeddings, teacher).teacher
        view = clean_view(config.teacher.fit)
        keys = [image_key(found.contents[i], view) for i in labelled]
        there = embeddings.cached(record.fingerprint, keys)
        if not there.any():
            raise StoreError(f"{store}: no embedding by {record.name} of any of these images; run `vl2v embed` first")
        if not embeddings.cached(record.fingerprint, [text_key(text) for group in prompts for text in group]).all():
            raise StoreError(
                f"{store}: not all class prompts are embedded by {record.name}; give the settings of your run "
                "(--config, --set), or run `vl2v embed` with these first"
            )
        images = embeddings.get(record.fingerprint, [key for key, one in zip(keys, there, strict=True) if one])
        texts = text_targets(embeddings, record.fingerprint, prompts)
    chosen = labelled[there]
    contents = [found.contents[i] for i in chosen]
    doubted = suspects(images, texts, dataset.labels[chosen], contents)
    doubted = [one._replace(image=int(chosen[one.image])) for one in doubted]
    return Mistakes(dataset, doubted, len(chosen), int((~there).sum()), record.name)
