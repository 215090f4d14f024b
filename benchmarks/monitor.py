"""How far traffic of each kind is from the training domains, as `vl2v monitor` would tell.

    python benchmarks/monitor.py RUN          # a finished run with an export, its pictures at hand

Each row is a thousand pictures at most: of a domain (the training domains' are those that the student learned from, not
the validation pictures that the reference was taken of), of all training domains, of one class of them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from vl2v.data import PictureError, leave_out, open_dataset
from vl2v.drift import WINDOW, drift
from vl2v.prediction import UNKNOWN
from vl2v.runs import Run
from vl2v.runtime import Exported, export_in, load


def outputs(student: Exported, files: list[bytes]) -> np.ndarray:
    views = []
    for data in files:
        try:
            views.append(student.view(data))
        except PictureError:
            continue
    return np.concatenate([student.run(np.stack(views[start : start + 64])) for start in range(0, len(views), 64)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    given = parser.parse_args()
    run = Run(given.run)
    student = load(export_in(given.run))
    config = run.config.data
    dataset = open_dataset(config.path, layout=config.layout)
    train = leave_out(dataset, config.target, fraction=config.holdout, trial_seed=config.split_seed).train
    rng = np.random.default_rng(0)
    kinds = {f"{name}, trained on": np.intersect1d(dataset.indices(name), train) for name in dataset.domains}
    kinds = {name: pictures for name, pictures in kinds.items() if len(pictures)}
    kinds |= {f"{name}, unseen": dataset.indices(name) for name in config.target}
    kinds["all training domains"] = train
    kinds |= {f"only {dataset.classes[k]}, of them": train[dataset.labels[train] == k] for k in (0, 1)}
    print("| pictures | distance | unknown % | expected % | verdict |\n" + "| --- " * 5 + "|")
    for name, pictures in kinds.items():
        for most in (50, WINDOW) if name == "all training domains" else (WINDOW,):
            rows = outputs(student, [dataset.read(int(i)) for i in rng.permutation(pictures)[:most]])
            unknown = np.mean([answer.label == UNKNOWN for answer in student.predictions(rows)])
            found = drift(rows, float(unknown), student.card["reference"])
            shares = f"{100 * found.unknown:.1f} | {100 * found.expected:.1f}"
            print(f"| {name} ({len(rows)}) | {found.distance or 0:.2f} | {shares} | {found.verdict()} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
