"""One teacher and one run's images and classes: what is cached, what is queried, the targets to learn from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from vl2v.config import PromptConfig, RunConfig
from vl2v.data.auditing import Audit
from vl2v.data.dataset import DomainDataset
from vl2v.embeddings.bill import LedgerBudget
from vl2v.embeddings.fetch import Refusal, fetch, same_model
from vl2v.embeddings.plan import Plan, Views, plan
from vl2v.embeddings.rows import FILE_NAME
from vl2v.embeddings.schema import image_key, text_key
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import ConfigError, StoreError, TeacherError
from vl2v.io import locked
from vl2v.session import Progress, default_store
from vl2v.teachers import OnlineTeacher
from vl2v.teachers.paid.teacher import PaidTeacher, as_paid
from vl2v.teachers.prompts import domain_template, prompts_for, text_classifier
from vl2v.teachers.protocol import Teacher
from vl2v.tree import toml_key

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class TeacherTargets:
    """Everything that a student learns of its images from the teacher and the labels, by dataset index.

    Attributes:
        labels: [N], -1 for unlabelled.
        images: teacher embeddings [N, 1 + K, d], the clean image's first, zeros for images that weren't queried;
            None without a teacher.
        texts: T [C, d]; None without a teacher.
        online: for an online teacher: uint8 pixels [n, s, s, 3] -> I(x) [n, d].
        domains: [N].
        anchors: embeddings of each class in each source domain's words [C, D, d]; None unless the method wants them.
        adapted: W and b, side by side, of an adapted teacher's logits I(x) . W^T + b [C, d + 1]; None: s I(x) . T^T.
    """

    labels: NDArray[np.int64]
    images: NDArray[np.float16] | None = None
    texts: NDArray[np.float32] | None = None
    scale: float = 1.0
    online: OnlineTeacher | None = None
    domains: NDArray[np.int64] | None = None
    anchors: NDArray[np.float32] | None = None
    adapted: NDArray[np.float32] | None = None

    def queried(self, indices: Indices) -> Indices:
        """Return those of the images that have a teacher embedding."""
        return indices[:0] if self.images is None else indices[self.images[indices, 0].any(1)]


def targets(
    store: EmbeddingStore,
    fingerprint: str,
    audit: Audit,
    views: Views,
    indices: Sequence[int] | NDArray[np.int64] | None = None,
) -> NDArray[np.float16]:
    """Return the image targets I(x) of training: float16 [n, 1 + k, dim], the clean view first, unit rows.

    Args:
        indices: n of the audit's images; None: all of them.

    Raises:
        StoreError: embeddings are missing or damaged; the message counts them and names the command that gets them.
    """
    chosen = range(len(audit.sha256)) if indices is None else [int(i) for i in indices]
    keys = [image_key(audit.contents[index], name) for index in chosen for name in views.names]
    rows = store.get_half(fingerprint, keys)
    return rows.reshape(len(chosen), len(views), rows.shape[1])


def text_targets(store: EmbeddingStore, fingerprint: str, prompts: Sequence[Sequence[str]]) -> NDArray[np.float32]:
    """Return the class targets T [C, d] of training, unit rows.

    Raises:
        StoreError: embeddings are missing or damaged.
    """
    return text_classifier([store.get(fingerprint, [text_key(text) for text in group]) for group in prompts])


def class_text(
    name: str,
    prompts: PromptConfig,
    domains: Sequence[str],
    fingerprint: str,
    store: EmbeddingStore,
    query: Callable[[list[str]], None],
) -> NDArray[np.float32]:
    """Return the text embedding [d] of a class, a unit vector.

    Args:
        prompts: settings of the run's class prompts.
        domains: the run's source domains, for domain prompts.
        query: called with the class's prompts if some aren't cached; saves their embeddings.

    Raises:
        StoreError: it didn't.
    """
    (texts,) = prompts_for([name], prompts, domains)
    keys = [text_key(text) for text in texts]
    if not store.cached(fingerprint, keys).all():
        query(texts)
    return np.asarray(text_targets(store, fingerprint, [texts])[0])


def anchor_prompts(classes: Sequence[str], prompts: PromptConfig, domains: Sequence[str]) -> list[list[list[str]]]:
    """Return the texts of every class in each domain's words alone: for each domain those of every class."""
    templates = [domain_template(domain, articles=prompts.articles) for domain in domains]
    alone = [prompts.model_copy(update={"templates": [text], "domain_prompts": False}) for text in templates]
    return [prompts_for(classes, one, []) for one in alone]


SIZES = range(16, 1025)  # that students' images may have, in pixels

