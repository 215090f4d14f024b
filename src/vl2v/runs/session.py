"""Asking a teacher about a run's images and classes: what is known, what it would cost, the purse, the answers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vl2v.config import RunConfig, toml_key
from vl2v.data import Audit, DomainDataset, ImageError, image_size
from vl2v.embeddings import (
    EmbeddingStore,
    Ledger,
    LedgerBudget,
    Plan,
    Refusal,
    Views,
    fetch,
    image_key,
    money,
    plan,
    targets,
    text_key,
    text_targets,
)
from vl2v.embeddings.fetch import same_model
from vl2v.embeddings.store import FILE_NAME
from vl2v.errors import ConfigError, StoreError, TeacherError, VL2VWarning
from vl2v.io import locked
from vl2v.methods import find_method
from vl2v.progress import Progress
from vl2v.runs.datasets import Sources
from vl2v.runs.teaching import anchor_prompts, default_store, online
from vl2v.teachers import Teacher, check_prompts, prompts_for
from vl2v.teachers.paid.teacher import CANARY_IMAGE, CANARY_SIZE, CANARY_TEXT, Forecast, PaidTeacher, as_paid, micro_of

if TYPE_CHECKING:
    from vl2v.runs.cluster import Cluster
    from vl2v.training.batches import TeacherTargets

SIZES = range(16, 1025)  # that students' images may have, in pixels
LOOKED_AT = 256  # images whose size is read for a forecast

Indices = NDArray[np.int64]


@contextmanager
def buying(store: EmbeddingStore, teacher: Teacher, progress: Progress) -> Iterator[None]:
    """Keep others from asking a rented teacher meanwhile: they would buy the same; afterwards they find it known."""
    waiting = partial(progress, f"waiting for another process that queries {teacher.name}", 0, 1, "")
    with locked(store.path / f"buying-{teacher.fingerprint}.lock", waiting=waiting):
        yield


def take_over(queries: Plan, store: EmbeddingStore, teacher: PaidTeacher, progress: Progress) -> None:
    """Copy what the common store knows of a teacher into another store, so that it isn't bought again.

    The bill stays where it was paid. Nothing is taken over if the teacher answers differently by now.

    Args:
        questions: that are to be asked; where the common store knows none of the answers, nothing is copied.
        store: gets the answers.
        teacher: has its purse.
        progress: called with what was copied.
    """
    common = default_store()
    if not (common / FILE_NAME).is_file() or common.resolve() == store.path.resolve():
        return
    with EmbeddingStore(common, read_only=True) as theirs:
        wanted = [*queries.keys, *map(text_key, queries.pending_texts)]
        theirs.recognise(teacher)
        if not theirs.known(teacher.fingerprint, wanted).any():
            return
        same_model(store, teacher)  # its first answers there: those of the common store have to agree
        try:
            with store.absorbing(theirs, teacher.fingerprint) as new:
                pass
            store.recognise(teacher)
        except StoreError as error:
            progress(f"nothing is taken over from {common}: {error}", 1, 1, "")
            return
    progress(f"taken over from {common}: {new:,} answers of {teacher.name}", 1, 1, "")


@contextmanager
def with_budget(teacher: Teacher, store: Path, budget: float, asker: str) -> Iterator[LedgerBudget | None]:
    """Give a rented teacher its purse while the block lasts; a teacher that costs nothing needs none.

    Args:
        teacher: who will be asked.
        store: the folder with the ledger.
        budget: what the teacher may have been paid in all, ever, by this ledger; in units of its currency.
        asker: the run folder, or the command, for the bill.
    """
    paid = as_paid(teacher)
    with spending_of(teacher, store, budget, asker) as spending:
        if paid is None:
            yield spending
            return
        paid.budget = spending
        try:
            yield spending
        finally:
            paid.budget = None


@contextmanager
def spending_of(teacher: Teacher, store: Path, budget: float, asker: str) -> Iterator[LedgerBudget | None]:
    """Yield a rented teacher's account, to read its bill, whoever is asking it; None: the teacher costs nothing.

    Args: as for `with_budget`.
    """
    paid, limit = as_paid(teacher), micro_of(budget)
    if paid is None:
        yield None
        return
    with Ledger(store) as ledger:
        yield LedgerBudget(ledger, teacher.name, paid.currency, limit, asker)


def dim_of(store: EmbeddingStore, teacher: Teacher) -> int:
    """Return d: as the store remembers it, so that a paid teacher isn't asked for it again."""
    known = {record.fingerprint: record.dim for record in store.teachers()}
    return known.get(teacher.fingerprint) or teacher.dim


