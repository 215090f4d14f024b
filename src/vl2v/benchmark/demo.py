"""The demonstration: three ways to train one small student, measured on a drawing style that none of them saw."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vl2v.data.samples import icondg
from vl2v.evaluation import Evaluation
from vl2v.io import write_text
from vl2v.progress import Progress, silent
from vl2v.runs import Run, distill, embed
from vl2v.runs.evaluate import evaluate

METHODS = ("erm", "kd", "adip")
TARGET = "outline"

# The same steps and batches for all; the learning rates are those that source validation chose (docs/trials.md).
_STEPS = 450
_LR = {"erm": 3e-4, "kd": 3e-4, "adip": 1e-3}
_LAST_STAGE = {"erm": "finetune", "kd": "distill", "adip": "distill"}


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
        erm, kd, adip = (100 * (share or 0) for share in shares.values())
        return [
            f"shown: on {target}, which no student was trained on, adip is {adip - kd:+.1f} points against kd and "
            f"{adip - erm:+.1f} against erm;",
            f"one seed and {_STEPS:,} steps, which is short: intervals and longer runs are in docs/findings.md",
        ]


def run_demo(out: Path, *, target: str = TARGET, progress: Progress = silent) -> Demo:
    """Train ERM, KD and ADiP students of the tiny VLM on IconDG, one drawing style left out, and compare them.

    Everything is in `out`, including the embedding store; what is finished there isn't repeated.

    Args:
        out: a folder for the three run folders, the store and `results.json`.
        target: the style that is left out.
        progress: called as the work goes on.
    """
    store = out / "store"
    runs = {
        method: distill(settings(method, target), out / method, store=store, progress=_of(method, progress))
        for method in METHODS
    }
    # Training is over: now the teacher may be queried about the unseen style, for its own row in the table.
    embed({**settings("adip", target), "data": {"path": icondg()}}, store=store, progress=progress)
    again = {"adip": evaluate(runs["adip"], store=store, progress=progress)}
    evaluations = {method: again.get(method) or run.evaluation for method, run in runs.items()}
    demo = Demo(runs, {method: evaluation for method, evaluation in evaluations.items() if evaluation is not None})
    write_text(out / "results.json", json.dumps(demo.results(), indent=2))
    return demo


def settings(method: str, target: str) -> dict[str, Any]:
    """Return a demonstration run's settings."""
    stages: dict[str, Any] = {
        _LAST_STAGE[method]: {"steps": _STEPS, "lr": _LR[method], "batch_per_domain": 8, "eval_every": 80}
    }
    if method == "adip":
        stages["align"] = {"steps": 600, "batch_per_domain": 64}
    return {
        "method": method,
        "data": {"path": icondg(), "target": [target]},
        "teacher": {"spec": "tiny"},
        "student": {"name": "tf_efficientnet_lite0", "image_size": 64},
        "stages": stages,
    }


def _of(method: str, progress: Progress) -> Progress:
    return lambda task, done, total, remark: progress(f"{method}: {task}", done, total, remark)
