"""What trials of one more idea on top of `adip-plus` share: the same seed, steps and images with and without it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import vl2v


def compare(about: str | None, arms: Mapping[str, Callable[[argparse.Namespace, str], dict[str, Any]]]) -> None:
    """Print accuracy % on all images of each unseen domain; an arm gives the settings that it adds for a domain."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--targets", required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    targets = given.targets.split(",")
    print("| |", " | ".join([*targets, "mean"]), "|\n| --- |" + " ---: |" * (len(targets) + 1))
    for name, added in {"adip-plus": lambda given, target: {}, **arms}.items():
        found = []
        for target in targets:
            distill = {"steps": given.steps, "batch_per_domain": 8, "warmup": given.steps // 10}
            settings: dict[str, Any] = {
                "method": "adip-plus", "image_size": 64, "quick": "auto", "seed": given.seed, "data.workers": 0,
                "stages": {"align": {"steps": 600, "batch_per_domain": 64},
                           "distill": {**distill, "eval_every": given.steps // 4}},
            }  # fmt: skip
            out = given.out / f"{target}-{name.replace(' ', '-')}"
            run = vl2v.distill(data=given.data, teacher=given.teacher, target=target, out=out,
                               store=given.out / "store", **{**settings, **added(given, target)})  # fmt: skip
            row = next(row for row in run.evaluation.of("student") if row.domain == target)
            found.append(100 * row.metrics.accuracy)
        print(f"| {name} |", " | ".join(f"{value:.1f}" for value in [*found, np.mean(found)]), "|", flush=True)
