"""What a projector fitted once more to a distilled backbone gives: `vl2v`'s last step, on finished runs of any method.

    python benchmarks/align_again.py bench/pacs --method adip

Takes a method's finished runs in a benchmark's folder and fits each one a projector in closed form; a linear head gives
way to the texts. Prints accuracy % on the unseen domain before and after, and the lambda. The runs stay as they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from vl2v.benchmark.results import result_of
from vl2v.benchmark.worklist import WorkList
from vl2v.data import open_dataset
from vl2v.embeddings.plan import Views
from vl2v.embeddings.store import EmbeddingStore
from vl2v.runs.datasets import open_sources
from vl2v.runs.features import Features
from vl2v.runs.folder import Run
from vl2v.runs.heads import align_again
from vl2v.runs.query import open_session
from vl2v.session import Session, silent
from vl2v.students.student import Student, new_projector
from vl2v.teachers import the_teacher
from vl2v.training.device import OneDevice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path)
    parser.add_argument("--method", default="adip")
    given = parser.parse_args()
    work = WorkList(given.bench)
    jobs = [job for job in work.shown() if job.method == given.method and work.trained(job)]
    print("| unseen | seed | as it is | aligned again | lambda |\n| --- | --- | --- | --- | --- |")
    found = []
    for job in sorted(jobs, key=lambda job: (job.target, job.seed)):
        before = 100 * result_of(work, job).accuracy
        after, lam = refitted(Run(work.folder_of(job)), work.folder / "store")
        found.append((before, after))
        print(f"| {job.target} | {job.seed} | {before:.1f} | {after:.1f} | {lam} |", flush=True)
    before, after = np.mean(found, 0)
    print(f"| mean | | {before:.1f} | {after:.1f} | |")


def refitted(run: Run, store: Path) -> tuple[float, float | None]:
    """Return accuracy % on the unseen domain with a projector fitted to the run's backbone, and the lambda."""
    config, student = run.config, run.classifier.student.eval()
    sources = open_sources(config, Session(store))
    with EmbeddingStore(store, read_only=True) as known:
        teacher = the_teacher(config.teacher)
        targets = open_session(config, known, teacher, None, sources, Views(), silent).targets()
    if student.head != "text":
        student = Student(student.backbone, new_projector(student.width, targets.texts.shape[1], 0), student.spec)
    fabric, workers = OneDevice(config.train), config.data.processes
    lam = align_again(student, sources, targets, Features(student, sources.dataset, fabric, workers, silent))
    everything = open_dataset(config.data.path, layout=config.data.layout, exclude=config.data.exclude)
    unseen = np.concatenate([everything.indices(domain) for domain in config.data.target])
    with torch.no_grad():
        z = student.project(Features(student, everything, fabric, workers, silent).of(unseen)).numpy()
    return 100 * float(((z @ targets.texts.T).argmax(1) == everything.labels[unseen]).mean()), lam


if __name__ == "__main__":
    main()
