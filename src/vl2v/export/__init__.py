"""Export: a student as a file that needs nothing of the training side, how quick it is, and on the hub.

Called as a function, it is `vl2v.export.student.export_student`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vl2v.lazy import lazily, make_callable

if TYPE_CHECKING:
    from vl2v.export.beside import keep_export
    from vl2v.export.choose import Choice, Curve, Target, TargetMissed, choose_export
    from vl2v.export.device import Device, bench_device
    from vl2v.export.hub import parcel, push
    from vl2v.export.parity import Parity
    from vl2v.export.student import FORMATS, export_student

_HOMES = {
    "Choice": "vl2v.export.choose",
    "Curve": "vl2v.export.choose",
    "Device": "vl2v.export.device",
    "FORMATS": "vl2v.export.student",
    "Parity": "vl2v.export.parity",
    "Target": "vl2v.export.choose",
    "TargetMissed": "vl2v.export.choose",
    "bench_device": "vl2v.export.device",
    "choose_export": "vl2v.export.choose",
    "export_student": "vl2v.export.student",
    "keep_export": "vl2v.export.beside",
    "parcel": "vl2v.export.hub",
    "push": "vl2v.export.hub",
}

__all__ = [
    "FORMATS",
    "Choice",
    "Curve",
    "Device",
    "Parity",
    "Target",
    "TargetMissed",
    "bench_device",
    "choose_export",
    "export_student",
    "keep_export",
    "parcel",
    "push",
]

__getattr__ = lazily(__name__, _HOMES)
make_callable(__name__, "vl2v.export.student:export_student")
