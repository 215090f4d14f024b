"""Is a teacher worth its price for these pictures? A small labelled sample tells, before all are asked about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vl2v.config import PromptConfig, RunConfig
from vl2v.data import Audit, DomainDataset, audit, open_dataset
from vl2v.embeddings import Account, EmbeddingStore, Plan, Refusal, Views, fetch, fetch_texts, image_key, plan, text_key
from vl2v.embeddings.select import random_order
from vl2v.errors import ConfigError, DataError, StudentError, TeacherError
from vl2v.evaluation.alignment import Alignment, align, confusions, probe, shares
from vl2v.evaluation.intervals import Difference, Right, Share, paired_difference
from vl2v.runs.asking import cost, with_purse
from vl2v.runs.embed import Asked
from vl2v.runs.features import Features, new_backbone
from vl2v.runs.report import Report, silent
from vl2v.runs.settings import resolve
from vl2v.runs.teaching import class_prompts, default_store, the_teacher
from vl2v.students import Student
from vl2v.teachers import Teacher, text_classifier
from vl2v.teachers.rented import as_rented
from vl2v.training import new_fabric

Indices = NDArray[np.int64]
Vectors = NDArray[np.float32]
Tell = Callable[[str], None]

TEMPLATES = (
    "{class}",
    "a {class}",
    "a photo of a {class}",
    "a picture of a {class}",
    "an image of a {class}",
    "a drawing of a {class}",
)
FREE = 1000  # labelled pictures that the untaught student is probed on: they cost no query
FOLDS = 5  # where there is one domain only
UNSEEN = "on domains it didn't learn from"


@dataclass(frozen=True)
class Swap:
    """Pictures of one class that the teacher takes for another.

    Attributes:
        label: the class.
        answer: what it is taken for.
        count: how many pictures.
        example: path of one of them.
    """

    label: str
    answer: str
    count: int
    example: str


@dataclass(frozen=True)
class Wording:
    """Other prompts than those of the configuration, on the same sample.

    Attributes:
        setting: what sets them, as `--set` takes it.
        accuracy: 0 to 1.
        gain: over the configuration's prompts; all wordings' intervals hold at once.
    """

    setting: str
    accuracy: float
    gain: Difference


@dataclass(frozen=True)
class Skipped:
    """Prompts that weren't judged, and why."""

    setting: str
    reason: str


@dataclass(frozen=True)
class OddName:
    """A class whose name may mean something else to the teacher.

    Attributes:
        share: of its pictures that are answered correctly: fewer than of all classes' together.
        nearest: the class with the nearest text, which is answered instead most often.
        cosine: of the two texts.
        instead: how many pictures are taken for `nearest`.
        told: how many pictures the probe on the teacher's own embeddings, which knows no texts, answers correctly:
            more than the text does, and not by chance.
    """

    share: Share
    nearest: str
    cosine: float
    instead: int
    told: int

    def advice(self) -> str:
        """Return what to do about it."""
        name, count = self.share.name, self.share.pictures
        return (
            f"{name}: its text is nearest to that of {self.nearest} (cosine {self.cosine:.2f}), which is answered "
            f"instead for {self.instead} of {count} pictures; by the pictures alone {self.told} are told right, by the "
            f"text {self.share.correct}: try a clearer name, as prompts.overrides.{_key(name)}"
        )


@dataclass(frozen=True)
class Probed:
    """A linear probe on features, judged on the sample's pictures: what can be told without the teacher's texts.

    Attributes:
        share: answered correctly.
        pictures: labelled pictures that it learnt from, in all folds together.
        lead: how much more accurate the zero-shot teacher is.
    """

    share: Share
    pictures: int
    lead: Difference


