"""How everything that takes a while says how far it is: one callback, of one shape."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int, str], None]
"""Called with (what is being done, how much of it is done, of how much (0: unknown), a remark or "")."""


def silent(task: str, done: int, total: int, remark: str) -> None:
    """Show nothing."""
