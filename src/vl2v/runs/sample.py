"""A small labelled sample, balanced over classes and domains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vl2v.config import RunConfig
from vl2v.data.auditing import Audit, audit
from vl2v.data.dataset import DomainDataset
from vl2v.embeddings.select import random_order
from vl2v.errors import DataError
from vl2v.evaluation.ridge import held_out
from vl2v.runs.datasets import audit_cache, open_data
from vl2v.session import Session

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """Labelled images, readable and no two alike, in the order drawn: a beginning of it is a sample, too."""

    dataset: DomainDataset
    audit: Audit

    @property
    def domains(self) -> list[str]:
        """The domains that it has images of."""
        return self.dataset.labelled_domains

    @property
    def groups(self) -> Indices:
        """What probes leave out in turn [n]: domains; where there is one only, every fifth image."""
        return held_out(self.dataset.domain_ids)

    def of(self, indices: Indices) -> Sample:
        """Return the sample of some of its images."""
        return Sample(self.dataset.subset(indices), self.audit.subset(indices))


def draw_sample(config: RunConfig, count: int, session: Session) -> Sample:
    """Return so many labelled images, balanced over classes and domains; unreadable ones and copies are skipped.

    Raises:
        DataError: unknown domains, no labelled images, only one class.
    """
    dataset = open_data(config.data)
    unseen = [dataset.domain_index(name) for name in config.data.target]
    labelled = np.flatnonzero((dataset.labels >= 0) & ~np.isin(dataset.domain_ids, unseen))
    if len(np.unique(dataset.labels[labelled])) < 2:
        raise DataError(f"{dataset.root}: a teacher is checked on labelled images of two classes or more; none such")
    order = labelled[_order(dataset.labels[labelled], dataset.domain_ids[labelled], config.seed)]
    chosen: dict[bytes, int] = {}  # content -> image
    while len(chosen) < count and len(order):
        evaluated, order = order[: count - len(chosen)], order[count - len(chosen) :]
        found = audit(dataset.subset(evaluated), cache=audit_cache(session.store), progress=session.progress)
        for index, image in enumerate(evaluated):
            if index not in found.problems:
                chosen.setdefault(found.sha256[index], int(image))
    if not chosen:
        raise DataError(f"{dataset.root}: no labelled image can be read; `vl2v data inspect` says why")
    return Sample(dataset.subset(list(chosen.values())), Audit(tuple(chosen), {}))


def _order(labels: Indices, domains: Indices, seed: int) -> Indices:
    """Return an order whose every beginning has about as many images of each class, and of each domain."""
    order = random_order(len(labels), seed)
    labels, domains = labels[order], domains[order]
    count = domains.max() + 1
    first = np.lexsort(((labels + domains) % count, _turn(labels * count + domains)))  # classes begin elsewhere
    return order[first][np.argsort(_turn(labels[first]), kind="stable")]


def _turn(keys: Indices) -> Indices:
    """Return for each key how many like it come before."""
    order = np.argsort(keys, kind="stable")
    begins = np.append(True, np.diff(keys[order]) != 0)
    indices = np.arange(len(keys))
    turn = np.empty_like(indices)
    turn[order] = indices - np.maximum.accumulate(np.where(begins, indices, 0))
    return turn
