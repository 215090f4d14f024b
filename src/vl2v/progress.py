"""How a run tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int, str], None]
"""Told (what is going on, how much is done, of how much, a few words)."""


def silent(what: str, done: int, total: int, words: str) -> None:
    """Report nothing."""
