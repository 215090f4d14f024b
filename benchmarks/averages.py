"""A trial: ways to end a long training of `adip-plus` with an average of weights, for the same steps in all.

    python benchmarks/averages.py DATA --teacher tiny --targets outline,pixel --steps 600 --out FOLDER

The mean of three students that were distilled from one Align with one third of the steps each (a soup of runs that
share P and T; Wortsman et al., ICML 2022), the mean of all steps at a constant learning rate (as ERM++ has it), and
SWAD at one; accuracy % on all images of the unseen domain. Finished runs in FOLDER are not trained again.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from trial import compare

from vl2v.methods import Stage, averaging
from vl2v.methods.adip import AdipPlus, align

MEMBERS = 3


class Souped(AdipPlus):
    """ADiP-plus, its Distill three times from one Align, and the mean of the weights."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Align, and the members."""
        members = [partial(averaging.Soup, k, MEMBERS) for k in range(1, MEMBERS + 1)]
        distilled = [
            Stage(f"distill {k}/{MEMBERS}", "backbone", self.classwise, averagers=(member,))
            for k, member in enumerate(members, 1)
        ]
        return align(self.settings.lambda_), *distilled


class Averaged(AdipPlus):
    """ADiP-plus, ending with the mean of its steps' weights."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Align and Distill."""
        average = partial(averaging.TailAverage, 100)
        return align(self.settings.lambda_), Stage("distill", "backbone", self.classwise, averagers=(average,))


def soup(given: argparse.Namespace, target: str) -> dict[str, Any]:
    """Return the settings of a soup."""
    steps = given.steps // MEMBERS
    distill = {"steps": steps, "batch_per_domain": 8, "warmup": steps // 10, "eval_every": steps // 4}
    align_ = {"steps": 600, "batch_per_domain": 64}
    return {"method": f"{Path(__file__).resolve()}:Souped", "stages": {"align": align_, "distill": distill}}


def constant(method: str, given: argparse.Namespace, target: str) -> dict[str, Any]:
    """Return the settings of a constant rate, after the usual warm-up."""
    return {"method": method, "stages.distill.schedule": "constant"}


if __name__ == "__main__":
    compare(
        __doc__,
        {
            "soup of three": soup,
            "mean of the steps": partial(constant, f"{Path(__file__).resolve()}:Averaged"),
            "swad": lambda given, target: {**constant("adip-plus", given, target), "train": {"swad": True}},
        },
    )