@dataclass(frozen=True)
class Check:
    """What a labelled sample tells about a teacher.

    Attributes:
        teacher: its name.
        prompts: the configuration's templates.
        everything: zero-shot accuracy on the sample.
        domains: by domain.
        classes: by class.
        alignment: of pictures and texts.
        swaps: what is taken for what, the most frequent first.
        wordings: other prompts, the best first.
        skipped: prompts that the teacher has no answer to.
        names: classes whose names may mislead.
        student: a probe on the untaught student's features; None where it can't be had.
        own: the same on the teacher's own embeddings: what its pictures tell without its texts.
        held_out: how both probes were judged, in a few words.
        refused: pictures that the teacher won't answer about; they aren't in the sample.
        notes: what else is to be known.
    """

    teacher: str
    prompts: tuple[str, ...]
    everything: Share
    domains: tuple[Share, ...]
    classes: tuple[Share, ...]
    alignment: Alignment
    swaps: tuple[Swap, ...]
    wordings: tuple[Wording, ...]
    skipped: tuple[Skipped, ...]
    names: tuple[OddName, ...]
    student: Probed | None
    own: Probed
    held_out: str
    chance: float
    refused: tuple[Refusal, ...]
    notes: tuple[str, ...]

    def better(self) -> Wording | None:
        """Return the prompts that do better than noise would; None where there are none."""
        return next((wording for wording in self.wordings if wording.gain.low > 0), None)

    def verdict(self) -> str:
        """Return two or three sentences: is this teacher worth distilling for these pictures?"""
        low, high = self.everything.interval
        found = (
            f"{self.teacher} names {_percent(self.everything.accuracy)} of the pictures right "
            f"(95% interval {_percent(low)} to {_percent(high)}); chance is {_percent(self.chance)}."
        )
        return " ".join([found, self._worth(), self._weakness()])

    def _worth(self) -> str:
        low, _ = self.everything.interval
        if low <= self.chance:
            return "That can't be told from chance: not worth distilling with these class names and prompts."
        if self.student is None:
            return "There is no untaught student to compare it with."
        lead, share = self.student.lead, _percent(self.student.share.accuracy)
        untaught = (
            f"a linear probe on the untaught student's features gets {share} {self.held_out}; the difference is "
            f"{100 * lead.mean:+.1f} points ({100 * lead.low:+.1f} to {100 * lead.high:+.1f})."
        )
        if lead.low > 0:
            return f"Worth distilling: {untaught}"
        if lead.high < 0:
            return f"Not worth distilling as it is: {untaught}"
        return f"Hard to tell whether it is worth distilling: {untaught} Ask about more pictures."

    def _weakness(self) -> str:
        better = self.better()
        if better is not None:
            return f"Other prompts do better: {better.setting} gets {_percent(better.accuracy)}."
        if self.own.lead.high < 0:
            return (
                f"Its pictures tell more than its texts do (a probe on its own embeddings gets "
                f"{_percent(self.own.share.accuracy)}): better names and prompts are worth a try."
            )
        worst = min(self.domains, key=lambda share: share.accuracy)
        return f"It is weakest on {worst.name} ({_percent(worst.accuracy)})." if len(self.domains) > 1 else ""

    def to_json(self) -> dict[str, Any]:
        """Return plain types only."""
        tree = asdict(self)
        tree["everything"] = _share_json(self.everything)
        tree["domains"] = [_share_json(share) for share in self.domains]
        tree["classes"] = [_share_json(share) for share in self.classes]
        tree["alignment"]["margin"] = self.alignment.margin
        better = self.better()
        return {**tree, "better": better.setting if better else None, "verdict": self.verdict()}


def check_teacher(
    settings: Mapping[str, Any],
    *,
    pictures: int = 200,
    store: Path | str | None = None,
    budget: float = 0,
    tell: Tell = lambda words: None,
    report: Report = silent,
) -> Check:
    """Ask a teacher about a small labelled sample, balanced over classes and domains, and judge its answers.

    The answers are kept, and not asked for again by whatever comes after. The domains in `data.target` stay unseen.

    Args:
        settings: as for `distill`; `seed` draws the sample.
        pictures: how many to ask about, at most.
        store: the folder of the embedding store; by default the one that all runs share.
        budget: what a rented teacher may have been paid in all, ever, by this store; in its currency.
        tell: told what is to be asked, and at what price, before anything is.
        report: told how far it is.

    Raises:
        ConfigError: not a positive number of pictures.
        DataError: no labelled pictures, or of one class only.
        BudgetReached: all answers are kept; the same call with a larger budget goes on.
    """
    with _opened(settings, pictures, store, budget, report) as opened:
        asked = opened.everything()
        tell(asked.summary())
        refused, skipped = _ask(opened, asked.plan, report)
        answers, teacher, sample = opened.store, opened.teacher, opened.sample
        judged = _answerable(opened.wordings, skipped, opened.config.prompts, sample)
        tables = {setting: _texts(answers, teacher, groups) for setting, groups in judged.items()}
        keys = [image_key(sha256) for sha256 in sample.audit.sha256]
        answered = np.flatnonzero(answers.known(teacher.fingerprint, keys))
        if not len(answered):
            raise TeacherError(f"{teacher.name}: refused all {len(keys)} pictures, first: {refused[0].reason}")
        images = answers.get(teacher.fingerprint, [keys[i] for i in answered])
    free = _student_answers(opened.config, opened.drawn, report)
    return _judged(opened.config, teacher, sample.of(answered), images, tables, free, refused, skipped)