@dataclass(frozen=True)
class TeacherSession:
    """One teacher and all that a run wants to know of it.

    Attributes:
        config: of the run.
        store: where answers are kept.
        teacher: is asked; a rented one has its purse by then.
        account: its bill.
        dataset: the images.
        audit: of them.
        sources: the domains to learn from, for domain prompts.
        views: the fixed views, if any.
        progress: called as the work goes on.
        others: classes that there is no image of; their texts are queried, and nothing is learnt from them.
        cluster: that asks; None: this process.
        buys_new_sizes: whether a rented teacher may be asked about views of one size though those of another are known.
    """

    config: RunConfig
    store: EmbeddingStore
    teacher: Teacher
    spending: LedgerBudget | None
    dataset: DomainDataset
    audit: Audit
    sources: Sequence[str]
    views: Views
    progress: Progress
    others: Sequence[str] = ()
    cluster: Cluster | None = None
    buys_new_sizes: bool = True

    @cached_property
    def anchors(self) -> list[list[list[str]]]:
        """For methods that want them, the texts of every class in each source domain's words; else nothing."""
        wanted = find_method(self.config.method).anchors
        return anchor_prompts(self.dataset.classes, self.config.prompts, self.sources) if wanted else []

    @property
    def prompts(self) -> list[list[str]]:
        """Every text of every class."""
        return self.prompts_of(self.dataset.classes)

    def prompts_of(self, classes: Sequence[str]) -> list[list[str]]:
        """Return every text of some classes."""
        return prompts_for(classes, self.config.prompts, self.sources)

    def plan(self, indices: Indices | None = None) -> Plan:
        """Return what is to be asked about the texts and these images (None: all), and what is known."""
        chosen = np.unique(self.same(np.arange(len(self.dataset)) if indices is None else indices))
        others = self.prompts_of(self.others)
        texts = [text for group in (*self.prompts, *others, *chain.from_iterable(self.anchors)) for text in group]
        part = self.dataset.subset(chosen), self.audit.subset(chosen)
        return plan(self.store, self.teacher, *part, texts, self.views)

    def ask(self, indices: Indices | None = None) -> list[Refusal]:
        """Ask what isn't known yet about these images (None: all) and the texts; return what was refused.

        Raises:
            BudgetReached: all answers are kept.
            ConfigError: see `buys_new_sizes`.
            TeacherError: it can't be asked, or its answers can't be used.
        """
        queries = self.plan(indices)
        if self.spending is None or not queries.queries:
            return self._ask(queries)
        with buying(self.store, self.teacher, self.progress):
            if (paid := as_paid(self.teacher)) is not None:
                take_over(self.plan(indices), self.store, paid, self.progress)
            return self._ask(self.plan(indices))  # what another process has bought meanwhile is known now

    def _ask(self, queries: Plan) -> list[Refusal]:
        about, others = "", self.other_sizes(queries)
        if others:
            known = f"views of {self.views.size} px, those cached are of {', '.join(map(str, others))} px"
            if self.spending and not self.buys_new_sizes:
                raise ConfigError(
                    f"teacher.views = {self.views.k}: {known}; give student.image_size={others[0]}, "
                    "or buy these first: `vl2v embed` with the settings of this run"
                )
            about = f" about {known}"

        def progress(task: str, done: int, total: int, remark: str) -> None:
            self.progress(task + about, done, total, self.spending.bill() if self.spending else remark)

        asked = queries, self.store, self.teacher, progress
        return self.cluster.fetch(*asked, self.config.teacher) if self.cluster else fetch(*asked)

    def other_sizes(self, queries: Plan) -> list[int]:
        """Return the sizes, in pixels, of which the views are known that these questions want of another size.

        The store has the views' keys only; so every size is tried, with the first and the last image.
        """
        wanted = sorted({index for index, view in queries.pending if view})
        sizes = [size for size in SIZES if size != self.views.size]
        names = [replace(self.views, k=1, size=size).names[1] for size in sizes]
        known = np.zeros(len(sizes), np.bool_)
        for index in {wanted[0], wanted[-1]} if wanted else ():
            keys = [image_key(queries.contents[index], name) for name in names]
            known |= self.store.known(self.teacher.fingerprint, keys)
        return [size for size, there in zip(sizes, known, strict=True) if there]

    def known(self, indices: Indices) -> NDArray[np.bool_]:
        """Return whether all views of each image are answered: bool [n]."""
        keys = [image_key(self.audit.contents[i], name) for i in self.same(indices) for name in self.views.names]
        return np.asarray(self.store.known(self.teacher.fingerprint, keys).reshape(-1, len(self.views)).all(1))

    def contents(self, indices: Indices) -> list[str]:
        """Return the SHA-256 of each image's file, in hexadecimal."""
        return [self.audit.sha256[i].hex() for i in indices]

    def same(self, indices: Indices) -> Indices:
        """Return the image whose answer each of these takes: of copies the first."""
        return self._first[indices]

    @cached_property
    def _first(self) -> Indices:
        first: dict[bytes, int] = {}
        return np.array([first.setdefault(sha256, i) for i, sha256 in enumerate(self.audit.sha256)], np.int64)

    def answers(self, indices: Indices | None = None) -> TeacherTargets:
        """Return what is to be learnt; images that aren't among these, or that were refused, have rows of zeros."""
        from vl2v.training.batches import TeacherTargets

        everything = np.arange(len(self.dataset))
        chosen = everything if indices is None else indices
        chosen = chosen[self.known(chosen)]
        images = np.zeros((len(everything), len(self.views), dim_of(self.store, self.teacher)), np.float16)
        images[chosen] = targets(self.store, self.teacher.fingerprint, self.audit, self.views, self.same(chosen))
        texts = self.texts()
        scale = self._scale(chosen, images[:, 0], texts)
        of_domains = [text_targets(self.store, self.teacher.fingerprint, prompts) for prompts in self.anchors]
        anchors = np.stack(of_domains, 1) if of_domains else None
        return TeacherTargets(
            self.dataset.labels, images, texts, scale, domains=self.dataset.domain_ids, anchors=anchors
        )

    def texts(self) -> NDArray[np.float32]:
        """Return T [C, d].

        Raises:
            ConfigError: two classes have one embedding.
        """
        texts, seen = text_targets(self.store, self.teacher.fingerprint, self.prompts), dict[bytes, str]()
        for name, row in zip(self.dataset.classes, texts, strict=True):
            other = seen.setdefault(row.tobytes(), name)
            if other != name:
                raise ConfigError(
                    f"classes {other!r} and {name!r}: {self.teacher.name} embeds their texts alike, so that it never "
                    f"tells one from the other; give one of them another text with prompts.overrides.{toml_key(name)}"
                )
        return texts

    def _scale(self, chosen: Indices, images: NDArray[np.float16], texts: NDArray[np.float32]) -> float:
        """Return the logit scale; of a vendor that doesn't tell, the one that fits its own answers best.

        Raises:
            TeacherError: it doesn't tell, and no labelled image was answered.
        """
        scale = self.config.teacher.logit_scale or self.teacher.logit_scale
        if scale is not None:
            return scale
        labelled = chosen[self.dataset.labels[chosen] >= 0]
        if not len(labelled):
            raise TeacherError(
                f"{self.teacher.name}: doesn't tell its logit scale, and no labelled index was asked about to "
                "fit it; give teacher.logit_scale (CLIP: 100)"
            )
        import torch

        from vl2v.evaluation import fit_temperature

        cosines = torch.from_numpy(images[labelled].astype(np.float32) @ texts.T)
        return 1 / fit_temperature(cosines, torch.from_numpy(self.dataset.labels[labelled]))


