"""Is a teacher worth its price for these images? A small labelled sample shows it, before all are queried."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vl2v.config import PromptConfig, RunConfig
from vl2v.embeddings.bill import LedgerBudget, cost, with_budget
from vl2v.embeddings.fetch import Refusal, fetch, fetch_texts
from vl2v.embeddings.plan import Plan, clean_images, clean_view, plan
from vl2v.embeddings.schema import image_key
from vl2v.embeddings.session import buying, text_targets
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import ConfigError, StudentError, TeacherError
from vl2v.evaluation.alignment import probe
from vl2v.runs.features import Features
from vl2v.runs.query import QueryReport
from vl2v.runs.settings import Options, resolve, settings_of
from vl2v.runs.start import new_backbone
from vl2v.runs.teacher_verdict import Check, Sample, Skipped, draw_sample, verdict_of
from vl2v.session import Progress, Session, silent
from vl2v.students.student import Student
from vl2v.teachers import the_teacher
from vl2v.teachers.paid.teacher import as_paid
from vl2v.teachers.prompts import check_prompts, prompts_for
from vl2v.teachers.protocol import Teacher
from vl2v.training.device import OneDevice

Indices = NDArray[np.int64]
Vectors = NDArray[np.float32]

TEMPLATES = (
    "{class}",
    "a {class}",
    "a photo of a {class}",
    "a picture of a {class}",
    "an image of a {class}",
    "a drawing of a {class}",
)
FREE = 1000  # labelled images for the probe on the untrained student: they cost no query


def check_teacher(
    settings: Mapping[str, Any] | None = None,
    *,
    data: Path | str | Mapping[str, Any] | None = None,
    teacher: str | Mapping[str, Any] | None = None,
    student: str | Mapping[str, Any] | None = None,
    target: str | Sequence[str] | None = None,
    images: int = 200,
    store: Path | str | None = None,
    budget: float = 0,
    before: Callable[[str], None] = lambda line: None,
    progress: Progress = silent,
    **options: Unpack[Options],
) -> Check:
    """Evaluate a teacher on a small labelled sample, balanced over classes and domains.

    Its embeddings are saved and never queried again. The domains in `data.target` stay unseen.

    Args:
        settings: as for `distill`; `seed` draws the sample. So are the keywords, which are laid over it.
        data: the images.
        teacher: to check.
        student: whose untrained features the teacher is compared with.
        target: domains that stay unseen.
        images: how many to query, at most.
        store: the folder of the embedding store; by default the one that all runs share.
        budget: lifetime spending limit of this store for a paid teacher, in the vendor's currency.
        before: called with each line of the forecast, and of the notes, before the first query.
        progress: called with the progress.
        **options: see `vl2v.runs.settings.Options`.

    Raises:
        ConfigError: not a positive number of images.
        DataError: no labelled images, or of only one class.
        BudgetReached: every embedding paid for is saved; the same call with a larger budget resumes.

    Examples:
        >>> import vl2v
        >>> found = vl2v.check(data="images", teacher="recorded:vendor", images=12,
        ...     student={"name": "test_efficientnet", "weights": "none"})
        >>> 0 <= found.everything.accuracy <= 1
        True
    """
    given = settings_of(settings, data=data, teacher=teacher, student=student, target=target, **options)
    with _opened(given, images, store, budget, progress) as opened:
        for line in (*opened.notes, opened.everything().summary()):
            before(line)
        refused, skipped = _query(opened, progress)
        embeddings, source, sample = opened.store, opened.teacher, opened.sample
        texts = _embeddable(opened.wordings, skipped, opened.config.prompts, sample)
        tables = {setting: text_targets(embeddings, source.fingerprint, groups) for setting, groups in texts.items()}
        keys = [image_key(sha256, clean_view(opened.config.teacher.fit)) for sha256 in sample.audit.contents]
        covered = np.flatnonzero(embeddings.cached(source.fingerprint, keys))
        if not len(covered):
            raise TeacherError(f"{source.name}: refused all {len(keys)} images, first: {refused[0].reason}")
        vectors = embeddings.get(source.fingerprint, [keys[i] for i in covered])
    free = _probe_student(opened.config, opened.drawn, progress)
    found = verdict_of(opened.config, source, sample.of(covered), vectors, tables, free, refused, skipped)
    return replace(found, notes=(*opened.notes, *found.notes))


def check_cost(
    settings: Mapping[str, Any],
    *,
    images: int = 200,
    store: Path | str | None = None,
    progress: Progress = silent,
) -> QueryReport:
    """Return what `check_teacher` would query, and its price; query nothing.

    Args, Raises: as for `check_teacher`.
    """
    with _opened(settings, images, store, 0, progress) as opened:
        return opened.everything()


@dataclass(frozen=True)
class _Opened:
    """What a check works with.

    Attributes:
        drawn: labelled images for the untrained student.
        sample: the first of them: the teacher's sample.
        wordings: all class prompts, by the setting that makes them.
        teacher: with its budget, if it is paid.
        spending: the paid teacher's ledger and budget.
    """

    config: RunConfig
    drawn: Sample
    sample: Sample
    wordings: Mapping[str, list[list[str]]]
    store: EmbeddingStore
    teacher: Teacher
    spending: LedgerBudget | None
    notes: tuple[str, ...]

    def plan(self, groups: Iterable[list[str]]) -> Plan:
        texts = list(chain.from_iterable(groups))
        return plan(self.store, self.teacher, self.sample.dataset, self.sample.audit, texts, clean_images(self.config))

    def everything(self) -> QueryReport:
        """Return all queries, and their price."""
        queries = self.plan(chain.from_iterable(self.wordings.values()))
        bill = self.spending.bill() if self.spending else ""
        return QueryReport(queries, cost(queries, self.teacher, self.spending), (), bill)


@contextmanager
def _opened(
    settings: Mapping[str, Any], images: int, store: Path | str | None, budget: float, progress: Progress
) -> Iterator[_Opened]:
    """Draw a sample and open everything; see `check_teacher`."""
    if images < 1:
        raise ConfigError(f"--images {images}: must be 1 or more")
    config = resolve(settings)
    session = Session.of(store, budget, progress)
    drawn = draw_sample(config, max(images, FREE), session)
    sample = drawn.of(np.arange(min(images, len(drawn.dataset))))
    teacher = the_teacher(config.teacher)
    wordings = _wordings(config.prompts, sample)
    notes = check_prompts(sample.dataset.classes, wordings[""], teacher, refuse=False)
    with EmbeddingStore(session.store) as embeddings, with_budget(teacher, session, "vl2v teacher check") as spending:
        yield _Opened(config, drawn, sample, wordings, embeddings, teacher, spending, tuple(notes))


def _wordings(wanted: PromptConfig, sample: Sample) -> dict[str, list[list[str]]]:
    """Return all class prompts in several wordings, by setting; "" for the configuration's own."""
    changes: dict[str, dict[str, Any]] = {"": {}}
    changes |= {_templates(template): {"templates": [template]} for template in TEMPLATES}
    changes["prompts.domain_prompts=true"] = {"domain_prompts": True}
    found: dict[str, list[list[str]]] = {}
    for setting, change in changes.items():
        texts = prompts_for(sample.dataset.classes, wanted.model_copy(update=change), sample.domains)
        if texts not in found.values():
            found[setting] = texts
    return found


