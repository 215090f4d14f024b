"""Settings as trees: laid over one another, flat with dotted names, from TOML and from `--set`."""

from __future__ import annotations

import codecs
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from vl2v.errors import ConfigError

Tree = dict[str, Any]


def merge(*trees: Mapping[str, Any]) -> Tree:
    """Return the trees laid over one another; later ones win, key by key."""
    merged: Tree = {}
    for tree in trees:
        for key, value in tree.items():
            old = merged.get(key)
            if isinstance(old, Mapping) and isinstance(value, Mapping):
                merged[key] = merge(old, value)
            else:
                merged[key] = value
    return merged


def assignments(pairs: Iterable[str]) -> Tree:
    """Return `["stages.distill.lr=1e-3", ...]` as a tree; keys and values are TOML, else plain text.

    Raises:
        ConfigError: a pair without `=`.
    """
    values: Tree = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {pair!r}: write it as key=value, for example stages.distill.lr=1e-3")
        values.pop(key.strip(), None)  # the later one stands later
        values[key.strip()] = _toml_value(text.strip())
    return nested(values)


def nested(values: Mapping[str, Any]) -> Tree:
    """Return settings with dotted names as a tree; later ones win."""
    tree: Tree = {}
    for name, value in values.items():
        for part in reversed(_parts(name)):
            value = {part: value}
        tree = merge(tree, value)
    return tree


def flat(tree: Mapping[str, Any], prefix: str = "") -> Tree:
    """Return a tree of settings as one level with dotted names, for example `teacher.views`; an empty table stays."""
    values: Tree = {}
    for key, value in tree.items():
        name = prefix + toml_key(key)
        values |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return values


@cache
def toml_key(name: str) -> str:
    """Return a part of a dotted name, in quotes where it needs them: a class may be called anything."""
    plain = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if plain else json.dumps(name, ensure_ascii=False)


def _parts(key: str) -> list[str]:
    try:
        tree: Any = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        return key.split(".")
    parts = []
    while isinstance(tree, dict):
        ((part, tree),) = tree.items()
        parts.append(part)
    return parts


def _toml_value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def text_of(data: bytes) -> str:
    """Return the text of a file that a person wrote: UTF-8 or UTF-16 (as Windows saves), with a byte order mark or not.

    Raises:
        UnicodeDecodeError: it is neither.

    Examples:
        >>> text_of("chalk".encode("utf-16")), text_of("plain".encode("utf-8-sig"))
        ('chalk', 'plain')
    """
    return data.decode(encoding_of(data)).replace("\r\n", "\n")


def encoding_of(data: bytes) -> str:
    """Return the encoding of a text that begins so: UTF-16 if it has that mark, else UTF-8."""
    return "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def at_home(path: Path) -> Path:
    """Return a path with the home folder instead of a "~" at its start."""
    return Path(os.path.expanduser(path))


def class_names(given: object) -> object:
    """Return the names of classes: of a list, of a text with commas, or of a text file, one a line."""
    if not isinstance(given, str):
        return given
    file = at_home(Path(given))
    if file.suffix != ".txt" and not file.is_file():
        return [name.strip() for name in given.split(",") if name.strip()]
    try:
        lines = text_of(file.read_bytes()).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"the file of class names can't be read ({error}); it needs one name per line, in UTF-8"
        ) from None
    return [line.strip() for line in lines if line.strip()]


def read_toml(path: Path) -> Tree:
    """Return a TOML file (UTF-8 or UTF-16, with or without a byte order mark) as a tree.

    Raises:
        ConfigError: the file is missing, can't be read or isn't TOML.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}); give a TOML file") from None
    try:
        text = text_of(data)
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: neither UTF-8 nor UTF-16; save it as UTF-8") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not a TOML file: {error}{_toml_hint(text, str(error))}") from None


def _toml_hint(text: str, error: str) -> str:
    """Return what people who meet an error of TOML have mostly done, and what to do instead; "" if that isn't clear."""
    if text.lstrip().startswith("{"):
        return "; it is JSON: write it as TOML (docs/settings.md)"
    if re.search("[\u201c\u201d\u201e\u2018\u2019]", text):
        return "; it has typographic quotes: write straight ones"
    if "Unescaped '\\'" in error or "hex value" in error:
        return "; write paths of Windows in single quotes, or with /"
    if re.search(r"^\s*[\w.-]+:\s", text, re.MULTILINE):
        return "; it looks like YAML: write NAME = VALUE (docs/settings.md)"
    return "; texts need quotes" if "Invalid value" in error else ""
