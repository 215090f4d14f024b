"""A teacher evaluated on a labelled sample: figures with intervals, and a plain verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vl2v.config import RunConfig
from vl2v.data import audit
from vl2v.data.auditing import Audit
from vl2v.data.dataset import DomainDataset
from vl2v.embeddings.fetch import Refusal
from vl2v.embeddings.plan import random_order
from vl2v.errors import DataError
from vl2v.evaluation.adapted import Embedded, left_out_predictions
from vl2v.evaluation.alignment import Alignment, accuracy_by_group, align, confusions, probe
from vl2v.evaluation.compare import Difference, Right, Share, paired_difference
from vl2v.evaluation.ridge import held_out
from vl2v.runs.datasets import audit_cache, open_data
from vl2v.session import Session
from vl2v.teachers.protocol import Teacher
from vl2v.tree import toml_key

Indices = NDArray[np.int64]
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """Labelled images, readable and no two alike, in the order drawn: a beginning of it is a sample, too."""

    dataset: DomainDataset
    audit: Audit

    @property
    def domains(self) -> list[str]:
        """The domains that it has images of."""
        return self.dataset.labelled_domains

    @property
    def groups(self) -> Indices:
        """What probes leave out in turn [n]: domains; where there is one only, every fifth image."""
        return held_out(self.dataset.domain_ids)

    def of(self, indices: Indices) -> Sample:
        """Return the sample of some of its images."""
        return Sample(self.dataset.subset(indices), self.audit.subset(indices))


def draw_sample(config: RunConfig, count: int, session: Session) -> Sample:
    """Return so many labelled images, balanced over classes and domains; unreadable ones and copies are skipped.

    Raises:
        DataError: unknown domains, no labelled images, only one class.
    """
    dataset = open_data(config.data)
    unseen = [dataset.domain_index(name) for name in config.data.target]
    labelled = np.flatnonzero((dataset.labels >= 0) & ~np.isin(dataset.domain_ids, unseen))
    if len(np.unique(dataset.labels[labelled])) < 2:
        raise DataError(f"{dataset.root}: no labelled images of two or more classes, which `vl2v teacher check` needs")
    order = labelled[_order(dataset.labels[labelled], dataset.domain_ids[labelled], config.seed)]
    chosen: dict[bytes, int] = {}  # content -> image
    while len(chosen) < count and len(order):
        evaluated, order = order[: count - len(chosen)], order[count - len(chosen) :]
        found = audit(dataset.subset(evaluated), cache=audit_cache(session.store), progress=session.progress)
        for index, image in enumerate(evaluated):
            if index not in found.problems:
                chosen.setdefault(found.sha256[index], int(image))
    if not chosen:
        raise DataError(f"{dataset.root}: no labelled image can be read; `vl2v data inspect` says why")
    return Sample(dataset.subset(list(chosen.values())), Audit(tuple(chosen), {}))


def _order(labels: Indices, domains: Indices, seed: int) -> Indices:
    """Return an order whose every beginning has about as many images of each class, and of each domain."""
    order = random_order(len(labels), seed)
    labels, domains = labels[order], domains[order]
    count = domains.max() + 1
    first = np.lexsort(((labels + domains) % count, _turn(labels * count + domains)))  # classes begin elsewhere
    return order[first][np.argsort(_turn(labels[first]), kind="stable")]


def _turn(keys: Indices) -> Indices:
    """Return for each key how many like it come before."""
    order = np.argsort(keys, kind="stable")
    begins = np.append(True, np.diff(keys[order]) != 0)
    indices = np.arange(len(keys))
    turn = np.empty_like(indices)
    turn[order] = indices - np.maximum.accumulate(np.where(begins, indices, 0))
    return turn


UNSEEN = "on domains it didn't learn from"


@dataclass(frozen=True)
class Swap:
    """Images of one class that the teacher takes for another.

    Attributes:
        example: path of one of them.
    """

    label: str
    predicted: str
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
    """Prompts that weren't compared, and why."""

    setting: str
    reason: str