def open_session(
    config: RunConfig,
    store: EmbeddingStore,
    teacher: Teacher,
    spending: LedgerBudget | None,
    sources: Sources,
    views: Views,
    progress: Progress,
) -> TeacherSession:
    """Return what asks a teacher about images to learn from.

    Raises:
        ConfigError: settings that don't go together.
    """
    wanted = config.teacher
    if queries_online(config):
        online(wanted, teacher)  # refuses a black box, before it is paid
    if wanted.online and wanted.views:
        raise ConfigError("teacher.online and teacher.views exclude one another; set teacher.online=false, or no views")
    dataset = sources.dataset
    _check_names(config.prompts.overrides, (*dataset.classes, *sources.others))
    names = (*dataset.classes, *sources.others)
    for note in check_prompts(names, prompts_for(names, config.prompts, sources.names), teacher):
        warnings.warn(note, VL2VWarning, stacklevel=2)
    of_run = dataset, sources.audit, sources.names, views, progress, sources.others
    return TeacherSession(config, store, teacher, spending, *of_run)


def queries_online(config: RunConfig) -> bool:
    """Return whether the teacher is asked about every augmented batch: by methods that learn from such answers."""
    return config.teacher.online and find_method(config.method).queries == "images"


def _check_names(overrides: Iterable[str], classes: Sequence[str]) -> None:
    """Refuse overrides of classes that are misspelt; others may be for classes that come later.

    Raises:
        ConfigError: one is.
    """
    import difflib

    for name in set(overrides) - set(classes):
        close = difflib.get_close_matches(name, set(classes) - set(overrides), n=1)
        if close:
            raise ConfigError(f"prompts.overrides.{name}: the data have no such class; did you mean {close[0]}?")