Fetch = Callable[[Plan, EmbeddingStore, Teacher, Progress, Callable[[], None]], list[Refusal]]
FitScale = Callable[[NDArray[np.float32], Indices], float]
"""The logit scale that fits cosines [n, C] and labels [n]."""


@contextmanager
def buying(store: EmbeddingStore, teacher: Teacher, progress: Progress) -> Iterator[None]:
    """Keep other processes from querying a paid teacher meanwhile; afterwards the store has what was bought."""
    waiting = partial(progress, f"waiting for another process that queries {teacher.name}", 0, 1, "")
    with locked(store.path / f"buying-{teacher.fingerprint}.lock", waiting=waiting):
        yield


def copy_from_shared(queries: Plan, store: EmbeddingStore, teacher: PaidTeacher, progress: Progress) -> None:
    """Copy a paid teacher's embeddings from the shared store into another one, so that they aren't bought again.

    The bill stays where it was paid. Nothing is copied if the model has changed under its name.

    Args:
        queries: that are due; where the shared store has none of them, nothing is copied.
    """
    shared = default_store()
    if not (shared / FILE_NAME).is_file() or shared.resolve() == store.path.resolve():
        return
    with EmbeddingStore(shared, read_only=True) as theirs:
        wanted = [*queries.keys, *map(text_key, queries.pending_texts)]
        theirs.recognise(teacher)
        if not theirs.cached(teacher.fingerprint, wanted).any():
            return
        same_model(store, teacher)  # its first embeddings there: those of the shared store have to agree
        try:
            with store.absorbing(theirs, teacher.fingerprint) as new:
                pass
            store.recognise(teacher)
        except StoreError as error:
            progress(f"nothing is copied from {shared}: {error}", 1, 1, "")
            return
    progress(f"copied from {shared}: {new:,} embeddings of {teacher.name}", 1, 1, "")


def dim_of(store: EmbeddingStore, teacher: Teacher) -> int:
    """Return d, from the store where it is there: of a paid teacher it costs a query."""
    dims = {record.fingerprint: record.dim for record in store.teachers()}
    return dims.get(teacher.fingerprint) or teacher.dim


