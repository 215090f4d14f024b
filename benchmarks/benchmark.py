"""What the benchmark's machinery costs and saves; ratios within one run.

    python benchmarks/benchmark.py resume      # a finished benchmark of 500 jobs, nothing to do
    python benchmarks/benchmark.py scheduler   # its own cost a job: processes of this machine, and Ray
    python benchmarks/benchmark.py sharing     # IconDG, every target, against the same commands one by one

The scheduler's cost is measured with jobs that take next to no time (zero-shot rows of a small recording), one at a
time: from the end of the 20th to the end of the 120th, less the time that the jobs themselves took. Sharing is measured
with every method of --methods, --steps steps each, in as many processes as there are processors. One by one, nothing is
shared: each `vl2v distill` has all processors, or --threads, and asks the teacher itself. --every N measures each N-th
command only, as a sample of all.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

import numpy as np
from numpy.typing import NDArray

from little import CLASSES, DOMAINS, draw, record
from vl2v.benchmark.engine import Engine, Local, Ray
from vl2v.benchmark.grid import Grid, methods_for
from vl2v.benchmark.results import results
from vl2v.benchmark.run import plan, run
from vl2v.benchmark.worklist import WorkList
from vl2v.data.archives import icondg
from vl2v.io import write_text
from vl2v.runs.folder import Run
from vl2v.runs.predictions import Predictions
from vl2v.tree import assignments, merge

IMAGES = 2000  # that a student of `resume` has predicted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["resume", "scheduler", "sharing"])
    parser.add_argument("--methods", default="lp,erm,lp-ft,kd,adip,vl2v")
    parser.add_argument("--targets", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--set", action="append", default=[], dest="pairs")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--threads", type=int, help="of each command of its own")
    parser.add_argument("--out", type=Path, help="an empty folder, to keep the benchmark in")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        {"resume": resume, "scheduler": scheduler, "sharing": sharing}[given.what](given, Path(folder))


def small(folder: Path, methods: list[str], seeds: int) -> Grid:
    """Return a grid on 108 small drawings."""
    rng = np.random.default_rng(0)
    for domain in DOMAINS:
        for shape in CLASSES:
            class_folder = folder / "shapes" / domain / shape
            class_folder.mkdir(parents=True)
            for number in range(12):
                draw(shape, domain, rng).save(class_folder / f"{number}.png")
    teacher = record(folder / "shapes", folder / "recording")
    settings: dict[str, Any] = {
        "teacher": {"spec": f"recorded:{teacher}"},
        "student": {"weights": "none", "image_size": 32},
        "data": {"workers": 0},
    }
    data = {"shapes": str(folder / "shapes")}
    return Grid(data, [], methods, ["test_efficientnet"], seeds, settings=settings, steps=2, batch=4)


def resume(given: argparse.Namespace, folder: Path) -> None:
    methods = methods_for(["all"], "recorded:")
    grid = small(folder, methods, 10)
    bench = plan(grid, folder / "bench")
    rng = np.random.default_rng(0)
    for job in bench.jobs:  # only the reading of them is timed: predictions as a student's of a dataset like PACS
        job_folder = bench.work.folder_of(job)
        job_folder.mkdir(parents=True)
        labels = rng.integers(0, len(CLASSES), IMAGES)
        wrong = rng.random(IMAGES) < 0.3
        columns: dict[str, list[NDArray[Any]]] = {
            "index": [np.arange(IMAGES)],
            "domain": [np.arange(IMAGES) % len(DOMAINS)],
            "label": [labels],
            "answer": [np.where(wrong, 0, labels)],
            "teacher": [labels],
            "probability": [rng.random(IMAGES, dtype=np.float32)],
            "in_split": [rng.random(IMAGES) < 0.8],
        }
        Predictions(list(CLASSES), list(DOMAINS), "0", columns).save(job_folder)
        write_text(job_folder / "seconds.json", "1")
    assert not bench.missing
    command = [sys.executable, "-m", "vl2v", "benchmark", "--data", f"shapes={folder / 'shapes'}"]
    command += ["--teacher", f"recorded:{folder / 'recording'}", "--methods", ",".join(grid.methods)]
    command += ["--students", "test_efficientnet", "--seeds", "10", "--steps", "2", "--batch", "4"]
    command += ["--out", str(folder / "bench"), "--set", "student.weights=none", "--set", "student.image_size=32"]
    command += ["--set", "data.workers=0"]
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done_again = subprocess.run(command, capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - start)
    assert "0 are missing" in done_again.stderr
    print(f"{len(bench.jobs)} jobs, nothing to do, table printed: {sorted(times)[1]:.2f} s (median of 3)")


def scheduler(given: argparse.Namespace, folder: Path) -> None:
    grid = small(folder, ["zero-shot"], 40)
    engines: dict[str, Engine] = {"local": Local(1), "Ray": Ray(1, {"num_cpus": 1})}
    for name, engine in engines.items():
        bench = plan(grid, folder / name)
        ended: list[float] = []

        def notify(event: dict[str, Any], ended: list[float] = ended) -> None:
            if event["event"] == "done":
                ended.append(time.perf_counter())

        run(bench, engine=engine, notify=notify)
        assert len(ended) == len(bench.jobs) == 120
        whole = (ended[-1] - ended[19]) / (len(ended) - 20)  # the first ones start the process
        once = float(np.mean([bench.work.seconds(job) for job in bench.jobs[20:]]))
        print(f"{name}: {1000 * (whole - once):.0f} ms a job on top of the {1000 * once:.0f} ms that it takes itself")


def sharing(given: argparse.Namespace, folder: Path) -> None:
    settings = merge({"teacher": {"spec": "tiny"}, "data": {"workers": 1}}, assignments(given.pairs))
    methods, data = given.methods.split(","), {"icondg": str(icondg())}
    shape = {"settings": settings, "steps": given.steps, "batch": 8, "first_seed": given.first_seed}
    grid = Grid(data, given.targets, methods, ["lite0"], given.seeds, **shape)
    start = time.perf_counter()
    bench = plan(grid, given.out or folder / "bench")
    run(bench)
    together = time.perf_counter() - start
    assert not bench.missing
    sample = bench.jobs[:: given.every]
    threads = {"OMP_NUM_THREADS": str(given.threads)} if given.threads else {}
    start = time.perf_counter()
    for job in sample:
        command = [sys.executable, "-m", "vl2v", "distill", "--config", str(bench.work.folder_of(job) / "config.toml")]
        command += ["--out", str(folder / "alone" / job.name), "--store", str(folder / "stores" / job.name)]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, **threads})
    alone = (time.perf_counter() - start) / len(sample)
    same, count = compare(bench.work, folder / "alone"), len(bench.jobs)
    print(f"{count} jobs of {given.steps} steps: {together:.0f} s together, {together / count:.1f} s a job")
    print(
        f"one by one, {len(sample)} of them: {alone:.1f} s a job; together {count * alone / together:.2f} times as fast"
    )
    print(f"largest difference of an unseen accuracy: {100 * same:.2f} points")


def compare(work: WorkList, alone: Path) -> float:
    """Return the largest difference between accuracies of the same job."""
    found = {result.folder.name: result.accuracy for result in results(work)}
    return max(abs(found[run.name] - Run(run).evaluation.mean(role="unseen")) for run in alone.iterdir())


if __name__ == "__main__":
    main()