@dataclass(frozen=True)
class OddName:
    """A class whose name may mean something else to the teacher.

    Attributes:
        share: of its images that are classified correctly: fewer than of all classes' together.
        nearest: the class with the nearest text embedding, which is predicted instead most often.
        cosine: of the two text embeddings.
        instead: how many images are taken for `nearest`.
        probed: how many images a linear probe on the teacher's image embeddings gets right: more than the text does,
            and not by chance.
    """

    share: Share
    nearest: str
    cosine: float
    instead: int
    probed: int

    def advice(self) -> str:
        """Return what to do about it."""
        name, count = self.share.name, self.share.images
        return (
            f"{name}: its text is nearest to that of {self.nearest} (cosine {self.cosine:.2f}), which is predicted "
            f"instead for {self.instead} of {count} images; a probe on its images alone gets {self.probed} right, the "
            f"text {self.share.correct}: try a clearer name, as prompts.overrides.{toml_key(name)}"
        )


@dataclass(frozen=True)
class Probed:
    """A linear probe on features, evaluated on the sample: the accuracy without the teacher's texts.

    Attributes:
        images: labelled images that it was fitted to, in all folds together.
        lead: how much more accurate the zero-shot teacher is.
    """

    share: Share
    images: int
    lead: Difference


@dataclass(frozen=True)
class Check:
    """A teacher's evaluation on a labelled sample.

    Attributes:
        swaps: which class is taken for which, the most frequent first.
        skipped: prompts that the teacher can't embed.
        student: a probe on the untrained student's features; None where there is none.
        own: the same on the teacher's own image embeddings, without its texts.
        adapted: the teacher itself, adapted to the sample in closed form (`teacher.adapt`).
        held_out: how the probes and the adapted teacher were measured, in a few words.
        refused: images that the teacher refuses; they aren't in the sample.
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
    adapted: Probed
    held_out: str
    chance: float
    refused: tuple[Refusal, ...]
    notes: tuple[str, ...]

    def better(self) -> Wording | None:
        """Return the prompts that do better than noise would; None where there are none."""
        return next((wording for wording in self.wordings if wording.gain.low > 0), None)

    def verdict(self) -> str:
        """Return two or three sentences: is this teacher worth distilling for these images?"""
        low, high = self.everything.interval
        found = (
            f"{self.teacher} names {_percent(self.everything.accuracy)} of the images right "
            f"(95% interval {_percent(low)} to {_percent(high)}); chance is {_percent(self.chance)}."
        )
        return " ".join(filter(None, [found, self._worth(), self._adapts(), self._weakness()]))

    def _adapts(self) -> str:
        """Return whether the teacher gets better by what it has embedded already."""
        lead, share = self.adapted.lead, _percent(self.adapted.share.accuracy)
        if lead.high >= 0:
            return ""
        return (
            f"From these {self.adapted.images} embeddings the teacher itself goes from "
            f'{_percent(self.everything.accuracy)} to {share} {self.held_out}: use teacher.adapt="auto".'
        )

    def _worth(self) -> str:
        low, _ = self.everything.interval
        if low <= self.chance:
            return "That is no better than chance: not worth distilling with these class names and prompts."
        if self.student is None:
            return "There is no untrained student to compare it with."
        lead, share = self.student.lead, _percent(self.student.share.accuracy)
        untrained = (
            f"a linear probe on the untrained student's features gets {share} {self.held_out}; the difference is "
            f"{100 * lead.mean:+.1f} points ({100 * lead.low:+.1f} to {100 * lead.high:+.1f})."
        )
        if lead.low > 0:
            return f"Worth distilling: {untrained}"
        if lead.high < 0:
            return f"Not worth distilling as it is: {untrained}"
        return f"Hard to tell whether it is worth distilling: {untrained} Query more images."

    def _weakness(self) -> str:
        better = self.better()
        if better is not None:
            return f"Other prompts do better: {better.setting} gets {_percent(better.accuracy)}."
        if self.own.lead.high < 0:
            return (
                f"Its images separate the classes better than its texts do (a probe on its own embeddings gets "
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


def verdict_of(
    config: RunConfig,
    teacher: Teacher,
    sample: Sample,
    images: Vectors,
    tables: Mapping[str, Vectors],
    free: Mapping[bytes, int] | str,
    refused: Sequence[Refusal],
    skipped: Sequence[Skipped],
) -> Check:
    """Return what a teacher's zero-shot predictions on a sample say about it.

    Args:
        teacher: that embedded the sample.
        images: their embeddings [n, d].
        tables: its text classifiers [C, d], by the setting that makes their prompts; "" for the configuration's own.
        free: what a probe on the untrained student's features predicts for each content, or why there is none.
    """
    dataset, labels = sample.dataset, sample.dataset.labels
    texts = tables[""]
    predictions = (images @ texts.T).argmax(1)
    right = predictions == labels
    swapped = [
        Swap(dataset.classes[pair.label], dataset.classes[pair.predicted], pair.count, dataset.paths[pair.example])
        for pair in confusions(labels, predictions)
    ]
    own = probe(images, labels, sample.groups)
    adapted = left_out_predictions(Embedded(images, texts, labels, dataset.domain_ids, 1.0))
    notes, student = [], None
    if isinstance(free, str):
        notes.append(f"no comparison with an untrained student: {free}")
    else:
        guesses = np.array([free[sha256] for sha256 in sample.audit.sha256])
        student = _probed(guesses == labels, right, len(free))
    several = len(sample.domains) > 1
    if not several:
        notes.append("one domain only: probes are evaluated on other images of the same domain, which flatters them")
    return Check(
        teacher=teacher.name,
        prompts=tuple(config.prompts.templates),
        everything=Share("all", len(labels), int(right.sum())),
        domains=accuracy_by_group(dataset.domains, dataset.domain_ids, right),
        classes=accuracy_by_group(dataset.classes, labels, right),
        alignment=align(images, texts, labels),
        swaps=tuple(swapped),
        wordings=_compared(images, tables, labels, right),
        skipped=tuple(skipped),
        names=tuple(_odd_names(dataset.classes, texts, labels, predictions, own)),
        student=student,
        own=_probed(own == labels, right, len(labels)),
        adapted=_probed(adapted == labels, right, len(labels)),
        held_out=UNSEEN if several else "on images it didn't learn from",
        chance=1 / len(dataset.classes),
        refused=tuple(refused),
        notes=tuple(notes),
    )


def _probed(guessed: Right, right: Right, images: int) -> Probed:
    share = Share("all", len(guessed), int(guessed.sum()))
    return Probed(share, images, paired_difference(right, guessed))


def _compared(images: Vectors, tables: Mapping[str, Vectors], labels: Indices, right: Right) -> tuple[Wording, ...]:
    found = []
    for setting, texts in tables.items():
        if setting:
            other = (images @ texts.T).argmax(1) == labels
            gain = paired_difference(other, right, comparisons=len(tables) - 1)
            found.append(Wording(setting, float(other.mean()), gain))
    return tuple(sorted(found, key=lambda wording: -wording.accuracy))


def _odd_names(
    names: Sequence[str], texts: Vectors, labels: Indices, predictions: Indices, guesses: Indices
) -> Iterator[OddName]:
    """Yield the classes with a lower accuracy than all together, though a probe separates their images.

    Most of their wrong predictions are the class with the nearest text.

    Args:
        texts: [C, d].
        labels: [n] classes.
        predictions: [n] by the texts.
        guesses: [n] by a probe that uses no texts.
    """
    cosines = texts @ texts.T
    np.fill_diagonal(cosines, -1)
    right = predictions == labels
    # the most frequent one of each class
    swaps = {pair.label: pair for pair in reversed(confusions(labels, predictions))}
    for share in accuracy_by_group(tuple(names), labels, right):
        label = names.index(share.name)
        nearest = int(cosines[label].argmax())
        here = labels == label
        probed = guesses[here] == label
        poor = share.interval[1] < right.mean() and paired_difference(probed, right[here]).low > 0
        if poor and label in swaps and swaps[label].predicted == nearest:
            yield OddName(share, names[nearest], float(cosines[label, nearest]), swaps[label].count, int(probed.sum()))


def _share_json(share: Share) -> dict[str, Any]:
    low, high = share.interval
    return {**asdict(share), "accuracy": share.accuracy, "low": low, "high": high}


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
