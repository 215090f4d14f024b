"""Benchmark: several runs under the same conditions."""

from vl2v.benchmark.demo import Demo, run_demo

__all__ = ["Demo", "run_demo"]
