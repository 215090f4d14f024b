"""What all parts of one call share: the embedding store's folder, the budget, and who is shown the progress."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from vl2v.progress import Progress, silent


def default_store() -> Path:
    """Return the folder of the store that all runs of a person share."""
    return Path(platformdirs.user_data_dir("vl2v", appauthor=False)) / "store"


@dataclass(frozen=True)
class Session:
    """Made once a call and passed to whatever it takes.

    Attributes:
        store: the folder of the embedding store.
        budget: lifetime spending limit of this store for a paid teacher, in the vendor's currency.
        progress: called with the progress.
    """

    store: Path = field(default_factory=default_store)
    budget: float = 0
    progress: Progress = silent

    @classmethod
    def of(cls, store: Path | str | None = None, budget: float = 0, progress: Progress = silent) -> Session:
        """Return a session with the shared store unless another is named."""
        return cls(Path(store) if store else default_store(), budget, progress)
