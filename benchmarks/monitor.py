"""How far traffic of each kind is from the training domains, as `vl2v monitor` would tell.

    python benchmarks/monitor.py RUN          # a finished run with an export, its pictures at hand

What is kept of the training domains is taken of one half of their validation pictures here; live traffic is a thousand
pictures at most of the other half (of each domain, of all, of one class), or of the unseen domain.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from vl2v.data import PictureError, leave_out, open_dataset
from vl2v.drift import WINDOW, drift, reference
from vl2v.prediction import UNKNOWN
from vl2v.runs import Run
from vl2v.runtime import Exported, exports_in, load


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
    student = load(exports_in(given.run)[0])
    config = run.config.data
    dataset = open_dataset(config.path, layout=config.layout)
    val = leave_out(dataset, config.target, fraction=config.holdout, trial_seed=config.split_seed).val
    rng = np.random.default_rng(0)
    val = rng.permutation(val)
    known, live = val[: len(val) // 2], val[len(val) // 2 :]

    def looked(pictures: np.ndarray) -> tuple[np.ndarray, list[str], float]:
        rows = outputs(student, [dataset.read(int(i)) for i in pictures])
        answers = student.predictions(rows)
        return rows, [each.best for each in answers], sum(each.label == UNKNOWN for each in answers) / len(answers)

    trained = [name for name in dataset.domains if name not in config.target]
    sources = {name: looked(np.intersect1d(dataset.indices(name), known)) for name in trained}
    unknown = np.mean([share for _, _, share in sources.values()])
    kept = reference({name: (rows, best) for name, (rows, best, _) in sources.items()}, float(unknown))
    kinds = {name: np.intersect1d(dataset.indices(name), live) for name in trained}
    kinds["all training domains"] = live
    kinds |= {f"of them, only {name}": live[dataset.labels[live] == k] for k, name in enumerate(dataset.classes)}
    kinds |= {f"{name}, unseen": dataset.indices(name) for name in config.target}
    print("| pictures | distance | unknown % | expected % | verdict |\n" + "| --- " * 5 + "|")
    for name, pictures in kinds.items():
        rows, best, share = looked(rng.permutation(pictures)[:WINDOW])
        found = drift(rows, best, share, kept)
        distance = "" if found.distance is None else f"{found.distance:.2f}"
        shares = f"{100 * found.unknown:.1f} | {100 * found.expected:.1f}"
        print(f"| {name} ({len(rows)}) | {distance} | {shares} | {found.verdict()} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