def _embeddable(
    wordings: Mapping[str, list[list[str]]], skipped: Sequence[Skipped], wanted: PromptConfig, sample: Sample
) -> dict[str, list[list[str]]]:
    """Return the wordings that weren't skipped, and the mean of all templates, which needs no further query."""
    unsuitable = {skip.setting for skip in skipped}
    templates = [template for template in TEMPLATES if _templates(template) not in unsuitable]
    found = {setting: groups for setting, groups in wordings.items() if setting not in unsuitable}
    if templates:
        change = {"templates": templates}
        together = prompts_for(sample.dataset.classes, wanted.model_copy(update=change), sample.domains)
        if together not in found.values():
            found[_templates(*templates)] = together
    return found


def _templates(*templates: str) -> str:
    listed = ", ".join(f'"{template}"' for template in templates)
    return f"prompts.templates=[{listed}]"


def _query(opened: _Opened, progress: Progress) -> tuple[list[Refusal], list[Skipped]]:
    """Query what isn't cached; return the refused images, and the wordings that the teacher can't embed.

    Raises:
        BudgetReached: every embedding paid for is saved.
        TeacherError: it can't be queried, or it can't embed the configuration's own prompts.
    """
    store, teacher, spending = opened.store, opened.teacher, opened.spending

    def with_bill(task: str, done: int, total: int, remark: str) -> None:
        progress(task, done, total, spending.bill() if spending else remark)

    if as_paid(teacher) is not None:
        with buying(store, teacher, progress):
            return fetch(opened.everything().plan, store, teacher, with_bill), []
    refused = fetch(opened.plan(opened.wordings[""]), store, teacher, with_bill)
    skipped = []
    for setting, groups in opened.wordings.items():
        try:
            fetch_texts(store, teacher, list(chain.from_iterable(groups)))
        except TeacherError as error:  # a recording has the texts that it has
            skipped.append(Skipped(setting, str(error).partition(";")[0]))
    return refused, skipped


def _probe_student(config: RunConfig, drawn: Sample, progress: Progress) -> dict[bytes, int] | str:
    """Return what a probe on the untrained student's features predicts for each content; or why there is none."""
    try:
        backbone, spec = new_backbone(config)
    except StudentError as error:
        return str(error)
    fabric = OneDevice(config.train)
    student = Student(backbone, nn.Identity(), spec).to(fabric.device)
    features = Features(student, drawn.dataset, fabric, config.data.processes, progress)
    found = probe(features.of(np.arange(len(drawn.dataset))).numpy(), drawn.dataset.labels, drawn.groups)
    return dict(zip(drawn.audit.sha256, found.tolist(), strict=True))
