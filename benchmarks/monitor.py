"""How often `vl2v monitor` raises an alarm: on other mixes of classes (it shouldn't) and on other images (it should).

    python benchmarks/monitor.py RUN [--other FOLDER]      # a finished run with an export, its images at hand

In each draw the validation images are halved at random: what an export has of the training domains is taken of some of
one half, and live traffic is of the other. --other: a folder of images of another kind, such as photos.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from vl2v.data import leave_out, open_dataset
from vl2v.data.augment import evaluation_view
from vl2v.data.decoding import decode
from vl2v.deploy.drift import FEWEST, WINDOW, drift, reference
from vl2v.deploy.runtime import Exported, load
from vl2v.evaluation.compare import wilson
from vl2v.names import UNKNOWN
from vl2v.runs.folder import Run

Change = Callable[[Image.Image], Image.Image]


def small(image: Image.Image) -> Image.Image:
    """Return an image at two fifths of its size on white."""
    width, height = image.size
    paper = Image.new("RGB", image.size, "white")
    paper.paste(image.resize((max(1, width * 2 // 5), max(1, height * 2 // 5))), (width * 3 // 10, height * 3 // 10))
    return paper


CHANGES: dict[str, Change] = {
    "rotated": lambda image: image.rotate(90, expand=True),
    "inverted": ImageOps.invert,
    "small": small,
}


class Outputs(NamedTuple):
    """What a student gives for n images: rows [n, d], best classes, their probabilities, whether "unknown"."""

    rows: np.ndarray
    best: np.ndarray
    sure: np.ndarray
    unknown: np.ndarray

    def of(self, rows: np.ndarray) -> Outputs:
        return Outputs(*(values[rows] for values in self))


def outputs(student: Exported, images: list[Image.Image]) -> Outputs:
    views = np.stack([evaluation_view(image, student.card["image_size"]) for image in images])
    rows = np.concatenate([student.run(views[start : start + 64]) for start in range(0, len(views), 64)])
    found = student.predictions(rows)
    words = [
        np.array(values) for values in zip(*((p.best, p.probability, p.label == UNKNOWN) for p in found), strict=True)
    ]
    return Outputs(rows, *words)


def mixes(rng: np.random.Generator, labels: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield which of some images come: every one, and other mixes of their classes."""
    counts = np.bincount(labels)
    yield "as in training", np.arange(len(labels))
    yield "the five most frequent classes", np.flatnonzero(np.isin(labels, np.argsort(-counts, kind="stable")[:5]))
    yield "five classes by lot", np.flatnonzero(np.isin(labels, rng.choice(np.flatnonzero(counts), 5, replace=False)))
    shares = rng.gamma(0.3, size=len(counts))[labels] + 1e-9
    yield "re-weighted classes", rng.choice(len(labels), len(labels) // 3, replace=False, p=shares / shares.sum())
    yield "a single class", np.flatnonzero(labels == rng.choice(np.argsort(-counts, kind="stable")[:10]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--exports", type=Path, nargs="*", help="files; by default student.onnx of the run")
    parser.add_argument("--other", type=Path)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--references", type=int, nargs="*", default=[50, 100, 200, 300])
    given = parser.parse_args()
    config = Run(given.run).config.data
    dataset = open_dataset(config.path, layout=config.layout)
    val = leave_out(dataset, config.target, fraction=config.holdout, trial_seed=config.split_seed).val
    images = [decode(dataset.read(int(i))) for i in val]
    sets = {"": images} | {name: [change(image) for image in images] for name, change in CHANGES.items()}
    if given.other:
        files = sorted(file for file in given.other.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
        chosen = np.random.default_rng(0).permutation(len(files))[: len(val)]
        sets["other images"] = [decode(files[i].read_bytes()) for i in chosen]
    print("| form | situation | " + " | ".join(f"of {size}" for size in given.references) + " |")
    print("| --- " * (2 + len(given.references)) + "|")
    for file in given.exports or [given.run / "student.onnx"]:
        student = load(file)
        found = {name: outputs(student, each) for name, each in sets.items()}
        rates(student, found, dataset.labels[val], dataset.domain_ids[val], given.references, given.draws)


def rates(
    student: Exported, found: dict[str, Outputs], labels: np.ndarray, domains: np.ndarray, sizes: list[int], draws: int
) -> None:
    """Print the share of draws with an alarm, by situation and by size of the reference."""
    alarms: dict[str, dict[int, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for size in sizes:
        for draw in range(draws):
            rng = np.random.default_rng([draw, size])
            order = rng.permutation(len(labels))
            size_here = min(size, len(order) // 2)
            known, live = order[:size_here], order[len(order) // 2 :]
            parts = {str(d): found[""].of(known[domains[known] == d]) for d in np.unique(domains[known])}
            card = reference(
                {name: (part.rows, part.best, part.sure) for name, part in parts.items()},
                np.concatenate([part.unknown for part in parts.values()]),
            )
            traffic = {f"no drift: {name}": found[""].of(live[some]) for name, some in mixes(rng, labels[live])}
            traffic |= {f"drift: {name}": each.of(live) for name, each in found.items() if name}
            for name, each in traffic.items():
                if len(each.rows) < FEWEST:  # the same again, so that so few are measured at all
                    each = each.of(np.resize(np.arange(len(each.rows)), FEWEST))
                each = each.of(np.arange(len(each.rows))[:WINDOW])
                measured = drift(each.rows, each.best.tolist(), each.sure, float(each.unknown.mean()), card)
                alarms[name][size].append(measured.alarm)
    for name, by_size in alarms.items():
        cells = []
        for raised in by_size.values():
            low, high = wilson(sum(raised), len(raised))
            cells.append(f"{100 * np.mean(raised):.0f}% ({100 * low:.0f} to {100 * high:.0f})")
        print(f"| {student.card['form']} | {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
