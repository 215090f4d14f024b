"""What a report takes: seconds and megabytes of `vl2v report` on a finished run.

    python benchmarks/report.py RUN          # its images at hand

Has the report written three times, each time by a process of its own. The processor's seconds don't depend on what
else the machine does.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from vl2v.runs.folder import Run
from vl2v.session import default_store

TURNS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--store", type=Path, default=default_store())
    given = parser.parse_args()
    run = Run(given.run)
    wall, busy = zip(*(written(given.run, given.store) for _ in range(TURNS)), strict=True)
    images = sum(row.metrics.images for row in run.evaluation.of()) if run.evaluation else 0
    size = (given.run / "report.html").stat().st_size / 1e6
    print("| images measured | px | seconds | processor's seconds | MB |\n| --- | --- | --- | --- | --- |")
    pixels = run.classifier.student.spec.image_size
    print(f"| {images:,} | {pixels} | {statistics.median(wall):.1f} | {statistics.median(busy):.1f} | {size:.2f} |")


def written(run: Path, store: Path) -> tuple[float, float]:
    """Return seconds on the clock and of the processor that a report takes, from a new process to its end."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "vl2v", "report", str(run), "--store", str(store)]
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, busy


if __name__ == "__main__":
    main()
