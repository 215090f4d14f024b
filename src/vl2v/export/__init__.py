"""Export: a student as a file that needs nothing of the training side, how quick it is, and on the hub.

Called as a function, it is `vl2v.export.student.export_student`.
"""

from __future__ import annotations

from vl2v.lazy import make_callable

make_callable(__name__, "vl2v.export.student:export_student")
