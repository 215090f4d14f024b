"""From what a person asked for to one complete configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vl2v.config import RunConfig, Tree, merge, paper_preset, validate
from vl2v.errors import ConfigError
from vl2v.methods import find_method
from vl2v.places import public_name

PRESETS = ("default", "paper")


def resolve(settings: Mapping[str, Any], preset: str = "default") -> RunConfig:
    """Return the configuration: the method's defaults, then the preset, then the settings.

    Raises:
        ConfigError: an unknown method, preset, stage or key, or a value out of range.
    """
    method = str(settings.get("method", "adip"))
    entry = find_method(method)
    stages = settings.get("stages", {})
    if not isinstance(stages, Mapping):
        raise ConfigError(
            f"stages = {stages!r}: a table of stages, for example stages.{next(iter(entry.stages))}.lr=1e-3"
        )
    unknown = stages.keys() - entry.stages.keys()
    if unknown:
        raise ConfigError(f"stages.{min(unknown)}: {method} has only {', '.join(entry.stages)}")
    return validate(merge({"stages": entry.stages}, entry.defaults, recipe(preset, entry.stages), settings))


def recipe(preset: str, stages: Iterable[str]) -> Tree:
    """Return what a preset sets for a method of these stages.

    Raises:
        ConfigError: an unknown preset.
    """
    if preset not in PRESETS:
        raise ConfigError(f"preset {preset!r}: there are {', '.join(PRESETS)}")
    return paper_preset(stages) if preset == "paper" else {}


def without_places(tree: Any) -> Any:
    """Return settings, or one of them, to be shown to others: of every path the last part only."""
    if isinstance(tree, Mapping):
        return {key: without_places(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_places(value) for value in tree]
    if isinstance(tree, Path):
        return tree.name
    return public_name(tree) if isinstance(tree, str) else tree
