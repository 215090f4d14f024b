"""How good a student gets with fewer queries: every way to choose the images, several shares, several seeds.

    python benchmarks/queries.py PACS --exclude vendor-half.csv --teacher recorded:pacs-vendor --target sketch \\
        --set prompts.articles=false

ADiP with `teacher.select` and `teacher.strategy`; images that weren't queried learn from their class's text. Finished
runs stay in --out and are not trained again. Prints accuracy % on the unseen domain (all of its images): mean and
standard error over the seeds, and writes a plot.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vl2v.runs.datasets import open_sources
from vl2v.runs.settings import resolve
from vl2v.runs.train import distill
from vl2v.session import Session
from vl2v.tree import assignments, merge

STRATEGIES = ("random", "balanced", "kcenter", "uncertainty")
SHARES = (0.01, 0.02, 0.05, 0.10, 0.25, 0.50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--exclude", type=Path)
    parser.add_argument("--teacher", default="tiny")
    parser.add_argument("--target", default="sketch")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16, help="a domain")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--set", action="append", default=[], dest="pairs")
    parser.add_argument("--out", type=Path, default=Path("runs/queries"))
    given = parser.parse_args()
    images = len(open_sources(resolve(settings(given, 0)), Session(given.out / "store")).training)
    table = {
        (name, share): [accuracy(given, images, name, share, seed) for seed in given.seeds] for name, share in cells()
    }
    print(as_markdown(table, images))
    plot(table, images, given.out / "queries.svg")


def cells() -> Iterator[tuple[str, float]]:
    """Yield (row, share): the full one first, then share by share."""
    yield "all", 1.0
    for share in SHARES:
        for strategy in STRATEGIES:
            yield strategy, share
    yield "none", 0.0


def settings(given: argparse.Namespace, seed: int, teacher: dict[str, Any] | None = None) -> dict[str, Any]:
    last = {"steps": given.steps, "lr": given.lr, "batch_per_domain": given.batch}
    tree = {
        "method": "adip",
        "seed": seed,
        "data": {"path": given.data, "target": [given.target], "split_seed": seed, "exclude": given.exclude},
        "teacher": {"spec": given.teacher, **(teacher or {})},
        "student": {"image_size": given.size},
        "stages": {
            "align": {"steps": 400, "batch_per_domain": 64, "eval_every": 100},
            "distill": {**last, "warmup": given.steps // 10, "eval_every": given.steps // 2},
        },
    }
    return merge(tree, assignments(given.pairs))


def accuracy(given: argparse.Namespace, images: int, name: str, share: float, seed: int) -> float:
    """Train one student; return its accuracy % on the unseen domain."""
    teacher: dict[str, Any] = {}
    if name == "none":
        teacher = {"select": 1, "strategy": "random"}
    elif name != "all":
        teacher = {"select": round(share * images), "strategy": name}
    folder = given.out / f"{name}-{share:g}-{seed}"
    run = distill(settings(given, seed, teacher), folder, store=given.out / "store")
    assert run.evaluation is not None
    found = 100 * (run.evaluation.mean(role="unseen") or 0)
    print(f"{folder.name}: {found:.2f}", flush=True)
    return found


def as_markdown(table: dict[tuple[str, float], list[float]], images: int) -> str:
    shares = [*SHARES, 1.0]
    lines = [
        "| accuracy %, unseen domain | "
        + " | ".join(f"{share:.0%} ({round(share * images)})" for share in shares)
        + " |",
        "| --- " * (len(shares) + 1) + "|",
    ]
    for name in dict.fromkeys(name for name, _ in table if name != "none"):
        found = (table.get((name, share)) for share in shares)
        lines.append(f"| {name} | " + " | ".join("" if cell is None else spread(cell) for cell in found) + " |")
    lines.append(f"\none image queried, texts alone otherwise: {spread(table['none', 0.0])}")
    full = np.mean(table["all", 1.0])
    best = max(np.mean(cell) for (_, share), cell in table.items() if share == 0.10)
    lines.append(f"the best at 10% of the queries has {100 * best / full:.1f}% of the accuracy with all")
    return "\n".join(lines)


def spread(scores: list[float]) -> str:
    error = np.std(scores, ddof=1) / len(scores) ** 0.5 if len(scores) > 1 else float("nan")
    return f"{np.mean(scores):.1f} ± {error:.1f}"


def plot(table: dict[tuple[str, float], list[float]], images: int, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for strategy in STRATEGIES:
        counts = [round(share * images) for share in (*SHARES, 1.0)]
        found = [table[strategy, share] for share in SHARES] + [table["all", 1.0]]
        errors = [np.std(cell, ddof=1) / len(cell) ** 0.5 if len(cell) > 1 else 0 for cell in found]
        axes.errorbar(counts, [np.mean(cell) for cell in found], errors, marker="o", capsize=3, label=strategy)
    axes.axhline(float(np.mean(table["none", 0.0])), color="gray", linestyle=":", label="texts alone")
    axes.set(xscale="log", xlabel="images queried", ylabel="accuracy on the unseen domain, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
