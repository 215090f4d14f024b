"""How everything that takes a while says how far it is: one callback, of one shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Progress = Callable[[str, int, int, str], None]
"""Called with (what is being done, how much of it is done, of how much (0: unknown), a remark or "")."""


def silent(task: str, done: int, total: int, remark: str) -> None:
    """Show nothing."""


def in_notebook() -> Progress:
    """Return progress that is shown as bars below a notebook's cell.

    Examples:
        >>> import vl2v
        >>> from vl2v.progress import in_notebook
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
