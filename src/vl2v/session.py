"""What all parts of one call share: the embedding store's folder, the budget, and who is shown the progress."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

Progress = Callable[[str, int, int, str], None]
"""Called with (what is being done, how much of it is done, of how much (0: unknown), a remark or "")."""


def silent(task: str, done: int, total: int, remark: str) -> None:
    """Show nothing."""


def in_notebook() -> Progress:
    """Return progress that is shown as bars below a notebook's cell.

    Examples:
        >>> import vl2v
        >>> from vl2v.session import in_notebook
        >>> run = vl2v.distill(data="images", method="erm", out="runs/n", progress=in_notebook())  # doctest: +SKIP
    """
    import time
    from html import escape
    from importlib import import_module

    ipython: Any = import_module("IPython.display")
    bars: dict[str, str] = {}
    shown = ipython.display(ipython.HTML(""), display_id=True)
    last = 0.0

    def progress(task: str, done: int, total: int, remark: str) -> None:
        nonlocal last
        bar = f"<progress value='{done}' max='{total}'></progress>" if total else ""
        bars[task] = f"<tr><td>{escape(task)}</td><td>{bar}</td><td>{done:,}</td><td>{escape(remark)}</td></tr>"
        if done == total or time.monotonic() - last > 0.2:  # seconds
            last = time.monotonic()
            shown.update(ipython.HTML(f"<table>{''.join(bars.values())}</table>"))

    return progress


def derive(seed: int, *purpose: object) -> int:
    """Return a 63-bit seed for one purpose, for example `derive(0, "augment", epoch, image)`."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def default_store() -> Path:
    """Return the folder of the store that all runs of a person share."""
    return Path(platformdirs.user_data_dir("vl2v", appauthor=False)) / "store"


@dataclass(frozen=True)
class Session:
    """Made once a call and passed to whatever it takes.

    Attributes:
        store: the folder of the embedding store.
        budget: lifetime spending limit of this store for a paid teacher, in the vendor's currency.
    """

    store: Path = field(default_factory=default_store)
    budget: float = 0
    progress: Progress = silent

    @classmethod
    def of(cls, store: Path | str | None = None, budget: float = 0, progress: Progress = silent) -> Session:
        """Return a session with the shared store unless another is named."""
        return cls(Path(store) if store else default_store(), budget, progress)