def check_cost(
    settings: Mapping[str, Any],
    *,
    pictures: int = 200,
    store: Path | str | None = None,
    report: Report = silent,
) -> Asked:
    """Return what `check_teacher` would ask, and at what price; ask nothing.

    Args, Raises: as for `check_teacher`.
    """
    with _opened(settings, pictures, store, 0, report) as opened:
        return opened.everything()


@dataclass(frozen=True)
class _Sample:
    """Labelled pictures, readable and no two alike, in the order in which they were drawn."""

    dataset: DomainDataset
    audit: Audit

    @property
    def domains(self) -> list[str]:
        return [self.dataset.domains[i] for i in np.unique(self.dataset.domain_ids)]

    @property
    def groups(self) -> Indices:
        """What probes leave out in turn [n]: domains; where there is one only, every fifth picture."""
        several = len(np.unique(self.dataset.domain_ids)) > 1
        return self.dataset.domain_ids if several else np.arange(len(self.dataset)) % FOLDS

    def of(self, places: Indices) -> _Sample:
        return _Sample(self.dataset.subset(places), self.audit.subset(places))


@dataclass(frozen=True)
class _Opened:
    """Everything that it takes to ask.

    Attributes:
        config: of the run.
        drawn: labelled pictures for the untaught student.
        sample: the first of them: what the teacher is asked about.
        wordings: all classes' texts, by what sets them.
        store: where answers are kept.
        teacher: has its purse by then, if it is a rented one.
        account: its bill.
    """

    config: RunConfig
    drawn: _Sample
    sample: _Sample
    wordings: Mapping[str, list[list[str]]]
    store: EmbeddingStore
    teacher: Teacher
    account: Account | None

    def plan(self, groups: Iterable[list[str]]) -> Plan:
        texts = list(chain.from_iterable(groups))
        return plan(self.store, self.teacher, self.sample.dataset, self.sample.audit, texts, Views())

    def everything(self) -> Asked:
        """Return all that is to be asked, and its price."""
        questions = self.plan(chain.from_iterable(self.wordings.values()))
        bill = self.account.bill() if self.account else ""
        return Asked(questions, cost(questions, self.teacher, self.account), (), bill)


@contextmanager
def _opened(
    settings: Mapping[str, Any], pictures: int, store: Path | str | None, budget: float, report: Report
) -> Iterator[_Opened]:
    """Draw a sample and open everything; see `check_teacher`."""
    if pictures < 1:
        raise ConfigError(f"pictures = {pictures}: a sample has 1 or more")
    config = resolve(settings)
    store = Path(store) if store else default_store()
    drawn = _draw(config, max(pictures, FREE), store / "audit.sqlite", report)
    sample = drawn.of(np.arange(min(pictures, len(drawn.dataset))))
    teacher = the_teacher(config.teacher)
    wordings = _wordings(config.prompts, sample)
    with EmbeddingStore(store) as answers, with_purse(teacher, store, budget, "vl2v teacher check") as account:
        yield _Opened(config, drawn, sample, wordings, answers, teacher, account)


def _draw(config: RunConfig, count: int, cache: Path, report: Report) -> _Sample:
    """Return so many labelled pictures, balanced over classes and domains; unreadable ones and copies are passed over.

    Raises:
        DataError: unknown domains, no labelled pictures, one class only.
    """
    data = config.data
    dataset = open_dataset(data.path, layout=data.layout, exclude=data.exclude)
    unseen = [dataset.domain_index(name) for name in data.target]
    labelled = np.flatnonzero((dataset.labels >= 0) & ~np.isin(dataset.domain_ids, unseen))
    if len(np.unique(dataset.labels[labelled])) < 2:
        raise DataError(f"{dataset.root}: a teacher is checked on labelled pictures of two classes or more; none such")
    order = labelled[_order(dataset.labels[labelled], dataset.domain_ids[labelled], config.seed)]
    chosen: dict[bytes, int] = {}  # content -> picture
    tell = lambda done, total: report("reading pictures", done, total, "")  # noqa: E731
    while len(chosen) < count and len(order):
        looked, order = order[: count - len(chosen)], order[count - len(chosen) :]
        found = audit(dataset.subset(looked), cache=cache, progress=tell)
        for place, picture in enumerate(looked):
            if place not in found.problems:
                chosen.setdefault(found.sha256[place], int(picture))
    if not chosen:
        raise DataError(f"{dataset.root}: no labelled picture can be read; `vl2v data inspect` tells why")
    return _Sample(dataset.subset(list(chosen.values())), Audit(tuple(chosen), {}))


