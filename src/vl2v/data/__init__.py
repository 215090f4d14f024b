"""Data: where images come from, how they are split, decoded, augmented and audited."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vl2v.lazy import lazily

if TYPE_CHECKING:
    from vl2v.data.auditing import audit, set_aside
    from vl2v.data.dataset import leave_out
    from vl2v.data.inspection import inspect
    from vl2v.data.layouts import open_dataset
    from vl2v.data.objects import write_dataset

__all__ = ["audit", "inspect", "leave_out", "open_dataset", "set_aside", "write_dataset"]

__getattr__ = lazily(
    __name__,
    {
        "audit": "vl2v.data.auditing",
        "inspect": "vl2v.data.inspection",
        "leave_out": "vl2v.data.dataset",
        "open_dataset": "vl2v.data.layouts",
        "set_aside": "vl2v.data.auditing",
        "write_dataset": "vl2v.data.objects",
    },
)
