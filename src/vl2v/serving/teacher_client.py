"""The server's teacher: embeddings of new classes, and its own prediction for an image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vl2v.config import PromptConfig
from vl2v.data.decoding import decode
from vl2v.deploy.prediction import Prediction, prediction
from vl2v.deploy.runtime import Exported, softmax
from vl2v.embeddings.bill import spending_of, with_budget
from vl2v.embeddings.fetch import fetch_image, fetch_texts
from vl2v.embeddings.rows import FILE_NAME
from vl2v.embeddings.schema import image_key
from vl2v.embeddings.session import class_text
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import ConfigError, StudentError
from vl2v.privacy import public_name
from vl2v.serving.decoders import MOST
from vl2v.session import Session
from vl2v.teachers.paid.teacher import as_paid
from vl2v.teachers.protocol import Teacher

ASKER = "vl2v serve"
BUILT_IN = (
    "this export has its classes built in; the same `vl2v export` command with --open makes one that takes new ones, "
    "if the student classifies by texts"
)


class TeacherClient:
    """The student's teacher: its cached embeddings, and the teacher itself where one is given.

    Args:
        teacher: None: only what is stored.
        budget: lifetime spending limit of this store for a paid teacher, in the vendor's currency.

    Raises:
        ConfigError: the teacher isn't the student's, is paid for and there is no budget, or the form is closed.
    """

    def __init__(self, student: Exported, store: Path, teacher: Teacher | None = None, budget: float = 0) -> None:
        self.student = student
        self.store = store
        self.teacher = teacher
        self._session = Session(store, budget)
        self._checked = False  # that a paid teacher is the model that it was: it costs, and is done once
        if teacher is None:
            return
        if student.card["form"] != "open":
            raise ConfigError(f"--teacher: can't be queried, {BUILT_IN}")
        if teacher.fingerprint != student.card.get("teacher"):
            name = public_name(teacher.name)
            raise ConfigError(f"--teacher {name}: not the one that the student learned from (another fingerprint)")
        if as_paid(teacher) is not None and budget <= 0:
            raise ConfigError(f"--teacher {teacher.name}: is paid for; say how much with --budget")

    def obstacle(self) -> str | None:
        """Return why no class can be added by its name; None if one can, as far as is known before."""
        if self.student.card["form"] != "open":
            return BUILT_IN
        if "prompts" not in self.student.card:
            return "the export doesn't have its class prompts; export again"
        if self.teacher is None and not (self.store / FILE_NAME).is_file():
            return "there is no teacher, and nothing is stored; start with --teacher, or send the text's embedding"
        return None

    def text(self, name: str) -> NDArray[np.float32]:
        """Return the text embedding [d] of a class.

        Raises:
            StudentError: it can't be had; the message says why.
            BudgetReached, TeacherError, StoreError: the teacher can't be queried, or the store be read.
        """
        obstacle = self.obstacle()
        if obstacle is not None:
            raise StudentError(obstacle)
        card = self.student.card
        with EmbeddingStore(self.store, read_only=self.teacher is None) as embeddings:

            def query(texts: list[str]) -> None:
                if self.teacher is None:
                    raise StudentError(f"no text of {name!r} is stored; start with --teacher, or send its embedding")
                with self._paying():
                    fetch_texts(embeddings, self.teacher, texts, checked=self._checked)
                    self._checked = True

            prompts, sources = PromptConfig(**card["prompts"]), card["about"]["sources"]
            return class_text(name, prompts, sources, card["teacher"], embeddings, query)

    def opinion(self, image: bytes) -> Prediction:
        """Return the teacher's zero-shot prediction for an image file's bytes; never "unknown".

        Raises:
            StudentError: there is no teacher.
            ImageError: it can't be decoded.
            BudgetReached, TeacherError, StoreError: the teacher can't be queried.
        """
        if self.teacher is None:
            raise StudentError("there is no teacher here; start with --teacher")
        texts, classes = self.student.texts, list(self.student.classes)
        decode(image, most_bytes=MOST)
        with EmbeddingStore(self.store) as embeddings, self._paying():
            known = embeddings.cached(self.teacher.fingerprint, [image_key(hashlib.sha256(image).digest())])[0]
            embedding = fetch_image(embeddings, self.teacher, image, checked=self._checked)
            self._checked = self._checked or not known
        (row,) = softmax(self.student.card["scale"] * embedding[None] @ texts.T).tolist()
        return prediction(classes, row, 0.0)

    def stop(self) -> None:
        """End the queries to a paid teacher: the server is stopping."""
        if self.teacher is not None and (paid := as_paid(self.teacher)) is not None:
            paid.stop()

    def about(self) -> dict[str, Any] | None:
        """Return the teacher's public name and its bill; None: there is no teacher."""
        if self.teacher is None:
            return None
        with spending_of(self.teacher, self._session, ASKER) as spending:  # a query may be in flight
            bill = spending.bill() if spending else None
        return {"name": public_name(self.teacher.name), "paid": bill is not None, "bill": bill}

    @contextmanager
    def _paying(self) -> Iterator[Any]:
        assert self.teacher is not None
        with with_budget(self.teacher, self._session, ASKER) as spending:
            yield spending
