"""Names of classes and domains: what they may be made of, and which ones people can't tell apart."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from vl2v.errors import DataError, StudentError

UNKNOWN = "unknown"

_INVISIBLE = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))  # controls, format (zero width, direction), lone halves, lines
_SPACES = re.compile(r"[ \u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+")  # other white space is a control character
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")  # joiners, fillers: letters that show nothing

# Letters of other alphabets that look like Latin ones, and those.
_CONFUSABLES = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u03bf\u03b1\u03bd", "aeopcyxijsoav"
)
_MUTE = re.compile(
    r"(?:(?:class|category|label|cls|id|type|group|c)[ .-]*)?\d+(?:\.0+)?|n\d{8}|[0-9a-f]{16,}|[a-z]|[ -/:-@[-`{-~]+"
    r"|true|false|yes|no",
    re.IGNORECASE,
)


def says_nothing(name: str) -> bool:
    """Whether a class's name doesn't say what is to be seen: a number, a letter, a code such as n02084071."""
    return _MUTE.fullmatch(name.replace("_", " ").strip() or "-") is not None


def skeleton(name: str) -> str:
    """Return what names have in common that look alike: no case, letters and digits alone, Latin where they look so."""
    folded = unicodedata.normalize("NFKC", name).casefold().translate(_CONFUSABLES)
    return "".join(letter for letter in folded if letter.isalnum()) or name


def check_name(name: str) -> str:
    """Return a class's or domain's name, if all of it can be seen, in the order in which it is written.

    Raises:
        DataError: a character without width, one that changes the direction of writing, or a control character: two
            names could look the same, or one like another.
    """
    for sign in name:
        if unicodedata.category(sign) in _INVISIBLE or sign in _BLANK:
            sort = unicodedata.name(sign, "a control character")
            raise DataError(f"the name {name!r} has U+{ord(sign):04X} in it ({sort}), which can't be seen; rename it")
    return name


def new_class_name(name: str, classes: Sequence[str]) -> str:
    """Return the name under which a class joins others: in Unicode's composed form, with single spaces.

    Raises:
        StudentError: it is empty, "." or "..", "unknown" (a prediction), can't be seen, or equals a class that is
            there: case, spaces, underscores and forms of the same character (full width, ligatures) don't count.
    """
    tidy = _SPACES.sub(" ", unicodedata.normalize("NFC", name)).strip(" ")
    try:
        check_name(tidy)
    except DataError as error:
        raise StudentError(str(error)) from None
    if not tidy:
        raise StudentError("the new class has no name; give it one, as it would stand in a sentence")
    if tidy in (".", ".."):
        raise StudentError(f"{tidy!r} stands for a folder, in paths and addresses; choose another name for the class")
    if same_name(tidy) == UNKNOWN:
        raise StudentError(f"{UNKNOWN!r} is what is predicted where no class is likely; choose another name")
    there = {same_name(each): each for each in classes}.get(same_name(tidy))
    if there is not None:
        raise StudentError(f"class {there!r} is there already")
    return tidy


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return names with commas between; of many the first ones, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def same_name(name: str) -> str:
    """Return what names have in common that people can't tell apart."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return " ".join(folded.replace("_", " ").split())
