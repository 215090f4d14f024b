"""From class names to texts, and from texts' embeddings to the classifier T."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vl2v.errors import ConfigError

DOMAIN_TEMPLATE = "a {domain} of a {class}"


@dataclass(frozen=True)
class Prompts:
    """How class names become texts.

    Attributes:
        templates: each with `{class}`.
        articles: "an elephant" where a template says "a {class}".
        overrides: class -> the name, or names, to use for it.
        domain_prompts: add "a {domain} of a {class}" for every source domain.
    """

    templates: list[str] = field(default_factory=lambda: ["a photo of a {class}"])
    articles: bool = True
    overrides: dict[str, str | list[str]] = field(default_factory=dict)
    domain_prompts: bool = False

    @classmethod
    def from_toml(cls, path: Path) -> Prompts:
        """Read a TOML file with the attributes as keys; `[overrides]` is a table.

        Raises:
            ConfigError: missing file, not TOML, or an unknown key.
        """
        try:
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path}: not readable as TOML ({error})") from None
        unknown = tree.keys() - cls.__dataclass_fields__.keys()
        if unknown:
            raise ConfigError(f"{path}: unknown key {min(unknown)}; there are {', '.join(cls.__dataclass_fields__)}")
        return cls(**tree)


def prompts_for(classes: Sequence[str], prompts: Prompts, domains: Sequence[str] = ()) -> list[list[str]]:
    """Return every text of every class, none of them twice.

    Args:
        classes: names; underscores are read as spaces.
        prompts: templates and overrides.
        domains: the source domains; used by domain prompts only.

    Raises:
        ConfigError: a template without `{class}`, or an override of a class that doesn't exist.
    """
    for template in prompts.templates:
        if "{class}" not in template:
            raise ConfigError(f"prompts.templates: {template!r} has no {{class}} in it")
    for name, value in prompts.overrides.items():
        if not value:
            raise ConfigError(f"prompts.overrides.{name}: empty; give a name or a list of names")
    templates = list(prompts.templates)
    if prompts.domain_prompts:
        templates += [DOMAIN_TEMPLATE.replace("{domain}", domain.replace("_", " ")) for domain in domains]
    return [
        list(dict.fromkeys(_fill(template, name, prompts.articles) for template in templates for name in names))
        for names in (_names(name, prompts.overrides) for name in classes)
    ]


def text_classifier(embeddings: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return T [C, d]: each text's embedding normalised, averaged over a class, normalised again.

    Args:
        embeddings: for each class its texts' [m, d].
    """
    return np.stack([_unit(_unit(rows).mean(0)) for rows in embeddings]).astype(np.float32)


def _unit(rows: NDArray[Any]) -> NDArray[Any]:
    unit: NDArray[Any] = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return unit


def _names(name: str, overrides: dict[str, str | list[str]]) -> list[str]:
    names = overrides.get(name, name.replace("_", " "))
    return [names] if isinstance(names, str) else names


def _fill(template: str, name: str, articles: bool) -> str:
    if articles:
        template = re.sub(r"\b([Aa])n? (?=\{class\})", lambda match: _article(match.group(1), name), template)
        template = re.sub(r"^a (?=[aeio])", "an ", template)  # "a art painting of ..."
    return template.replace("{class}", name)


def _article(letter: str, name: str) -> str:
    """Return "a ", "an ", or nothing before a plural such as "scissors"."""
    engine = _inflect()
    last = name.split()[-1] if name.split() else name
    if engine.singular_noun(last) and last.lower() not in _SINGULAR:
        return ""
    article: str = engine.a(name).split(" ")[0]
    return letter + article[1:] + " "


# Words that inflect takes for plurals.
_SINGULAR = frozenset(
    ("bus", "cactus", "compass", "cross", "dress", "gas", "glass", "grass", "lens", "octopus", "walrus")
)


@cache
def _inflect() -> Any:
    import inflect

    return inflect.engine()