@dataclass(frozen=True)
class TeacherSession:
    """One teacher and the images and classes that a run queries it about.

    Attributes:
        teacher: is queried; a paid one has its budget by then.
        spending: its bill; None for a teacher that costs nothing.
        dataset: the images.
        audit: of them.
        sources: the source domains, for domain prompts.
        progress: called as the queries go on.
        others: classes without images; their prompts are queried, and nothing is learnt from them.
        fetch: sends the queries; by default from this process.
        buys_new_sizes: whether a paid teacher may be queried for views of one size though another size is cached.
        with_anchors: whether the targets hold every class in each source domain's own words.
        fit_scale: for a teacher whose logit scale isn't published.
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
    fetch: Fetch = fetch
    buys_new_sizes: bool = True
    with_anchors: bool = False
    fit_scale: FitScale | None = None

    @cached_property
    def anchors(self) -> list[list[list[str]]]:
        """Per source domain, the prompts of every class in that domain's words; empty unless wanted."""
        return anchor_prompts(self.dataset.classes, self.config.prompts, self.sources) if self.with_anchors else []

    @property
    def prompts(self) -> list[list[str]]:
        """The prompts of every class."""
        return self.prompts_of(self.dataset.classes)

    def prompts_of(self, classes: Sequence[str]) -> list[list[str]]:
        """Return the prompts of some classes."""
        return prompts_for(classes, self.config.prompts, self.sources)

    def plan(self, indices: Indices | None = None) -> Plan:
        """Return what is cached, and what is left to query, of the prompts and these images (None: all)."""
        chosen = np.unique(self.same(np.arange(len(self.dataset)) if indices is None else indices))
        others = self.prompts_of(self.others)
        texts = [text for group in (*self.prompts, *others, *chain.from_iterable(self.anchors)) for text in group]
        part = self.dataset.subset(chosen), self.audit.subset(chosen)
        return plan(self.store, self.teacher, *part, texts, self.views)

    def query(self, indices: Indices | None = None) -> list[Refusal]:
        """Query what isn't cached of these images (None: all) and of the prompts; return the images refused.

        Raises:
            BudgetReached: every embedding paid for is saved.
            ConfigError: see `buys_new_sizes`.
            TeacherError: it can't be queried, or its embeddings can't be used.
        """
        queries = self.plan(indices)
        if self.spending is None or not queries.queries:
            return self._query(queries)
        with buying(self.store, self.teacher, self.progress):
            if (paid := as_paid(self.teacher)) is not None:
                copy_from_shared(self.plan(indices), self.store, paid, self.progress)
            return self._query(self.plan(indices))  # what another process has bought meanwhile is cached now

    def _query(self, queries: Plan) -> list[Refusal]:
        about, others = "", self.other_sizes(queries)
        if others:
            sizes = f"views of {self.views.size} px, those cached are of {', '.join(map(str, others))} px"
            if self.spending and not self.buys_new_sizes:
                raise ConfigError(
                    f"teacher.views = {self.views.k}: {sizes}; give student.image_size={others[0]}, "
                    "or buy these first: `vl2v embed` with the settings of this run"
                )
            about = f" about {sizes}"

        def progress(task: str, done: int, total: int, remark: str) -> None:
            self.progress(task + about, done, total, self.spending.bill() if self.spending else remark)

        return self.fetch(queries, self.store, self.teacher, progress, self._check_texts)

    def other_sizes(self, queries: Plan) -> list[int]:
        """Return the sizes, in pixels, of which views are cached that these queries want of another size.

        Looked up for the first and the last image. A store from before version 3 doesn't name its views: there, every
        size is tried.
        """
        wanted = sorted({index for index, view in queries.pending if view})
        named = self.store.views()
        sizes = []
        for size in SIZES:
            name = replace(self.views, k=1, size=size).names[1]
            if size != self.views.size and (named is None or name in named):
                keys = [image_key(queries.contents[index], name) for index in {*wanted[:1], *wanted[-1:]}]
                if self.store.cached(self.teacher.fingerprint, keys).any():
                    sizes.append(size)
        return sizes

    def cached(self, indices: Indices) -> NDArray[np.bool_]:
        """Return whether all views of each image are in the store: bool [n]."""
        keys = [image_key(self.audit.contents[i], name) for i in self.same(indices) for name in self.views.names]
        return np.asarray(self.store.cached(self.teacher.fingerprint, keys).reshape(-1, len(self.views)).all(1))

    def contents(self, indices: Indices) -> list[str]:
        """Return the SHA-256 of each image's file, in hexadecimal."""
        return [self.audit.sha256[i].hex() for i in indices]

    def same(self, indices: Indices) -> Indices:
        """Return the image whose embedding each of these takes: of copies the first."""
        return self._first[indices]

    @cached_property
    def _first(self) -> Indices:
        first: dict[bytes, int] = {}
        return np.array([first.setdefault(sha256, i) for i, sha256 in enumerate(self.audit.sha256)], np.int64)

    def targets(self, indices: Indices | None = None) -> TeacherTargets:
        """Return the targets to learn from; images that are refused, or not among these, have rows of zeros."""
        everything = np.arange(len(self.dataset))
        chosen = everything if indices is None else indices
        chosen = chosen[self.cached(chosen)]
        images = np.zeros((len(everything), len(self.views), dim_of(self.store, self.teacher)), np.float16)
        images[chosen] = targets(self.store, self.teacher.fingerprint, self.audit, self.views, self.same(chosen))
        texts = self.texts()
        scale = self._scale(chosen, images[:, 0], texts)
        of_domains = [text_targets(self.store, self.teacher.fingerprint, prompts) for prompts in self.anchors]
        anchors = np.stack(of_domains, 1) if of_domains else None
        return TeacherTargets(
            self.dataset.labels, images, texts, scale, domains=self.dataset.domain_ids, anchors=anchors
        )

    def _check_texts(self) -> None:
        """Refuse classes with one embedding, before an image is queried, too."""
        self.texts()

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
                    f"classes {other!r} and {name!r}: {self.teacher.name} embeds their texts alike, so it can "
                    f"never tell them apart; give one of them another text with prompts.overrides.{toml_key(name)}"
                )
        return texts

    def _scale(self, chosen: Indices, images: NDArray[np.float16], texts: NDArray[np.float32]) -> float:
        """Return the logit scale; of a vendor that doesn't publish it, the one that fits its own embeddings best.

        Raises:
            TeacherError: it isn't published, and no labelled image was embedded.
        """
        scale = self.config.teacher.logit_scale or self.teacher.logit_scale
        if scale is not None:
            return scale
        assert self.fit_scale is not None
        labelled = chosen[self.dataset.labels[chosen] >= 0]
        if not len(labelled):
            raise TeacherError(
                f"{self.teacher.name}: its logit scale isn't published, and there is no labelled image to fit it "
                "by; give teacher.logit_scale (CLIP: 100)"
            )
        return self.fit_scale(images[labelled].astype(np.float32) @ texts.T, self.dataset.labels[labelled])
