"""The one client of all vendors: a paid teacher whose embeddings come in batches, several requests in flight."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from vl2v.errors import TeacherError, VL2VError
from vl2v.privacy import HIDDEN, canonical_url, is_loopback, without_secrets
from vl2v.system import heeding
from vl2v.teachers.paid.adapters import ADAPTERS, Adapter
from vl2v.teachers.paid.attempts import ABOUT, Attempts
from vl2v.teachers.paid.limits import Limits, Price, canonical_spec, find_limits, parts_of
from vl2v.teachers.paid.line import CONNECT, Line, Unusable
from vl2v.teachers.paid.requests import IMAGE_VERSION, batched, prepare
from vl2v.teachers.paid.session import Session
from vl2v.teachers.paid.teacher import MICRO, Budget, Embedded, Forecast, Kind, Refused
from vl2v.teachers.protocol import EMBEDDING_VERSION, EncodedImage, Vectors

_log = logging.getLogger(__name__)


def open_remote(kind: str, rest: str) -> RemoteTeacher:
    """Open "MODEL" or "URL#MODEL", with "?dimensions=N" after it where the vendor offers a choice; sends nothing.

    However the address is spelt, its name, its bill and its fingerprint are the same.

    Raises:
        TeacherError: no model, no URL where one is needed, an option that there isn't, a password in the address, or a
            wrong vendors.toml.
    """
    given, adapter = f"{kind}:{rest}", ADAPTERS[kind]
    spec = without_secrets(given)
    address, _, query = rest.partition("?")
    if HIDDEN in spec and HIDDEN not in rest:
        raise TeacherError(
            f"{spec}: a user and a password in an address would end up in files; leave them out, and put the key into "
            f"the environment as {adapter.key}"
        )
    url, hash_, model = address.rpartition("#")
    option, equals, value = query.partition("=")
    if query and not (option == "dimensions" and value.isdecimal() and int(value)):
        what = f"{option!r}" if equals and option.isidentifier() else "after the question mark"
        raise TeacherError(
            f"{spec.partition('?')[0]}: unknown option {what}; there is ?dimensions=N, and a key belongs into the "
            f"environment as {adapter.key}"
        )
    url = url.replace(HIDDEN, "")
    limits = find_limits(kind, model, url or None)
    form = f"write it as {kind}:" + ("URL#MODEL" if not limits.url else "MODEL, or URL#MODEL")
    if not model or not (url or limits.url) or (hash_ and not url.lower().startswith(("http://", "https://"))):
        raise TeacherError(f"{spec}: {form}")
    try:
        canonical_url(url or limits.url)
    except ValueError as error:
        raise TeacherError(f"{spec}: {error}; {form}") from None
    return RemoteTeacher(
        canonical_spec(given), adapter, limits, url or limits.url, model, int(value) if query else None
    )


class RemoteTeacher:
    """A teacher behind a vendor's API.

    Nothing is queried without a budget; `fingerprint` needs no network, and `forecast` costs nothing.
    """

    logit_scale: float | None = None

    def __init__(
        self, name: str, adapter: Adapter, limits: Limits, url: str, model: str, dimensions: int | None
    ) -> None:
        self.name = name
        self.currency = limits.currency
        self._attempts = Attempts(name, adapter, limits, url, model, dimensions)
        self._adapter = adapter
        self._model = model
        self._dimensions = dimensions
        self._ended = threading.Event()
        self._free = False  # whether a warning said that it is counted as free
        self._listed = False  # whether the vendor listed its prices
        self.fingerprint = fingerprint_of(name, canonical_url(url), model, dimensions, limits)

    def __repr__(self) -> str:
        return f"RemoteTeacher({self.name!r})"

    @property
    def budget(self) -> Budget | None:
        """What pays; None: nothing may be queried."""
        return self._attempts.budget

    @budget.setter
    def budget(self, budget: Budget | None) -> None:
        self._attempts.budget = budget

    @property
    def limits(self) -> Limits:
        """The vendor's prices and limits."""
        return self._attempts.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._attempts.limits = limits

    @property
    def _kind(self) -> str:
        return self.name.partition(":")[0]

    def was_spelt(self, name: str, fingerprint: str) -> bool:
        """Return whether an earlier version had this name and fingerprint for this teacher, its address spelt so."""
        if canonical_spec(name) != self.name:
            return False
        _, url, *_ = parts_of(name)
        addresses = {canonical_url(self._attempts.url), (url or self.limits.url).rstrip("/")}
        without_sides = self.limits.model_copy(update={"image_sides": None})  # which weren't part of it
        spelt = {
            fingerprint_of(name, address, self._model, self._dimensions, limits)
            for address in addresses
            for limits in (self.limits, without_sides)
        }
        return fingerprint in spelt or HIDDEN in name  # the address had a password, and so had its fingerprint

    def image_as_text(self, data: bytes) -> str | None:
        """Return what a server that overlooks the modality would embed of an image as a text; None: none may."""
        if not self._adapter.modality:
            return None
        limits = self.limits
        return prepare(data, limits.formats, limits.image_bytes, limits.image_pixels, limits.image_sides).uri

    def too_long(self, text: str) -> str | None:
        """Return why the vendor wouldn't take a whole text, by its documented limits; None: it would."""
        return self.limits.too_long(text)

    @property
    def doubt(self) -> str:
        """See `vl2v.teachers.paid.teacher.PaidTeacher`."""
        return self.limits.unverified

    @property
    def dim(self) -> int:
        """d; where it isn't known yet, one text is queried."""
        if self._attempts.dim is None:
            self.embed_texts(["a photo"])
        assert self._attempts.dim is not None
        return self._attempts.dim

    def forecast(self, kind: Kind, sizes: Iterable[tuple[int, int]]) -> Forecast:
        """See `vl2v.teachers.paid.teacher.PaidTeacher`."""
        self._learn_prices()
        price = self._price()
        tokens = [self.limits.tokens(kind, size) for size in sizes]
        requests = -(-len(tokens) // self.limits.items(kind))
        limits = (
            (requests, self.limits.requests_a_minute),
            (len(tokens), self.limits.items_a_minute),
            (sum(tokens), self.limits.tokens_a_minute),
        )
        seconds = max((60.0 * count / limit for count, limit in limits if limit), default=0.0)
        return Forecast(requests, sum(tokens), price.micro(kind, len(tokens), sum(tokens)), seconds)

    def embed_images(self, images: Sequence[EncodedImage]) -> Vectors:
        """Return I(x) [n, d], unit rows, in order.

        Raises:
            BudgetReached, TeacherError: see `query`; also for an image that the vendor won't take.
        """
        return self._embed("image", images)

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Return the texts' embeddings [n, d], unit rows, in order. Raises as `embed_images` does."""
        return self._embed("text", texts)

    def stop(self) -> None:
        """See `vl2v.teachers.paid.teacher.PaidTeacher`."""
        self._ended.set()

    def query(self, kind: Kind, items: Iterable[EncodedImage] | Iterable[str]) -> Iterator[Embedded | Refused]:
        """See `vl2v.teachers.paid.teacher.PaidTeacher`."""
        line, budget, words = self._open(), self.budget, ""
        assert budget is not None
        with heeding() as stop:
            session = Session(line, lambda: stop.wanted or self._ended.is_set())
            send, most = partial(self._attempts.handle, session, kind), self.limits.in_flight
            first = most if kind in self._attempts.responded else 1  # the first one shows what others may cost
            try:
                yield from session.run(batched(self.limits, kind, items), send, first, most)
            except VL2VError:
                if not session.stopped:
                    raise
            finally:
                if session.stopped:
                    words = session.words(self.currency, budget.bill())
                    _log.warning("%s: %s", self.name, words)
        if stop.signal is not None:
            stop.end()
        if words:
            raise TeacherError(f"{self.name}: {words}")

    def _embed(self, kind: Kind, items: Sequence[EncodedImage] | Sequence[str]) -> Vectors:
        rows: dict[int, Any] = {}
        for reply in self.query(kind, items):
            if isinstance(reply, Refused):
                thing = items[reply.position]
                what = thing if isinstance(thing, str) else thing.name
                raise TeacherError(f"{self.name}: won't take {what!r}: {reply.reason}")
            reply.settle()
            rows.update(zip(reply.positions, reply.vectors, strict=True))
        return np.stack([rows[i] for i in range(len(items))]) if rows else np.zeros((0, self.dim), np.float32)

    def _learn_prices(self) -> None:
        """Take over the price and the dimension that the vendor lists, where it does; costs nothing."""
        import httpx2

        if not self._adapter.prices or self._listed:
            return
        said = ""
        try:
            line = self._attempts.connected()
            request = line.send("GET", f"{self._attempts.url}/models", {}, seconds=CONNECT, most=ABOUT)
            response = line.start(request).result()
            self._listed = True
            said = "" if response.status == 200 else str(response.status)
            listed = [] if said else json.loads(response.content)["data"]
            about = next(item for item in listed if item["id"] == self._model)
            price = {kind: int(about["price_micro"][kind]) / MICRO for kind in ("image", "text")}
            dim = int(about["dim"])
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, Unusable) as error:
            said = type(error).__name__
        except (ValueError, KeyError, TypeError, StopIteration):
            pass
        else:
            self.limits = self.limits.model_copy(update={"price": Price(**price), "unverified": ""})
            self._attempts.dim = self._attempts.dim or dim
        if said and self.limits.unverified:
            before, _, _ = self.limits.unverified.partition("; its list")
            doubt = f"{before}; its list of prices failed: {said}"
            self.limits = self.limits.model_copy(update={"unverified": doubt})

    def _price(self) -> Price:
        if self.limits.price is None:
            raise TeacherError(
                f'{self.name}: no price known; put [{self._kind}.models."{self._model}"] price = {{...}} into '
                "vendors.toml in your configuration folder (docs/paying.md), so that a budget can be enforced"
            )
        if self.limits.unverified and self.limits.price == Price():
            self._say_no_price()
        return self.limits.price

    def _say_no_price(self) -> None:
        """Say once that a server without a price is counted as free.

        Raises:
            TeacherError: it isn't this machine's, and there is a budget, which couldn't be enforced.
        """
        if getattr(self.budget, "budget", None) and not is_loopback(canonical_url(self._attempts.url)):
            why = self.limits.unverified.replace("counted as free", "a --budget can't be enforced")
            raise TeacherError(
                f"{self.name}: {why}; put "
                f'[{self._kind}.models."{self._model}"] price = {{ image = ..., text = ... }}, in USD an item, '
                "into vendors.toml in your configuration folder (docs/paying.md); 0 if it costs nothing"
            )
        if self.budget is not None and not self._free:
            self._free = True
            _log.warning("%s: %s", self.name, self.limits.unverified)

    def _open(self) -> Line:
        """Return the line to the vendor, with a price and a key at hand.

        Raises:
            TeacherError: there is no budget, no price or no key.
        """
        if self.budget is None:
            raise TeacherError(
                f"{self.name}: is a paid teacher: query it with `vl2v embed` or `distill`, and a --budget"
            )
        self._learn_prices()
        self._price()
        line = self._attempts.connected()
        if self._adapter.key_needed and not self._attempts.key:
            raise TeacherError(
                f"{self.name}: wants a key; put it into the environment as {self._adapter.key}, or into a file of "
                f"mode 600 that {self._adapter.key}_FILE names"
            )
        return line


def fingerprint_of(name: str, url: str, model: str, dimensions: int | None, limits: Limits) -> str:
    """Return the digest of all that changes what a vendor's model embeds, or how."""
    kind = name.partition(":")[0]
    sent = [IMAGE_VERSION, limits.formats, limits.image_bytes, limits.image_pixels]
    sent += [limits.image_sides] if limits.image_sides else []
    decides = [kind, url, model, dimensions, *sent, EMBEDDING_VERSION]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]
