"""The demonstration: three ways to train one small student, measured on a drawing style that none of them saw."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vl2v.data import open_dataset
from vl2v.data.archives import icondg
from vl2v.data.decoding import decode
from vl2v.evaluation.metrics import Evaluation
from vl2v.io import write_text
from vl2v.runs.evaluate import evaluate
from vl2v.runs.folder import Run
from vl2v.runs.query import embed
from vl2v.runs.train import distill
from vl2v.session import Progress, silent

OURS = "adip-plus"
METHODS = ("erm", "kd", OURS)
TARGET = "outline"

# The same steps, batches and trained blocks (the upper ones) for all; the learning rates are those that source
# validation chose (docs/trials.md).
_STEPS = 240
_LR = {"erm": 3e-4, "kd": 3e-4, OURS: 1e-3}
_LAST_STAGE = {"erm": "finetune", "kd": "distill", OURS: "distill"}


# Colours that people who see red and green alike can tell apart (Okabe and Ito).
_COLOURS = ("#999999", "#E69F00", "#56B4E9", "#009E73")
_RIGHT, _WRONG = "#00664a", "#b03000"


@dataclass(frozen=True)
class Demo:
    """The finished runs by method, and their evaluations."""

    runs: dict[str, Run]
    evaluations: dict[str, Evaluation]

    def results(self) -> dict[str, dict[str, float | None]]:
        """Return mean accuracy on seen domains' validation images and on the unseen one, by model."""
        table: dict[str, dict[str, float | None]] = {}
        for method, evaluation in self.evaluations.items():
            for who in evaluation.models():
                name = method if who == "student" else who
                table[name] = {role: evaluation.mean(who, role) for role in ("seen", "unseen")}
        teacher = {name: row for name, row in table.items() if name not in METHODS}
        return teacher | {method: table[method] for method in METHODS}

    @property
    def folders(self) -> list[Path]:
        """The run folders."""
        return [run.folder for run in self.runs.values()]

    def conclusion(self, target: str) -> list[str]:
        """Return what was shown, in a few lines."""
        shares = {method: self.evaluations[method].mean(role="unseen") for method in METHODS}
        if any(share is None for share in shares.values()):
            return []
        erm, kd, ours = (100 * (share or 0) for share in shares.values())
        above = [f"{abs(lead):.1f} points {'above' if lead >= 0 else 'below'}" for lead in (ours - kd, ours - erm)]
        return [
            f"on {target}, which no student was trained on, {OURS} is {above[0]} kd and {above[1]} erm:",
            f"one seed and {_STEPS:,} steps, which is short: intervals and longer runs are in docs/findings.md",
        ]


def run_demo(out: Path, *, target: str = TARGET, progress: Progress = silent) -> Demo:
    """Train ERM, KD and adip-plus students of the tiny VLM on IconDG, one drawing style left out, and compare them.

    Everything is in `out`, including the embedding store; what is finished there isn't repeated.

    Args:
        out: a folder for the three run folders, the store and `results.json`.
        target: the style that is left out.
    """
    store, shared = out / "store", out / "shared"
    runs = {
        method: distill(
            settings(method, target), out / method, store=store, shared_cache=shared, progress=_of(method, progress)
        )
        for method in METHODS
    }
    shutil.rmtree(shared, ignore_errors=True)
    # Training is over: now the teacher may be queried about the unseen style, for its own row in the table.
    embed({**settings(OURS, target), "data": {"path": icondg()}}, store=store, progress=progress)
    again = {OURS: evaluate(runs[OURS], store=store, progress=progress)}
    evaluations = {method: again.get(method) or run.evaluation for method, run in runs.items()}
    demo = Demo(runs, {method: evaluation for method, evaluation in evaluations.items() if evaluation is not None})
    write_text(out / "results.json", json.dumps(demo.results(), indent=2))
    return demo


def settings(method: str, target: str) -> dict[str, Any]:
    """Return a demonstration run's settings."""
    stages: dict[str, Any] = {
        _LAST_STAGE[method]: {"steps": _STEPS, "lr": _LR[method], "batch_per_domain": 8, "eval_every": 60}
    }
    if method == OURS:
        stages["align"] = {"steps": 600, "batch_per_domain": 64}
    return {
        "method": method,
        "data": {"path": icondg(), "target": [target]},
        "teacher": {"spec": "tiny"},
        "student": {"name": "tf_efficientnet_lite0", "image_size": 64},
        "train": {"quick": "auto", "quick_views": 3, "head": "method" if method == OURS else "start"},
        "stages": stages,
    }


def _of(method: str, progress: Progress) -> Progress:
    return lambda task, done, total, remark: progress(f"{method}: {task}", done, total, remark)


def accuracy_bars(results: Mapping[str, Mapping[str, float | None]], path: Path) -> None:
    """Draw each model's mean accuracy on seen and unseen domains.

    Args:
        results: model -> {"seen": share, "unseen": share}.
        path: a .png file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(results)
    for number, (name, row) in enumerate(results.items()):
        shares = [100 * (row[role] or 0) for role in ("seen", "unseen")]
        bars = axes.bar(np.arange(2) + number * width, shares, width * 0.92, label=name, color=_COLOURS[number % 4])
        axes.bar_label(bars, fmt="%.0f", padding=2)
    axes.set_xticks(np.arange(2) + 0.4 - width / 2, ["domains seen in training\n(validation images)", "unseen domain"])
    axes.set_ylabel("accuracy %")
    axes.set_ylim(0, 108)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(results), loc="upper center", bbox_to_anchor=(0.5, 1.16))
    figure.savefig(path, dpi=130)


ROWS, COLUMNS = 3, 8


def prediction_grid(runs: Mapping[str, Run], domain: str, path: Path) -> None:
    """Draw images of a domain with what each student predicts, right in green and wrong ones in red.

    One image of each of `ROWS * COLUMNS` classes, the first in the dataset's order, so that nobody chose them.

    Args:
        runs: finished runs on the same data, by name.
        path: a .png file.
    """
    from matplotlib.figure import Figure

    config = next(iter(runs.values())).config.data
    dataset = open_dataset(config.path, layout=config.layout)
    images = dataset.indices(domain)
    _, first = np.unique(dataset.labels[images], return_index=True)
    chosen = images[np.sort(first)][: ROWS * COLUMNS]
    files = [dataset.read(i) for i in chosen]
    predictions = {name: [p.best for p in run.classifier.predict(files)] for name, run in runs.items()}
    figure = Figure(figsize=(1.5 * COLUMNS, 2.3 * ROWS + 0.4))
    figure.subplots_adjust(left=0.01, right=0.99, top=0.89, bottom=0.09, hspace=0.62, wspace=0.1)
    cells = figure.subplots(ROWS, COLUMNS, squeeze=False).ravel()
    for cell in cells:
        cell.axis("off")
    for cell, index, data, number in zip(cells, chosen, files, range(len(chosen)), strict=False):
        truth = dataset.classes[dataset.labels[index]]
        cell.imshow(decode(data))
        cell.set_title(truth, fontsize=9, fontweight="bold", pad=3)
        for line, (name, predicted) in enumerate(predictions.items()):
            colour = _RIGHT if predicted[number] == truth else _WRONG
            words = f"{name}: {predicted[number]}"
            cell.text(
                0.5,
                -0.06 - 0.15 * line,
                words,
                transform=cell.transAxes,
                ha="center",
                va="top",
                color=colour,
                fontsize=7.5,
            )
    figure.suptitle(f"images of the unseen domain ({domain}), with each student's prediction", fontsize=11)
    figure.savefig(path, dpi=110)
