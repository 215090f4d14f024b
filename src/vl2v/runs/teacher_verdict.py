"""What a labelled sample tells about a teacher: figures with intervals, and a plain verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vl2v.config import RunConfig, toml_key
from vl2v.embeddings import Refusal
from vl2v.evaluation.adapted import Embedded, left_out_predictions
from vl2v.evaluation.alignment import Alignment, accuracy_by_group, align, confusions, probe
from vl2v.evaluation.intervals import Difference, Right, Share, paired_difference
from vl2v.runs.sample import Sample
from vl2v.teachers import Teacher

Indices = NDArray[np.int64]
Vectors = NDArray[np.float32]

UNSEEN = "on domains it didn't learn from"


@dataclass(frozen=True)
class Swap:
    """Images of one class that the teacher takes for another.

    Attributes:
        label: the class.
        answer: what it is taken for.
        count: how many images.
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
        share: of its images that are answered correctly: fewer than of all classes' together.
        nearest: the class with the nearest text, which is answered instead most often.
        cosine: of the two texts.
        instead: how many images are taken for `nearest`.
        told: how many images the probe on the teacher's own embeddings, which knows no texts, answers correctly:
            more than the text does, and not by chance.
    """

    share: Share
    nearest: str
    cosine: float
    instead: int
    told: int

    def advice(self) -> str:
        """Return what to do about it."""
        name, count = self.share.name, self.share.images
        return (
            f"{name}: its text is nearest to that of {self.nearest} (cosine {self.cosine:.2f}), which is answered "
            f"instead for {self.instead} of {count} images; by the images alone {self.told} are told right, by the "
            f"text {self.share.correct}: try a clearer name, as prompts.overrides.{toml_key(name)}"
        )


@dataclass(frozen=True)
class Probed:
    """A linear probe on features, judged on the sample's images: what can be told without the teacher's texts.

    Attributes:
        share: answered correctly.
        images: labelled images that it learnt from, in all folds together.
        lead: how much more accurate the zero-shot teacher is.
    """

    share: Share
    images: int
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
        alignment: of images and texts.
        swaps: what is taken for what, the most frequent first.
        wordings: other prompts, the best first.
        skipped: prompts that the teacher has no answer to.
        names: classes whose names may mislead.
        student: a probe on the untaught student's features; None where it can't be had.
        own: the same on the teacher's own embeddings: what its images tell without its texts.
        adapted: the teacher itself, adapted to the sample in closed form (`teacher.adapt`).
        held_out: how the probes and the adapted teacher were measured, in a few words.
        refused: images that the teacher won't answer about; they aren't in the sample.
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
        return f"Hard to tell whether it is worth distilling: {untaught} Ask about more images."

    def _weakness(self) -> str:
        better = self.better()
        if better is not None:
            return f"Other prompts do better: {better.setting} gets {_percent(better.accuracy)}."
        if self.own.lead.high < 0:
            return (
                f"Its images tell more than its texts do (a probe on its own embeddings gets "
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
    """Return what is to be said about a teacher's answers.

    Args:
        config: whose prompts count.
        teacher: who answered.
        sample: the n images that it answered about.
        images: its embeddings of them [n, d].
        tables: its text classifiers [C, d], by what sets their prompts; "" for the configuration's own.
        free: what a probe on the untaught student's features answers about each content, or why there is none.
        refused: images that it wouldn't answer about.
        skipped: prompts that it has no answer to.
    """
    dataset, labels = sample.dataset, sample.dataset.labels
    texts = tables[""]
    answers = (images @ texts.T).argmax(1)
    right = answers == labels
    swapped = [
        Swap(dataset.classes[pair.label], dataset.classes[pair.answer], pair.count, dataset.paths[pair.example])
        for pair in confusions(labels, answers)
    ]
    own = probe(images, labels, sample.groups)
    adapted = left_out_predictions(Embedded(images, texts, labels, dataset.domain_ids, 1.0))
    notes, student = [], None
    if isinstance(free, str):
        notes.append(f"no comparison with an untaught student: {free}")
    else:
        guesses = np.array([free[sha256] for sha256 in sample.audit.sha256])
        student = _probed(guesses == labels, right, len(free))
    several = len(sample.domains) > 1
    if not several:
        notes.append("one domain only: probes are judged on other images of the same domain, which flatters them")
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
        names=tuple(_odd_names(dataset.classes, texts, labels, answers, own)),
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
            gain = paired_difference(other, right, judged=len(tables) - 1)
            found.append(Wording(setting, float(other.mean()), gain))
    return tuple(sorted(found, key=lambda wording: -wording.accuracy))


def _odd_names(
    names: Sequence[str], texts: Vectors, labels: Indices, answers: Indices, guesses: Indices
) -> Iterator[OddName]:
    """Yield the classes that do worse than all together, though their images could be told apart without the texts.

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
    for share in accuracy_by_group(tuple(names), labels, right):
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
