"""Draws of hyperparameters: from DomainBed's ranges, at random or where Optuna expects more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vl2v.config import RunConfig
from vl2v.errors import need_extra
from vl2v.methods import METHODS
from vl2v.session import derive
from vl2v.tree import Tree, flat, nested

STARTUP = 4  # results, before which Optuna's suggestions are random as well
RATES = dict.fromkeys(("adip", "adip-plus", "fd", "simkd", "lp"), 1) | dict.fromkeys(("sd", "wise-ft", "clipood"), -1)
"""How many powers of ten above DomainBed's range a method's learning rates are, so that its own is among them."""


@dataclass(frozen=True)
class Range:
    """Where a hyperparameter is drawn from: u uniformly from `low` to `high`, the value base^(u + shift), or u.

    Attributes:
        low: of u.
        high: of u.
        base: None: the value is u itself.
        shift: see above.
        whole: the value is rounded down to a whole number.
    """

    low: float
    high: float
    base: int | None = None
    shift: int = 0
    whole: bool = False

    def value(self, u: float) -> float:
        """Return the value at u."""
        value = u if self.base is None else self.base ** (u + self.shift)
        return int(value) if self.whole else float(value)

    def position(self, value: float) -> float:
        """Return u of a value; of one out of the range (a weight decay of 0), the nearest end."""
        if self.base is None:
            return min(max(value, self.low), self.high)
        inside = value + 1e-6 if self.whole else value  # what rounding down leaves where it is
        u = math.log(inside, self.base) - self.shift if inside > 0 else -math.inf
        return min(max(u, self.low), self.high)


_OWN = {
    "coral": ("coral_weight", Range(-1, 1, 10)),
    "mixup": ("mixup_alpha", Range(-1, 1, 10)),
    "miro": ("miro_weight", Range(-2, 0, 10)),
    "adip": ("lambda", Range(0.1, 0.9)),
    "sd": ("lambda", Range(0.1, 0.9)),
    "kd": ("temperature", Range(1, 5)),
    "rise": ("kd_weight", Range(0.1, 0.9)),
    "wise-ft": ("interpolate", Range(0.2, 0.8)),
}


def ranges(method: str) -> dict[str, Range]:
    """Return a method's hyperparameters, as dotted settings."""
    *_, last = METHODS[method].stage_defaults
    found = {
        f"stages.{last}.lr": Range(-5, -3.5, 10, shift=RATES.get(method, 0)),
        f"stages.{last}.weight_decay": Range(-6, -2, 10, shift=int(method == "clipood")),
        f"stages.{last}.batch_per_domain": Range(3, 5.5, 2, whole=True),
    }
    if method in _OWN:
        name, own = _OWN[method]
        found[f"loss.{name}"] = own
    return found


def drawn(method: str, seed: int, draw: int) -> Tree:
    """Return random hyperparameters from DomainBed's ranges (Gulrajani and Lopez-Paz, ICLR 2021, appendix D.2).

    Those are the ranges that DomainBed has for Adam; AdamW, the house's optimiser, takes weight decay in another way,
    and 1e-2 is little there. ResNets' dropout isn't drawn, and DomainNet's batch is as the others'.

    Of the last stage: learning rate 10^U(-5, -3.5), weight decay 10^U(-6, -2), images a domain 2^U(3, 5.5). Of a
    method of its own: CORAL's weight and Mixup's alpha 10^U(-1, 1). Not in DomainBed: lambda U(0.1, 0.9), MIRO's weight
    10^U(-2, 0), KD's temperature U(1, 5), RISE's share of distillation U(0.1, 0.9), roughly what its authors searched,
    WiSE-FT's interpolation U(0.2, 0.8). The losses of adip, adip-plus, fd and simkd, and lp's frozen features, want
    larger steps: ten times the range; white boxes smaller ones, a tenth. CLIPood's weight decay is ten times the range.
    """
    rng = np.random.default_rng(derive(seed, "draw", method, draw))
    found = ranges(method).items()
    return nested({name: span.value(rng.uniform(span.low, span.high)) for name, span in found})


def suggested(method: str, seed: int, draw: int, results: Sequence[tuple[RunConfig, float]]) -> Tree:
    """Return hyperparameters from the same ranges where Optuna's sampler (TPE) expects the best, by the results so far.

    Args:
        seed: of the run; the sampler's follows from it and the draw.
        results: runs, and what each is worth (more is better), in order.

    Raises:
        MissingExtra: Optuna isn't installed.
    """
    optuna = need_extra("optuna", "optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=derive(seed, "suggest", method, draw) % 2**32, n_startup_trials=STARTUP)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    found = ranges(method)
    distributions = {name: optuna.distributions.FloatDistribution(r.low, r.high) for name, r in found.items()}
    for config, worth in results:
        values = _values(method, config)
        if "auto" in values.values():
            continue  # it has no position in a range
        positions = {name: found[name].position(value) for name, value in values.items()}
        study.add_trial(optuna.trial.create_trial(params=positions, distributions=distributions, value=worth))
    return nested({name: found[name].value(u) for name, u in study.ask(distributions).params.items()})


def repeated(method: str, config: RunConfig) -> Tree:
    """Return the hyperparameters of a run, as `drawn` and `suggested` do."""
    return nested(_values(method, config))


def _values(method: str, config: RunConfig) -> dict[str, Any]:
    values = flat(config.model_dump(by_alias=True))
    return {name: values[name] for name in ranges(method)}