def _order(labels: Indices, domains: Indices, seed: int) -> Indices:
    """Return an order whose every beginning has about as many pictures of each class, and of each domain."""
    order = random_order(len(labels), seed)
    labels, domains = labels[order], domains[order]
    count = domains.max() + 1
    first = np.lexsort(((labels + domains) % count, _turn(labels * count + domains)))  # classes begin elsewhere
    return order[first][np.argsort(_turn(labels[first]), kind="stable")]


def _turn(keys: Indices) -> Indices:
    """Return for each key how many like it come before."""
    order = np.argsort(keys, kind="stable")
    begins = np.append(True, np.diff(keys[order]) != 0)
    places = np.arange(len(keys))
    turn = np.empty_like(places)
    turn[order] = places - np.maximum.accumulate(np.where(begins, places, 0))
    return turn


def _wordings(wanted: PromptConfig, sample: _Sample) -> dict[str, list[list[str]]]:
    """Return all classes' texts in several wordings, by what sets them; "" for the configuration's own."""
    changes: dict[str, dict[str, Any]] = {"": {}}
    changes |= {_templates(template): {"templates": [template]} for template in TEMPLATES}
    changes["prompts.domain_prompts=true"] = {"domain_prompts": True}
    found: dict[str, list[list[str]]] = {}
    for setting, change in changes.items():
        texts = class_prompts(sample.dataset.classes, wanted.model_copy(update=change), sample.domains)
        if texts not in found.values():
            found[setting] = texts
    return found


def _answerable(
    wordings: Mapping[str, list[list[str]]], skipped: Sequence[Skipped], wanted: PromptConfig, sample: _Sample
) -> dict[str, list[list[str]]]:
    """Return the wordings without those that were skipped, and the mean of all templates, which asks nothing more."""
    unsuitable = {skip.setting for skip in skipped}
    templates = [template for template in TEMPLATES if _templates(template) not in unsuitable]
    found = {setting: groups for setting, groups in wordings.items() if setting not in unsuitable}
    if templates:
        change = {"templates": templates}
        together = class_prompts(sample.dataset.classes, wanted.model_copy(update=change), sample.domains)
        if together not in found.values():
            found[_templates(*templates)] = together
    return found


def _templates(*templates: str) -> str:
    listed = ", ".join(f'"{template}"' for template in templates)
    return f"prompts.templates=[{listed}]"


def _ask(opened: _Opened, everything: Plan, report: Report) -> tuple[list[Refusal], list[Skipped]]:
    """Ask what isn't known; return the refused pictures, and the wordings that the teacher can't answer.

    Raises:
        BudgetReached: all answers are kept.
        TeacherError: it can't be asked, or it can't answer the configuration's own prompts.
    """
    store, teacher, account = opened.store, opened.teacher, opened.account

    def progress(done: int, total: int) -> None:
        report(f"asking {teacher.name}", done, total, account.bill() if account else "")

    if as_rented(teacher) is not None:
        return fetch(everything, store, teacher, progress), []
    refused = fetch(opened.plan(opened.wordings[""]), store, teacher, progress)
    skipped = []
    for setting, groups in opened.wordings.items():
        try:
            fetch_texts(store, teacher, list(chain.from_iterable(groups)))
        except TeacherError as error:  # a recording has the texts that it has
            skipped.append(Skipped(setting, str(error).partition(";")[0]))
    return refused, skipped


def _texts(store: EmbeddingStore, teacher: Teacher, groups: Sequence[list[str]]) -> Vectors:
    return text_classifier([store.get(teacher.fingerprint, [text_key(text) for text in group]) for group in groups])