@dataclass(frozen=True)
class Cost:
    """What asking would take of a rented teacher, at most, by what is known before."""

    forecast: Forecast
    currency: str
    bill: str
    doubt: str

    def price(self) -> str:
        """Return the price in a few words."""
        amount = f"at most {money(self.forecast.micro, self.currency)}"
        return f"{amount}, unverified ({self.doubt})" if self.doubt else amount

    def summary(self) -> str:
        """Return two lines for people."""
        most = self.forecast
        time = f"{most.seconds / 60:.0f} min" if most.seconds >= 90 else f"{most.seconds:.0f} s"
        return (
            f"requests: {most.requests:,}, tokens: at most {most.tokens:,}, "
            f"price: {self.price()}, time at the rate limit: {time}\nspent so far: {self.bill}"
        )


def cost(plan: Plan, teacher: Teacher, spending: LedgerBudget | None) -> Cost | None:
    """Return what the plan's questions and the two of every session would cost; None for a teacher that costs nothing.

    Sizes are read of at most `LOOKED_AT` images, evenly drawn.

    Raises:
        TeacherError: no price is known.
    """
    paid = as_paid(teacher)
    if paid is None or spending is None:
        return None
    count = len(plan.pending)
    drawn = [plan.pending[i][0] for i in np.linspace(0, count - 1, min(count, LOOKED_AT)).astype(int)]
    evaluated = [_size(plan.dataset, index) for index in drawn]
    sizes = (evaluated[i % len(evaluated)] for i in range(count))
    letters = ((len(text.encode()), 1) for text in plan.pending_texts)
    forecast = paid.forecast("image", sizes) + paid.forecast("text", letters)
    if plan.queries:
        known = [CANARY_TEXT, as_text(CANARY_IMAGE) if (as_text := getattr(paid, "image_as_text", None)) else None]
        forecast += paid.forecast("image", [CANARY_SIZE])
        forecast += sum((paid.forecast("text", [(len(text), 1)]) for text in known if text), Forecast(0, 0, 0, 0.0))
    bill = money(spending.committed, spending.currency)
    return Cost(forecast, paid.currency, bill, paid.doubt)


def _size(dataset: DomainDataset, index: int) -> tuple[int, int]:
    try:
        return image_size(dataset.read(index))
    except (ImageError, OSError):
        return (0, 0)
