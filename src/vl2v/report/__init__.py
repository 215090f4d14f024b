"""Report: results as a page; called as a function, `vl2v.report.page.write_report`."""

from __future__ import annotations

from vl2v.lazy import make_callable

make_callable(__name__, "vl2v.report.page:write_report")
