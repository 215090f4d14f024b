"""Garbage collection that doesn't delay responses."""

from __future__ import annotations

import gc


def freeze_gc() -> None:
    """Have collections of garbage pass over everything that exists by now: modules, routes, the model.

    A collection of it all would stop every thread for tens of milliseconds, now and again.
    """
    gc.collect()
    gc.freeze()
