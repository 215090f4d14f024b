"""Images of results: accuracy bars, and unseen images with each student's answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from vl2v.data import decode, open_dataset
from vl2v.runs import Run

# Colours that people who see red and green alike can tell apart (Okabe and Ito).
_COLOURS = ("#999999", "#E69F00", "#56B4E9", "#009E73")
_RIGHT, _WRONG = "#00664a", "#b03000"


def accuracy_bars(results: Mapping[str, Mapping[str, float | None]], path: Path) -> None:
    """Draw each model's mean accuracy on seen and unseen domains.

    Args:
        results: model -> {"seen": share, "unseen": share}.
        path: a .png file.
    """
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(results)
    for place, (name, row) in enumerate(results.items()):
        shares = [100 * (row[role] or 0) for role in ("seen", "unseen")]
        bars = axes.bar(np.arange(2) + place * width, shares, width * 0.92, label=name, color=_COLOURS[place % 4])
        axes.bar_label(bars, fmt="%.0f", padding=2)
    axes.set_xticks(np.arange(2) + 0.4 - width / 2, ["domains seen in training\n(validation images)", "unseen domain"])
    axes.set_ylabel("accuracy %")
    axes.set_ylim(0, 108)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(results), loc="upper center", bbox_to_anchor=(0.5, 1.16))
    figure.savefig(path, dpi=130)


def answer_grid(runs: Mapping[str, Run], domain: str, path: Path, *, rows: int = 3, columns: int = 8) -> None:
    """Draw images of a domain with what each student says, right answers in green and wrong ones in red.

    One image of each of `rows * columns` classes, the first in the dataset's order, so that nobody chose them.

    Args:
        runs: finished runs on the same data, by name.
        domain: whose images.
        path: a .png file.
        rows: of the grid.
        columns: of the grid.
    """
    config = next(iter(runs.values())).config.data
    dataset = open_dataset(config.path, layout=config.layout)
    images = dataset.indices(domain)
    _, first = np.unique(dataset.labels[images], return_index=True)
    chosen = images[np.sort(first)][: rows * columns]
    files = [dataset.read(i) for i in chosen]
    answers = {name: [p.best for p in run.classifier.predict(files)] for name, run in runs.items()}
    figure = Figure(figsize=(1.5 * columns, 2.3 * rows + 0.4))
    figure.subplots_adjust(left=0.01, right=0.99, top=0.89, bottom=0.09, hspace=0.62, wspace=0.1)
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for cell in cells:
        cell.axis("off")
    for cell, index, data, place in zip(cells, chosen, files, range(len(chosen)), strict=False):
        truth = dataset.classes[dataset.labels[index]]
        cell.imshow(decode(data))
        cell.set_title(truth, fontsize=9, fontweight="bold", pad=3)
        for line, (name, said) in enumerate(answers.items()):
            colour = _RIGHT if said[place] == truth else _WRONG
            words = f"{name}: {said[place]}"
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
    figure.suptitle(f"images of the unseen domain ({domain}), and what each student says", fontsize=11)
    figure.savefig(path, dpi=110)