def _student_answers(config: RunConfig, drawn: _Sample, report: Report) -> dict[bytes, int] | str:
    """Return what a probe on the untaught student's features answers about each content; or why there is none."""
    try:
        backbone, spec = new_backbone(config)
    except StudentError as error:
        return str(error)
    student = Student(backbone, nn.Identity(), spec)
    features = Features(student, drawn.dataset, new_fabric(config.train), config.data.workers, report)
    found = probe(features.of(np.arange(len(drawn.dataset))).numpy(), drawn.dataset.labels, drawn.groups)
    return dict(zip(drawn.audit.sha256, found.tolist(), strict=True))


def _judged(
    config: RunConfig,
    teacher: Teacher,
    sample: _Sample,
    images: Vectors,
    tables: Mapping[str, Vectors],
    free: Mapping[bytes, int] | str,
    refused: Sequence[Refusal],
    skipped: Sequence[Skipped],
) -> Check:
    """Return what is to be said about the answers."""
    dataset, labels = sample.dataset, sample.dataset.labels
    texts = tables[""]
    answers = (images @ texts.T).argmax(1)
    right = answers == labels
    swapped = [
        Swap(dataset.classes[pair.label], dataset.classes[pair.answer], pair.count, dataset.paths[pair.example])
        for pair in confusions(labels, answers)
    ]
    own = probe(images, labels, sample.groups)
    notes, student = [], None
    if isinstance(free, str):
        notes.append(f"no comparison with an untaught student: {free}")
    else:
        guesses = np.array([free[sha256] for sha256 in sample.audit.sha256])
        student = _probed(guesses == labels, right, len(free))
    several = len(sample.domains) > 1
    if not several:
        notes.append("one domain only: probes are judged on other pictures of the same domain, which flatters them")
    return Check(
        teacher=teacher.name,
        prompts=tuple(config.prompts.templates),
        everything=Share("all", len(labels), int(right.sum())),
        domains=shares(dataset.domains, dataset.domain_ids, right),
        classes=shares(dataset.classes, labels, right),
        alignment=align(images, texts, labels),
        swaps=tuple(swapped),
        wordings=_compared(images, tables, labels, right),
        skipped=tuple(skipped),
        names=tuple(_odd_names(dataset.classes, texts, labels, answers, own)),
        student=student,
        own=_probed(own == labels, right, len(labels)),
        held_out=UNSEEN if several else "on pictures it didn't learn from",
        chance=1 / len(dataset.classes),
        refused=tuple(refused),
        notes=tuple(notes),
    )


def _probed(guessed: Right, right: Right, pictures: int) -> Probed:
    share = Share("all", len(guessed), int(guessed.sum()))
    return Probed(share, pictures, paired_difference(right, guessed))


def _compared(images: Vectors, tables: Mapping[str, Vectors], labels: Indices, right: Right) -> tuple[Wording, ...]:
    found = []
    for setting, texts in tables.items():
        if setting:
            other = (images @ texts.T).argmax(1) == labels
            gain = paired_difference(other, right, judged=len(tables) - 1)
            found.append(Wording(setting, float(other.mean()), gain))
    return tuple(sorted(found, key=lambda wording: -wording.accuracy))


def _odd_names(
    names: Sequence[str], texts: Vectors, labels: Indices, answers: Indices, guesses: Indices
) -> Iterator[OddName]:
    """Yield the classes that do worse than all together, though their pictures could be told apart without the texts.

    Most of what is answered wrongly goes to the class with the nearest text.

    Args:
        names: of the classes.
        texts: [C, d].
        labels: [n] classes.
        answers: [n] by the texts.
        guesses: [n] by a probe that knows no texts.
    """
    cosines = texts @ texts.T
    np.fill_diagonal(cosines, -1)
    right = answers == labels
    swaps = {pair.label: pair for pair in reversed(confusions(labels, answers))}  # of each class the most frequent one
    for share in shares(tuple(names), labels, right):
        label = names.index(share.name)
        nearest = int(cosines[label].argmax())
        here = labels == label
        told = guesses[here] == label
        poor = share.interval[1] < right.mean() and paired_difference(told, right[here]).low > 0
        if poor and label in swaps and swaps[label].answer == nearest:
            yield OddName(share, names[nearest], float(cosines[label, nearest]), swaps[label].count, int(told.sum()))


def _share_json(share: Share) -> dict[str, Any]:
    low, high = share.interval
    return {**asdict(share), "accuracy": share.accuracy, "low": low, "high": high}


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else f'"{name}"'
