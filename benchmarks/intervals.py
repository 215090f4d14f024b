"""How often the benchmark's 95% intervals hold the truth, on synthetic benchmarks whose truth is known.

    python benchmarks/intervals.py --rounds 2000

Each round makes the right and wrong predictions of two methods that are equally good, or of which one is better by a
known number of points. An image has a difficulty for both methods and one for each; a run (a method, a target and a
seed) has luck, part of which may be the same for all targets of a seed. Printed are how often the interval of the lead
holds the true lead, how often it leaves zero out, and its mean width.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from vl2v.evaluation.compare import Marks, best_is_sure, lead

_NORMAL = NormalDist()
Made = dict[tuple[str, str], dict[int, Marks]]


@dataclass(frozen=True)
class Situation:
    """A synthetic benchmark.

    Attributes:
        seeds: how many; for each target, where there are several numbers.
        targets: how many.
        images: of each target.
        luck: standard deviation of a run's accuracy over seeds, in points.
        common: share of the luck's variance that all targets of a seed have in common.
        ahead: how much better the first method is, in points.
        accuracy: in per cent; the targets' are spread around it by 8 points, less near 100.
        uneven: targets of a third to three times the images.
        heavy: luck from Student's t with three degrees of freedom.
        missing: share of the images that a run has no prediction of.
        datasets: that the targets belong to, in turns but for the first, which has half of them.
    """

    seeds: int | tuple[int, ...] = 3
    targets: int = 5
    images: int = 300
    luck: float = 2.0
    common: float = 0.0
    ahead: float = 0.0
    accuracy: float = 70.0
    uneven: bool = False
    heavy: bool = False
    missing: float = 0.0
    datasets: int = 1

    def make(self, rng: np.random.Generator, methods: int = 2) -> list[Made]:
        """Return what each method got right; the first is ahead of the others."""
        centre = _NORMAL.inv_cdf(self.accuracy / 100)
        scale = (1 + 1 + 0.5) ** 0.5  # of a prediction's own chance, an image's difficulty, and that for one method
        wobble = self.luck / 100 / _NORMAL.pdf(centre) * scale
        found: list[Made] = [{} for _ in range(methods)]
        counts = self.seeds if isinstance(self.seeds, tuple) else (self.seeds,) * self.targets
        shared = rng.normal(size=(methods, max(counts)))
        for number, seeds in enumerate(counts):
            images = int(self.images * (rng.uniform(1 / 3, 3) if self.uneven else 1))
            spread = 0.08 * min(1, (100 - self.accuracy) / 30)
            base = float(np.clip(self.accuracy / 100 + rng.normal(0, spread), 0.2, 0.995))
            difficulty = rng.normal(size=images)
            own = rng.normal(0, 0.5**0.5, (methods, 1, images))
            alone = rng.standard_t(3, (methods, seeds)) / 3**0.5 if self.heavy else rng.normal(size=(methods, seeds))
            luck = wobble * (self.common**0.5 * shared[:, :seeds] + (1 - self.common) ** 0.5 * alone)
            level = np.full(methods, _NORMAL.inv_cdf(base))
            level[0] = _NORMAL.inv_cdf(min(base + self.ahead / 100, 0.999))
            latent = level[:, None, None] * scale + difficulty + own + luck[..., None]
            right = latent + rng.normal(size=latent.shape) > 0
            for method in range(methods):
                runs = {seed: self._marks(right[method, seed], rng) for seed in range(seeds)}
                found[method][f"dataset {number % self.datasets if number % 2 else 0}", f"target {number}"] = runs
        return found

    def _marks(self, right: NDArray[np.bool_], rng: np.random.Generator) -> Marks:
        there = np.flatnonzero(rng.random(len(right)) >= self.missing)
        return Marks(there, right[there])


SITUATIONS: Mapping[str, Situation] = {
    "3 seeds, 5 targets, luck of 2 points": Situation(),
    "luck of half a point": Situation(luck=0.5),
    "luck of 4 points": Situation(luck=4),
    "no luck, images only": Situation(luck=0),
    "2 seeds, 4 targets": Situation(seeds=2, targets=4),
    "2 seeds, 5 targets": Situation(seeds=2),
    "10 seeds": Situation(seeds=10),
    "1 target, 3 seeds": Situation(targets=1),
    "1 target, 2 seeds": Situation(targets=1, seeds=2),
    "1 target, 10 seeds": Situation(targets=1, seeds=10),
    "9 targets of two datasets": Situation(targets=9, datasets=2),
    "targets of 100 to 900 images": Situation(uneven=True),
    "targets with 1, 2, 3, 4 and 5 seeds": Situation(seeds=(1, 2, 3, 4, 5)),
    "a tenth of the predictions missing": Situation(missing=0.1),
    "heavy tails": Situation(heavy=True),
    "heavy tails, luck of 4 points": Situation(heavy=True, luck=4),
    "40 images a target": Situation(images=40),
    "accuracies near 98%, luck of half a point": Situation(accuracy=98, luck=0.5),
    "accuracies near 95%, 100 images, luck of 1 point": Situation(accuracy=95, images=100, luck=1),
    "2,000 images": Situation(images=2000),
    "half of the luck common to all targets": Situation(common=0.5),
    "the same, 2 seeds, 4 targets": Situation(common=0.5, seeds=2, targets=4),
    "the same, 5 seeds": Situation(common=0.5, seeds=5),
    "the same, 10 seeds": Situation(common=0.5, seeds=10),
    "all of the luck common, 5 seeds": Situation(common=1, seeds=5),
    "one seed, no luck": Situation(seeds=1, luck=0),
    "a true lead of 3 points": Situation(ahead=3),
}


def outcomes(situation: Situation, rounds: int, seed: int = 0) -> tuple[float, float, float]:
    """Return how often the interval holds the true lead, how often it leaves zero out, and its mean width in points."""
    rng, held, detected, width = np.random.default_rng(seed), 0, 0, 0.0
    for _ in range(rounds):
        found = lead(*situation.make(rng))
        assert found is not None
        held += found.low <= situation.ahead / 100 <= found.high
        detected += found.low > 0 or found.high < 0
        width += 100 * (found.high - found.low)
    return held / rounds, detected / rounds, width / rounds


def falsely_bold(rounds: int, seed: int = 0) -> float:
    """Return how often one of three methods that are equally good is called surely the best."""
    rng, bold = np.random.default_rng(seed), 0
    for _ in range(rounds):
        methods = {str(number): made for number, made in enumerate(Situation().make(rng, methods=3))}
        bold += best_is_sure(methods, [*methods]) is not None
    return bold / rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rounds = given.rounds
    print("| | holds the truth, % | leaves zero out, % | width, points |\n| --- | --- | --- | --- |")
    for name, situation in SITUATIONS.items():
        held, detected, width = outcomes(situation, rounds, given.seed)
        print(f"| {name} | {100 * held:.1f} | {100 * detected:.1f} | {width:.1f} |", flush=True)
    bold = falsely_bold(rounds, given.seed)
    print(f"\nOf three methods that are equally good, one is bold in {100 * bold:.1f}% of the rounds.")


if __name__ == "__main__":
    main()
