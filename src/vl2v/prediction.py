"""What a student says about one picture."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from vl2v.errors import DataError

UNKNOWN = "unknown"

_INVISIBLE = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))  # controls, format (zero width, direction), lone halves, lines
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")  # joiners, fillers: letters that show nothing


def check_name(name: str) -> str:
    """Return a class's or domain's name, if all of it can be seen, in the order in which it is written.

    Raises:
        DataError: a character without width, one that changes the direction of writing, or a control character: two
            names could look the same, or one like another.
    """
    for sign in name:
        if unicodedata.category(sign) in _INVISIBLE or sign in _BLANK:
            known = unicodedata.name(sign, "a control character")
            raise DataError(f"the name {name!r} has U+{ord(sign):04X} in it ({known}), which can't be seen; rename it")
    return name


def why_not_new(name: str, classes: Sequence[str]) -> str | None:
    """Return why a class of this name can't join others; None: it can."""
    try:
        check_name(name)
    except DataError as error:
        return str(error)
    if name in classes:
        return f"class {name!r} is there already"
    if name.strip() == UNKNOWN:
        return f"{UNKNOWN!r} is the answer where none is likely enough; choose another name for the class"
    return None


@dataclass(frozen=True)
class Prediction:
    """One picture's answer.

    Attributes:
        label: the class, or "unknown" where even the best one is less likely than the threshold.
        best: the most likely class.
        probability: of the most likely class.
        probabilities: of every class.
    """

    label: str
    best: str
    probability: float
    probabilities: dict[str, float]


def prediction(classes: list[str], probabilities: list[float], threshold: float) -> Prediction:
    """Return the answer that follows from each class's probability."""
    best = max(range(len(classes)), key=probabilities.__getitem__)
    name, probability = classes[best], probabilities[best]
    label = name if probability >= threshold else UNKNOWN
    return Prediction(label, name, probability, dict(zip(classes, probabilities, strict=True)))
