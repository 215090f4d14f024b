"""A trial: similarities to a bank of stored embeddings as one more soft target (SEED, LightlyTrain's first version).

    python benchmarks/bank.py DATA --teacher tiny --targets pixel,outline --out FOLDER

`adip-plus` with and without the term, same seed, steps and images; accuracy % on all images of the unseen domain. The
bank is a queue of the teacher's embeddings of the latest images. Finished runs in FOLDER are not trained again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import vl2v
from vl2v.methods import Output, Targets
from vl2v.methods.adip import AdipPlus
from vl2v.methods.base import Terms

SIZE, TEMPERATURE, WEIGHT = 1024, 0.05, 0.5


class Bank(AdipPlus):
    """ADiP-plus, and KL(softmax(I(x) . B / t) || softmax(z . B / t)), B a bank of embeddings (Fang et al., 2021)."""

    def classwise(self, output: Output, targets: Targets) -> Terms:
        """Return ADiP-plus' loss and the added term."""
        terms = super().classwise(output, targets)
        images, _ = targets.embeddings()
        before = getattr(self, "bank", images[:0])
        self.bank = bank = torch.cat([images.detach(), before])[:SIZE]
        teacher = (images @ bank.T / TEMPERATURE).softmax(-1)
        student = (output.z @ bank.T / TEMPERATURE).log_softmax(-1)
        divergence = torch.nn.functional.kl_div(student, teacher, reduction="none").sum(-1)
        added = WEIGHT * TEMPERATURE * (targets.queried * divergence).mean()
        return {**terms, "loss": terms["loss"] + added, "bank": added.detach()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--targets", required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    targets = given.targets.split(",")
    print("| |", " | ".join([*targets, "mean"]), "|\n| --- |" + " ---: |" * (len(targets) + 1))
    for name, method in {"adip-plus": "adip-plus", "with a bank": f"{Path(__file__).resolve()}:Bank"}.items():
        found = []
        for target in targets:
            run = vl2v.distill(
                data=given.data, teacher=given.teacher, target=target, method=method, image_size=64, quick="auto",
                seed=given.seed, out=given.out / f"{target}-{name.replace(' ', '-')}", store=given.out / "store",
                stages={"align": {"steps": 600, "batch_per_domain": 64},
                        "distill": {"steps": given.steps, "batch_per_domain": 8, "warmup": given.steps // 10,
                                    "eval_every": given.steps // 4}},
                **{"data.workers": 0},
            )  # fmt: skip
            row = next(row for row in run.evaluation.of("student") if row.domain == target)
            found.append(100 * row.metrics.accuracy)
        print(f"| {name} |", " | ".join(f"{value:.1f}" for value in [*found, np.mean(found)]), "|", flush=True)


if __name__ == "__main__":
    main()
