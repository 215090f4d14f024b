"""Whether P should stay frozen in Distill: ADiP's finished runs, and the same with P trained along.

    python benchmarks/free_projector.py bench/icondg --seeds 5

Takes the runs of `adip` in a benchmark's folder, of some seeds, and trains each again with a Distill that trains P
as well; these stay in --out. Prints accuracy % on the unseen domain and on the sources' validation images.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

import vl2v
from vl2v.benchmark.worklist import WorkList
from vl2v.methods import METHODS, Stage
from vl2v.methods.adip import Adip
from vl2v.runs.folder import Run


class Free(Adip):
    """ADiP whose Distill trains the projector, too."""

    name = "adip"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Align as it is, Distill with everything."""
        align, distill = super().stages
        return align, replace(distill, trains="all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/free-projector"))
    given = parser.parse_args()
    work = WorkList(given.bench)
    jobs = [job for job in work.shown() if job.method == "adip" and job.seed in given.seeds and work.trained(job)]
    METHODS["adip"] = Free
    print("| unseen | seed | P frozen: unseen | seen | P free: unseen | seen |\n| --- | --- | --- | --- | --- | --- |")
    found, shared = [], {"store": work.folder / "store", "shelf": work.folder / "shelf"}
    for job in sorted(jobs, key=lambda job: (job.target, job.seed)):
        runs = Run(work.folder_of(job)), vl2v.distill(job.settings, given.out / job.name, **shared)
        row = [100 * run.evaluation.mean(role=role) for run in runs for role in ("unseen", "seen")]
        found.append(row)
        print(f"| {job.target} | {job.seed} | {' | '.join(f'{number:.1f}' for number in row)} |", flush=True)
    print(f"| mean | | {' | '.join(f'{number:.1f}' for number in np.mean(found, 0))} |")


if __name__ == "__main__":
    main()
