"""No labels at all against all labels: the same images, the same steps, an unseen domain.

    python benchmarks/no_labels.py DATA --teacher tiny --targets emoji,pixel --out FOLDER

With labels, a method trains on the source domains as they are; without, on the same domains as folders of unlabelled
images and the names of the classes (`vl2v distill --classes`). Both hold out a fifth. Prints accuracy % on all images
of the unseen domain, the zero-shot teacher's beside it. Finished runs in FOLDER are not trained again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import vl2v
from vl2v.runs.folder import Run
from vl2v.tree import assignments

ARMS = {
    "erm": True, "kd": True, "adip-plus": True,
    "pseudo-labels, no labels": False, "kd, no labels": False, "adip-plus, no labels": False,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--targets", required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="pairs")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    targets = given.targets.split(",")
    print("| |", " | ".join([*targets, "mean"]), "|")
    print("| --- |" + " ---: |" * (len(targets) + 1))
    dataset = vl2v.open_dataset(given.data)
    teachers: list[float] = []
    for arm, labelled in ARMS.items():
        found = []
        for target in targets:
            run = trained(given, dataset.domains, dataset.classes, target, arm, labelled)
            rows = vl2v.evaluate(run, given.data, domains=[target], store=given.out / "store").rows
            student, *teacher = (100 * row.metrics.accuracy for row in rows)
            found.append(student)
            teachers += teacher if arm == "adip-plus" else []
        print(f"| {arm} |", " | ".join(f"{value:.1f}" for value in [*found, np.mean(found)]), "|", flush=True)
    if len(teachers) == len(targets):
        print("| teacher, zero-shot |", " | ".join(f"{value:.1f}" for value in [*teachers, np.mean(teachers)]), "|")


def trained(
    given: argparse.Namespace, domains: list[str], classes: list[str], target: str, arm: str, labelled: bool
) -> Run:
    """Return the finished run of one arm and unseen domain."""
    method, sources = arm.split(",")[0], [domain for domain in domains if domain != target]
    data: dict[str, Any] = {"path": str(given.data), "target": [target]}
    if not labelled:
        data = {"classes": list(classes), "unlabelled": [str(given.data / domain) for domain in sources]}
    stage = "finetune" if method in ("erm", "pseudo-labels") else "distill"
    last = {"steps": given.steps, "batch_per_domain": 8, "warmup": given.steps // 10, "eval_every": given.steps // 4}
    settings: dict[str, Any] = {
        "data": {**data, "workers": 0}, "teacher": {"spec": given.teacher}, "method": method, "seed": given.seed,
        "student": {"image_size": 64}, "train": {"quick": "auto"}, "stages": {stage: last},
    }  # fmt: skip
    if method == "adip-plus":
        settings["stages"]["align"] = {"steps": 600, "batch_per_domain": 64}
    for key, value in assignments(given.pairs).items():
        settings.setdefault(key, {})
        settings[key] = {**settings[key], **value} if isinstance(value, dict) else value
    return vl2v.distill(settings, given.out / f"{target}-{arm.replace(', ', '-').replace(' ', '-')}",
                        store=given.out / "store")  # fmt: skip


if __name__ == "__main__":
    main()
