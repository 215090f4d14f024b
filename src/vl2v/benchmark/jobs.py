"""A job of a benchmark: one student to be trained, named by what decides its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from vl2v.config import Tree, deciding
from vl2v.methods import METHODS, version_of
from vl2v.runs.settings import resolve

Selection = Literal["training", "leave-one-out", "oracle"]
ZERO_SHOT, ADAPTED = "zero-shot", "adapted-teacher"
TEACHERS = (ZERO_SHOT, ADAPTED)  # the methods that are the teacher itself


class Cell(NamedTuple):
    """What is repeated with other hyperparameters; see `Job`."""

    dataset: str
    target: str
    method: str
    student: str
    seed: int


@dataclass(frozen=True)
class Job:
    """One student to be trained, or one teacher to be measured.

    Attributes:
        dataset: the name that it was given.
        target: the unseen domain.
        method: as in `vl2v methods`.
        student: a timm model.
        seed: decides every draw, the split too.
        draw: which draw of hyperparameters; 0 is the defaults.
        held: another domain left out, to select by (leave-one-domain-out validation); "" for the job that counts.
        settings: of the run.
        version: of the code that trains it (`version_of`).
    """

    dataset: str
    target: str
    method: str
    student: str
    seed: int
    draw: int
    held: str
    settings: Tree = field(hash=False)
    version: str

    @property
    def cell(self) -> Cell:
        """What it is one draw of."""
        return Cell(self.dataset, self.target, self.method, self.student, self.seed)

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Job:
        """Return the job that `row` made a row of; its name isn't worked out anew: 500 are listed in a moment."""
        job = cls(**{key: value for key, value in row.items() if key != "name"})
        job.__dict__["name"] = row["name"]
        return job

    @property
    def row(self) -> dict[str, Any]:
        """What is saved of it, or sent."""
        return {"name": self.name, **asdict(self)}

    @property
    def of_today(self) -> bool:
        """Whether today's code would train it so."""
        return self.method in METHODS and self.version == version_of(self.method)

    @cached_property
    def name(self) -> str:
        """Its folder: words for people, and a digest of everything that decides the result."""
        decides = deciding(resolve(self.settings).model_dump(mode="json", by_alias=True))
        decides |= {"data.path": self.dataset, "data.exclude": None, "version": self.version}  # wherever these lie
        words = [self.dataset, self.target, self.held and f"without-{self.held}", self.student, self.method]
        return "-".join([*(slug(word) for word in words if word), f"seed{self.seed}", digest(decides)])


def digest(tree: object) -> str:
    """Return a short name of everything in a tree of settings."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()[:10]


def slug(text: str) -> str:
    """Return text as part of a file name."""
    return "".join(letter if letter.isalnum() or letter in "._" else "_" for letter in text)
