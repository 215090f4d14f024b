"""Students on domains that they never saw: every method, the same tries for each, several seeds.

    python benchmarks/generalise.py icondg --teacher tiny
    python benchmarks/generalise.py PACS --exclude vendor-half.csv --teacher recorded:pacs-vendor \\
        --targets sketch photo --size 128 --set prompts.articles=false

For each target and method the learning rate of the last stage is chosen with seed 0, the same number of tries for each,
by accuracy on the source domains' validation images; the other seeds use it. With --search, it is chosen on those
targets only, by the mean, and all others use it. Finished runs stay in --out and are not trained again. Prints
unseen-domain accuracy (all images of the target): mean and standard error over the seeds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vl2v.data.archives import icondg
from vl2v.runs.evaluate import evaluate
from vl2v.runs.folder import Run
from vl2v.runs.query import embed
from vl2v.runs.train import distill
from vl2v.tree import assignments, merge

LAST = {"erm": "finetune", "lp": "probe", "lp-ft": "finetune", "kd": "distill", "adip": "distill"}
RATES = {"erm": (1e-4, 3e-4, 1e-3), "kd": (1e-4, 3e-4, 1e-3), "adip": (3e-4, 1e-3, 3e-3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a dataset, or icondg")
    parser.add_argument("--exclude", type=Path)
    parser.add_argument("--teacher", default="tiny")
    parser.add_argument("--targets", nargs="*", help="default: every domain")
    parser.add_argument("--search", nargs="*", default=[], metavar="TARGET")
    parser.add_argument("--methods", nargs="*", default=list(RATES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--batch", type=int, default=16, help="a domain")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--set", action="append", default=[], dest="pairs")
    parser.add_argument("--out", type=Path, default=Path("runs/generalise"))
    given = parser.parse_args()
    print(table(given, rows(given)))


def rows(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield one row a target, method and seed."""
    from vl2v.data import open_dataset

    data = icondg() if given.data == "icondg" else Path(given.data)
    targets = given.targets or open_dataset(data).domains
    chosen = {method: best_rate(given, data, given.search, method) for method in given.methods if given.search}
    for target in targets:
        for method in given.methods:
            best = chosen[method] if given.search else best_rate(given, data, [target], method)
            for seed in range(given.seeds):
                yield {**one(given, data, target, method, seed, best), "rate": best}


def best_rate(given: argparse.Namespace, data: Path, targets: list[str], method: str) -> float:
    """Return the learning rate with the best mean accuracy on source validation images, seed 0."""
    scores = {
        rate: np.mean([one(given, data, target, method, 0, rate)["validation"] for target in targets])
        for rate in RATES[method]
    }
    return max(scores, key=lambda rate: scores[rate])


def one(given: argparse.Namespace, data: Path, target: str, method: str, seed: int, rate: float) -> dict[str, Any]:
    """Train and measure one student; return its figures."""
    last = {"steps": given.steps, "lr": rate, "batch_per_domain": given.batch, "warmup": given.steps // 10}
    stages: dict[str, Any] = {LAST[method]: {**last, "eval_every": given.steps // 4}}
    if method == "adip":
        stages["align"] = {"steps": 600, "batch_per_domain": 64}
    tree = {
        "method": method,
        "seed": seed,
        "data": {"path": data, "target": [target], "split_seed": seed},
        "teacher": {"spec": given.teacher},
        "student": {"image_size": given.size},
        "stages": stages,
    }
    if given.exclude:
        tree["data"]["exclude"] = given.exclude
    tree = merge(tree, assignments(given.pairs))
    folder = given.out / f"{target}-{method}-{rate:g}-{seed}"
    start = time.perf_counter()
    fresh = not (folder / "evaluation.json").exists()
    run = distill(tree, folder, store=given.out / "store")
    if fresh:
        (folder / "seconds.json").write_text(json.dumps(time.perf_counter() - start))
    return {"target": target, "method": method, "seed": seed, **figures(run)}


def figures(run: Run) -> dict[str, Any]:
    """Return accuracy % on the unseen domain, on the seen ones' validation images, and the seconds that it took."""
    evaluation = run.evaluation
    assert evaluation is not None
    seconds = json.loads((run.folder / "seconds.json").read_text())
    found = {
        "unseen": 100 * (evaluation.mean(role="unseen") or 0),
        "seen": 100 * (evaluation.mean(role="seen") or 0),
        "validation": 100 * run.classifier.about["validation_accuracy"],
        "seconds": seconds,
    }
    print(f"{run.folder.name}: {json.dumps({k: round(v, 2) for k, v in found.items()})}", flush=True)
    return found


def teacher_row(given: argparse.Namespace, targets: list[str]) -> dict[str, float]:
    """Return the zero-shot teacher's accuracy % on each target; it is queried about them only now."""
    found = {}
    for target in targets:
        folder = next(given.out.glob(f"{target}-adip-*"))
        run = Run(folder)
        tree = run.config.model_dump(by_alias=True)
        embed({**tree, "data": {**tree["data"], "target": []}}, store=given.out / "store")
        row = evaluate(run, store=given.out / "store").of("teacher, zero-shot", "unseen")
        found[target] = 100 * row[0].metrics.accuracy
    return found


def table(given: argparse.Namespace, found: Iterator[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    results = list(found)
    targets = list(dict.fromkeys(row["target"] for row in results))
    lines = [
        f"| unseen domain, accuracy % | {' | '.join(targets)} | mean | seen | s a run |",
        "| --- " * (len(targets) + 4) + "|",
    ]
    if "adip" in given.methods:
        zero = teacher_row(given, targets)
        cells = " | ".join(f"{zero[target]:.1f}" for target in targets)
        lines.append(f"| teacher, zero-shot | {cells} | {np.mean(list(zero.values())):.1f} | | |")
    for method in given.methods:
        mine = [row for row in results if row["method"] == method]
        cells = []
        for target in targets:
            scores = [row["unseen"] for row in mine if row["target"] == target]
            rate = next(row["rate"] for row in mine if row["target"] == target)
            cells.append(f"{spread(scores)} ({rate:g})")
        by_seed = [np.mean([row["unseen"] for row in mine if row["seed"] == seed]) for seed in range(given.seeds)]
        seen = np.mean([row["seen"] for row in mine])
        seconds = np.median([row["seconds"] for row in mine])
        lines.append(f"| {method} | {' | '.join(cells)} | {spread(by_seed)} | {seen:.1f} | {seconds:.0f} |")
    return "\n".join(lines)


def spread(scores: list[Any]) -> str:
    """Return mean and standard error."""
    error = np.std(scores, ddof=1) / len(scores) ** 0.5 if len(scores) > 1 else float("nan")
    return f"{np.mean(scores):.1f} ± {error:.1f}"


if __name__ == "__main__":
    main()
