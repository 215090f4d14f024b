"""Methods: how a student learns. One short file each; a method sees embeddings, never a teacher."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vl2v.config import LossConfig, PublishedConfig
from vl2v.errors import ConfigError
from vl2v.methods import adip, erm, kd, sd
from vl2v.methods.base import Loss, Method, Stage, Targets


class Entry(NamedTuple):
    """A method and the settings of its stages."""

    make: Callable[[LossConfig, PublishedConfig], Method]
    stages: Mapping[str, Any]


METHODS = {
    "adip": Entry(adip.adip, adip.STAGES),
    "sd": Entry(sd.sd, sd.STAGES),
    "erm": Entry(erm.erm, erm.ERM_STAGES),
    "lp": Entry(erm.lp, erm.LP_STAGES),
    "lp-ft": Entry(erm.lp_ft, erm.LP_FT_STAGES),
    "kd": Entry(kd.kd, kd.STAGES),
}


def find_method(name: str) -> Entry:
    """Return a method by name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name in METHODS:
        return METHODS[name]
    close = difflib.get_close_matches(name, METHODS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(METHODS)}"
    raise ConfigError(f"method {name!r}: unknown; {hint}")


__all__ = ["METHODS", "Entry", "Loss", "Method", "Stage", "Targets", "find_method"]
