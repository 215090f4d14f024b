"""What fitting the projector once more gives finished students: `vl2v`'s last step, on other methods' runs.

    python benchmarks/align_again.py bench/pacs --method adip

Takes the finished runs of a method with a text classifier in a benchmark's folder, fits each one's
projector in closed form to its distilled backbone, and prints accuracy % on the unseen domain before and after, and the
lambda. The runs stay as they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from vl2v.benchmark.jobs import WorkList
from vl2v.data import open_dataset
from vl2v.embeddings import EmbeddingStore, Views
from vl2v.runs import Run, silent, teaching
from vl2v.runs.asking import asking_about
from vl2v.runs.features import Features
from vl2v.runs.share import align_again
from vl2v.runs.sources import open_sources
from vl2v.students import Student
from vl2v.training import new_fabric


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
        before, after, share = refitted(Run(work.place(job)), work.folder / "store")
        found.append((before, after))
        print(f"| {job.target} | {job.seed} | {before:.1f} | {after:.1f} | {share:g} |", flush=True)
    before, after = np.mean(found, 0)
    print(f"| mean | | {before:.2f} | {after:.2f} | |")


def refitted(run: Run, store: Path) -> tuple[float, float, float]:
    """Return accuracy % on the unseen domain before and after the projector is fitted once more, and the lambda."""
    config = run.config
    sources = open_sources(config, store / "audit.sqlite")
    with EmbeddingStore(store, read_only=True) as answers_of:
        teacher = teaching.the_teacher(config.teacher)
        answers = asking_about(config, answers_of, teacher, None, sources, Views(), silent).answers()
    everything = open_dataset(config.data.path, layout=config.data.layout, exclude=config.data.exclude)
    unseen = np.concatenate([everything.indices(domain) for domain in config.data.target])
    student, fabric = run.classifier.student.eval(), new_fabric(config.train)
    there = Features(student, everything, fabric, config.data.workers, silent).of(unseen)
    before = accuracy(student, there, answers.texts, everything.labels[unseen])
    share = align_again(
        student, sources, answers, Features(student, sources.dataset, fabric, config.data.workers, silent)
    )
    return before, accuracy(student, there, answers.texts, everything.labels[unseen]), share or float("nan")


@torch.no_grad()
def accuracy(student: Student, features: torch.Tensor, texts: np.ndarray, labels: np.ndarray) -> float:
    """Return accuracy % of the text classifier."""
    return 100 * float(((student.project(features).numpy() @ texts.T).argmax(1) == labels).mean())


if __name__ == "__main__":
    main()
