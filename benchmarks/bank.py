"""A trial: similarities to a bank of stored embeddings as one more soft target (SEED, LightlyTrain's first version).

    python benchmarks/bank.py DATA --teacher tiny --targets pixel,outline --out FOLDER

`adip-plus` with and without the term, same seed, steps and images; accuracy % on all images of the unseen domain. The
bank is a queue of the teacher's embeddings of the latest images. Finished runs in FOLDER are not trained again.
"""

from __future__ import annotations

from pathlib import Path

import torch
from trial import compare

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


if __name__ == "__main__":
    compare(__doc__, {"with a bank": lambda given, target: {"method": f"{Path(__file__).resolve()}:Bank"}})
