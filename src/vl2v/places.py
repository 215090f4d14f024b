"""What others may see of names that may hold a place of this machine."""

from __future__ import annotations

import os
import re
from pathlib import PureWindowsPath

_PLACE = re.compile(r"local-dir:|[/\\~.]|[A-Za-z]:[/\\]")  # how what is a path for sure begins


def public_name(spec: str) -> str:
    """Return a teacher's spec, or a setting's text, without the folders and the address that it has here.

    Of a path the last part stays, of KIND:ADDRESS#MODEL the model: "recorded:/home/me/answers" is "recorded:answers".
    """
    kind, colon, what = spec.partition(":")
    if not colon or _PLACE.match(spec):
        kind, colon, what = "", "", spec
    if "://" in what:
        what = what.partition("#")[2]
    here = _PLACE.match(what) or "//" in what or kind == "recorded" or (colon and os.path.exists(what))
    return kind + colon + (PureWindowsPath(what.removeprefix("local-dir:")).name if here else what)
