"""Benchmark: several runs under the same conditions; called as a function, `vl2v.benchmark.run.benchmark`."""

from __future__ import annotations

from vl2v.lazy import make_callable

make_callable(__name__, "vl2v.benchmark.run:benchmark")
