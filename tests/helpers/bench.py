"""What tests of benchmarks share: copies of a list of jobs, results made up, and damage."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from little import DOMAINS
from vl2v.benchmark.results import results
from vl2v.benchmark.worklist import Job, WorkList
from vl2v.runs.predictions import Predictions


def copied(work: WorkList, folder: Path) -> WorkList:
    """Return a copy of a benchmark, to be changed."""
    shutil.copytree(work.folder, folder / "bench")
    return WorkList(folder / "bench")


def accuracies(work: WorkList) -> dict[tuple[Any, ...], float]:
    return {(r.dataset, r.target, r.method, r.student, r.seed): r.accuracy for r in results(work)}


def of_one_seed(work: WorkList) -> dict[tuple[Any, ...], float]:
    """Return what a benchmark of a single seed finds."""
    return {key: accuracy for key, accuracy in accuracies(work).items() if key[-1] == 0}


def killed_in_finetune(what: str, done: int, total: int, words: str) -> None:
    if (what, done) == ("finetune", 2):
        raise KeyboardInterrupt


def finish(work: WorkList, job: Job, parts: Sequence[tuple[str, bool, int, float]]) -> None:
    """Write a job's result: (domain, in its 80%, how many images, share right)."""
    domain, in_split, good = (
        np.concatenate([[DOMAINS.index(name)] * count for name, _, count, _ in parts]),
        np.concatenate([[inside] * count for _, inside, count, _ in parts]),
        np.concatenate([np.arange(count) < round(count * share) for _, _, count, share in parts]),
    )
    columns = {"index": np.arange(len(good)), "domain": domain, "in_split": in_split}
    columns |= {"label": np.zeros(len(good), int), "answer": (~good).astype(int)}
    folder = work.folder_of(job)
    folder.mkdir(parents=True)
    Predictions(["a", "b"], DOMAINS, columns={name: [column] for name, column in columns.items()}).save(folder)
    (folder / "seconds.json").write_text("1")


def flip(file: Path) -> None:
    """Spoil a file as a bad disk does: its head and its length are whole."""
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
