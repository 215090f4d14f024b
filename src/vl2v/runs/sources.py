"""The pictures a run learns from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vl2v.config import RunConfig
from vl2v.data import Audit, DomainDataset, Split, audit, leave_out, open_dataset, set_aside
from vl2v.runs.report import Report, silent


@dataclass(frozen=True)
class Sources:
    """The pictures a run learns from; the unseen domains' pictures are not among them.

    `split` and `audit` go by the indices of `dataset`.
    """

    dataset: DomainDataset
    audit: Audit
    split: Split

    def groups(self, *, unlabelled: bool) -> list[NDArray[np.int64]]:
        """Return the training pictures of each domain, the unlabelled ones as a group of their own if wanted."""
        domains = self.dataset.domain_ids[self.split.train]
        groups = [self.split.train[domains == domain] for domain in np.unique(domains)]
        return [*groups, self.split.unlabelled] if unlabelled and len(self.split.unlabelled) else groups

    @property
    def names(self) -> list[str]:
        """The source domains, in order."""
        return [self.dataset.domains[i] for i in np.unique(self.dataset.domain_ids[self.split.train])]


def open_sources(config: RunConfig, cache: Path, report: Report = silent) -> Sources:
    """Open the source domains; what can't be decoded is set aside.

    The unseen domains' files are not opened: what is in them can't change a weight.

    Raises:
        DataError: unknown or missing domains, one class only, and the like.
    """
    data = config.data
    everything = open_dataset(data.path, layout=data.layout, exclude=data.exclude, unlabelled=data.unlabelled)
    split = leave_out(everything, data.target, fraction=data.holdout, trial_seed=data.split_seed)
    sources = everything.subset(np.sort(np.concatenate([split.train, split.val, split.unlabelled])))
    found = audit(sources, cache=cache, progress=lambda done, total: report("reading pictures", done, total, ""))
    if found.problems:
        sources = set_aside(sources, found)
        found = audit(sources, cache=cache)
    return Sources(sources, found, leave_out(sources, [], fraction=data.holdout, trial_seed=data.split_seed))
