"""What the routes share: a student's network behind a queue, its teacher, traffic log and metrics."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter, Gauge
from starlette.exceptions import HTTPException
from starlette.requests import Request

from vl2v.config import PromptConfig
from vl2v.data.decoding import ImageError, decode
from vl2v.deploy.drift import WINDOW
from vl2v.deploy.prediction import Prediction, prediction
from vl2v.deploy.runtime import Exported, softmax
from vl2v.embeddings.bill import spending_of, with_budget
from vl2v.embeddings.fetch import fetch_image, fetch_texts
from vl2v.embeddings.rows import FILE_NAME
from vl2v.embeddings.schema import image_key
from vl2v.embeddings.session import class_text
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import ConfigError, StudentError
from vl2v.names import UNKNOWN
from vl2v.privacy import public_name
from vl2v.serving.decoders import MOST, BadImage, Decoders, Thing
from vl2v.serving.traffic_log import TrafficLog
from vl2v.session import Session
from vl2v.system import processors
from vl2v.teachers.paid.teacher import as_paid
from vl2v.teachers.protocol import Teacher
from vl2v.web.batches import Batches, Busy
from vl2v.web.server import Metrics

ASKER = "vl2v serve"
BATCH = 32  # images
SECONDS = 10.0  # that a request may wait for its turn
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


Rows = NDArray[np.float32]


class Network:
    """A student's network behind a queue.

    A thread a core takes a batch, decodes it and puts it through the network, for which onnxruntime gets one thread: at
    saturation no core waits for another.

    Args:
        student: loaded with one thread.
        waiting: images that may wait.
        observe: called with the size of each batch.
    """

    def __init__(
        self,
        student: Exported,
        *,
        waiting: int = 128,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.student = student
        self.batches: Batches[Sequence[Thing], Rows] = Batches(
            self.compute, most=BATCH, waiting=waiting, seconds=SECONDS, threads=processors(), observe=observe
        )

    async def outputs(self, things: Sequence[Thing], client: str = "") -> Rows:
        """Return what the network gives for each image [n, d]: logits or embeddings.

        Raises:
            BadImage: one can't be decoded.
            Busy, Waited: too much to do.
        """
        return await self.batches.submit(things, len(things), client)

    def compute(self, requests: list[Sequence[Thing]]) -> list[Rows | Exception]:
        """Compute several requests as one batch; return each one's rows, or what is wrong with it."""
        decoded = [self._pixels(things) for things in requests]
        good = [pixels for pixels in decoded if not isinstance(pixels, Exception)]
        rows = iter(np.split(self._run(np.concatenate(good)), np.cumsum([len(p) for p in good])[:-1]) if good else ())
        return [pixels if isinstance(pixels, Exception) else next(rows) for pixels in decoded]

    def _pixels(self, things: Sequence[Thing]) -> NDArray[np.uint8] | BadImage:
        views = []
        for index, thing in enumerate(things):
            try:
                views.append(self.student.view(thing) if isinstance(thing, bytes) else thing)
            except ImageError as error:
                return BadImage(index, str(error))
        return np.stack(views)

    def _run(self, pixels: NDArray[np.uint8]) -> Rows:
        return np.concatenate([self.student.run(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)])


class ServingMetrics(Metrics):
    """What every server counts, predictions, and how far the latest images are from the training domains."""

    def __init__(self) -> None:
        super().__init__()
        options: dict[str, Any] = {"registry": self.registry}
        self.images = Counter("vl2v_images", "images predicted", **options)
        self.unknown = Counter("vl2v_unknown", 'images predicted as "unknown"', **options)
        latest = f"of the latest {WINDOW} images"
        self.distance = Gauge(
            "vl2v_drift_distance", f"{latest}: from the training domains; from 1 it isn't chance", **options
        )
        self.share = Gauge("vl2v_drift_unknown_share", f'{latest}: predicted as "unknown"', **options)
        self.expected = Gauge(
            "vl2v_drift_unknown_expected", "that share on validation images of the same classes", **options
        )

    def count(self, predictions: Sequence[Prediction]) -> None:
        """Count predictions."""
        self.images.inc(len(predictions))
        self.unknown.inc(sum(prediction.label == UNKNOWN for prediction in predictions))

    def watched(self, traffic_log: TrafficLog) -> None:
        """Set the gauges of drift; what isn't known is NaN."""
        found = traffic_log.drift()
        nan = float("nan")
        self.distance.set(nan if found is None or found.distance is None else found.distance)
        self.share.set(nan if found is None else found.unknown)
        self.expected.set(nan if found is None else found.expected)


@dataclass(frozen=True)
class Service:
    """A student that serves predictions.

    Attributes:
        student: the loaded export.
        decoders: for images that are large.
    """

    name: str
    student: Exported
    network: Network
    decoders: Decoders
    teacher_client: TeacherClient
    traffic_log: TrafficLog
    metrics: ServingMetrics

    async def predictions(self, things: Sequence[Thing], client: str = "") -> list[Prediction]:
        """Return what is in images; clients take turns.

        Raises:
            BadImage: one can't be decoded.
            Busy, Waited: too much to do.
        """
        rows = await self.network.outputs(await self.decoders.views(things, client), client)
        found = self.student.predictions(rows)
        self.traffic_log.add(rows, found)
        if self.traffic_log.images is not None:
            await asyncio.to_thread(self.traffic_log.images.add, [one for one in things if isinstance(one, bytes)])
        self.metrics.count(found)
        return found

    def check_room(self, client: str) -> None:
        """Refuse a request before its body is read, if it will be refused anyhow.

        Raises:
            Busy: it will.
        """
        if self.network.batches.full(1, client):
            raise Busy("too many images are waiting")

    def check_ready(self, client: str) -> None:
        """Check that the next image would be taken.

        Raises:
            HTTPException: it wouldn't.
        """
        if self.network.batches.full(1, client):
            raise HTTPException(503, "too many images are waiting", {"Retry-After": "1"})


def client_of(request: Request) -> str:
    """Return whose turn a request takes: its address."""
    return request.client.host if request.client else ""
