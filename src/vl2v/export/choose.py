"""The most accurate export that is quick or small enough: students, input sizes and precisions, measured here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from vl2v.deploy.runtime import load
from vl2v.errors import ConfigError, StudentError
from vl2v.export.cards import write_card
from vl2v.export.formats import INT8, Export, check_format, check_name, default_name
from vl2v.export.measure import png, side_by_side, timed
from vl2v.export.student import Exporter, open_images, with_preprocessing
from vl2v.io import temporary_folder, write_bytes, write_text
from vl2v.runs.datasets import Sources
from vl2v.runs.folder import Run
from vl2v.session import Progress, silent
from vl2v.students.classifier import at_size
from vl2v.system import processors
from vl2v.table import Table

TURNS, SECONDS = 5, 0.2
STEP = 16  # pixels: patches of most transformers
SHARES = (1, 7 / 8, 3 / 4, 5 / 8, 1 / 2)  # of a student's own size


class Target(NamedTuple):
    """What an export may take at most: seconds of an image (batch 1, median), bytes; None: any number."""

    seconds: float | None = None
    bytes: float | None = None


@dataclass(frozen=True)
class Candidate:
    """One student, input size and precision.

    Attributes:
        image_size: pixels a side.
        made: the export; None where there is none.
        seconds: of an image, batch 1, median; on this machine.
    """

    run: Run
    image_size: int
    int8: bool
    made: Export | None = None
    note: str = ""
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """A few words."""
        return f"{self.run.folder} at {self.image_size} px in {'int8' if self.int8 else 'fp32'}"

    def excess(self, target: Target) -> float:
        """Return how many times as much as it may it takes; at most 1 meets the target."""
        assert self.made is not None
        pairs = ((self.seconds, target.seconds), (self.made.bytes, target.bytes))
        return max(taken / allowed for taken, allowed in pairs if allowed is not None)

    def figures(self) -> list[str]:
        """Return accuracy %, milliseconds and megabytes."""
        assert self.made is not None
        accuracy, size = 100 * self.made.parity.mean, self.made.bytes / 1e6
        return [f"{accuracy:.1f}", f"{1000 * self.seconds:.2f}", f"{size:.2f}"]


@dataclass(frozen=True)
class Curve:
    """Accuracy against latency and size: all candidates, and the one that is chosen of them; None if none is."""

    candidates: list[Candidate]
    best: Candidate | None = None

    def table(self) -> Table:
        """Return the candidates for people, by student and size; the one that was written is bold."""
        rows = []
        for one in self.candidates:
            figures = ["", "", ""] if one.made is None else one.figures()
            chosen = "chosen" if one == self.best else one.note
            rows.append([str(one.run.folder), str(one.image_size), "int8" if one.int8 else "fp32", *figures, chosen])
        heads = ["student", "px", "precision", "accuracy %", "ms", "MB", ""]
        note = "Accuracy on the source domains' validation images, mean of domains; batch 1, median, on this machine."
        bold = () if self.best is None else (self.candidates.index(self.best),)
        return Table(heads, rows, bold, [note], left=("student", "precision", ""))

    def save(self, folder: Path) -> None:
        """Write the table, `choice.csv`, and the plot `choice.png`.

        Raises:
            RunError: they can't be written.
        """
        write_text(folder / "choice.csv", self.table().render("csv") + "\n")
        write_bytes(folder / "choice.png", self._plot())

    def _plot(self) -> bytes:
        """Return a PNG: accuracy against milliseconds and megabytes; pixels beside each, the chosen one ringed."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        students = list(dict.fromkeys(one.run.folder for one in self.candidates))
        for one in self.candidates:
            if one.made is None:
                continue
            accuracy, colour = 100 * one.made.parity.mean, f"C{students.index(one.run.folder)}"
            for axes, taken in zip(panels, (1000 * one.seconds, one.made.bytes / 1e6), strict=True):
                axes.plot(taken, accuracy, "o", color=colour, markerfacecolor=colour if one.int8 else "white")
                axes.annotate(f" {one.image_size}", (taken, accuracy), fontsize=8, color="#555555")
                if one == self.best:
                    axes.plot(taken, accuracy, "o", markersize=14, color="black", markerfacecolor="none")
        for axes, head in zip(panels, ("ms an image", "file, MB"), strict=True):
            axes.set_xlabel(head)
            axes.margins(0.1)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel("accuracy %")
        for number, folder in enumerate(students):
            panels[0].plot([], [], "o", color=f"C{number}", label=folder.resolve().name)
        for label, face in (("int8", "#555555"), ("fp32", "white")):
            panels[0].plot([], [], "o", color="#555555", markerfacecolor=face, label=label)
        panels[0].legend(frameon=False, fontsize=8)
        return png(figure)


class TargetMissed(StudentError):
    """No candidate meets the target.

    Attributes:
        curve: what was measured all the same.
    """

    def __init__(self, message: str, curve: Curve) -> None:
        super().__init__(message)
        self.curve = curve


@dataclass(frozen=True)
class Choice:
    """What was written, where, and the candidates it was chosen from."""

    best: Candidate
    path: Path
    candidates: list[Candidate]

    @property
    def curve(self) -> Curve:
        """Accuracy against latency and size."""
        return Curve(self.candidates, self.best)


def choose_export(
    runs: Sequence[Run],
    target: Target,
    kind: str = "onnx",
    *,
    out: Path | None = None,
    form: str = "closed",
    int8: bool | None = None,
    image_sizes: Sequence[int] = (),
    preprocess: str | None = None,
    store: Path | None = None,
    progress: Progress = silent,
) -> Choice:
    """Write the most accurate export that meets a target; of two as accurate ones the quicker.

    Every candidate is held against the student at the same input size, as any export is; one that differs isn't taken.

    Args:
        runs: finished runs on the same images.
        out: the file; by default it is in the folder of the run that is chosen.
        form: "closed" or "open".
        int8: True: only int8, False: only fp32, None: both, where the format has both.
        image_sizes: pixels a side; by default each student's own, and down to half of it.
        preprocess: as for `export_student`; by default outside: time and size are measured without it.
        store: with the embeddings and the index of the images.

    Raises:
        TargetMissed: no candidate meets the target; the nearest is named, and all that was measured is with it.
        ConfigError: runs whose accuracies can't be compared, a format that has no int8, or a file name that doesn't fit
            it.
    """
    if kind in ("web", "coreml"):
        raise ConfigError(f"--format {kind}: not with a target; choose an onnx export, then write that run's {kind}")
    check_format(kind, int8=bool(int8), preprocess=preprocess)
    if out is not None:
        check_name(out, kind)
    _check_comparable(runs)
    precisions = [False, True] if int8 is None and kind in INT8 else [bool(int8)]
    with temporary_folder() as folder:
        opened = [(run, open_images(run, store, progress)) for run in runs]
        variants = [(run, sources, size) for run, sources in opened for size in image_sizes or default_sizes(run)]
        found: list[Candidate] = []
        for done, (run, sources, size) in enumerate(variants):
            progress("exporting", done, len(variants), f"{run.folder} at {size} px")
            found += _made(run, sources, size, folder / str(done), kind, form, precisions)
        progress("exporting", len(variants), len(variants), "")
        candidates = _timed(found)
        best = best_of(candidates, target)
        assert best.made is not None
        path = out or best.run.folder / default_name(kind, int8=best.int8)
        sources = next(sources for run, sources in opened if run is best.run)
        final = with_preprocessing(best.made, kind, sources, preprocess or "outside")
        final.copy(path)
        write_card(path, at_size(best.run.classifier, best.image_size), final.parity)
        return Choice(best, path, candidates)


def default_sizes(run: Run) -> list[int]:
    """Return a student's own input size and smaller ones, in pixels."""
    own = run.classifier.student.spec.image_size
    return list(dict.fromkeys([own, *(max(1, round(own * share / STEP)) * STEP for share in SHARES[1:])]))


def _check_comparable(runs: Sequence[Run]) -> None:
    def learnt(run: Run) -> tuple[object, list[str]]:
        return run.config.data.model_dump(exclude={"workers"}), run.classifier.classes

    first, *others = runs
    for run in others:
        if learnt(run) != learnt(first):
            raise ConfigError(f"{run.folder}: other images, split or classes than {first.folder}; export them apart")


def _made(
    run: Run, sources: Sources, size: int, folder: Path, kind: str, form: str, precisions: list[bool]
) -> Iterator[Candidate]:
    """Yield the candidates of one student at one size."""
    folder.mkdir()
    try:
        exporter = Exporter(run, folder, sources, form=form, image_size=size)
    except StudentError as error:
        yield from (Candidate(run, size, int8, note=str(error)) for int8 in precisions)
        return
    for int8 in precisions:
        try:
            yield Candidate(run, size, int8, exporter.make(kind, int8=int8))
        except StudentError as error:
            yield Candidate(run, size, int8, note=str(error))


def _timed(found: list[Candidate]) -> list[Candidate]:
    """Return the candidates with their speed."""
    callers = {
        one.name: partial(timed, load(one.made.path, threads=processors()).run, one.image_size)
        for one in found
        if one.made is not None
    }
    if not callers:
        return found
    speeds = side_by_side(callers, next(iter(callers)), 1, turns=TURNS, seconds=SECONDS)
    return [replace(one, seconds=speeds[one.name].p50) if one.name in speeds else one for one in found]


def best_of(candidates: Sequence[Candidate], target: Target) -> Candidate:
    """Return the most accurate candidate that meets a target; of two as accurate ones the quicker.

    Raises:
        TargetMissed: none does; the nearest is named.
    """
    curve = Curve(list(candidates))
    made = [(one, one.made.parity.mean) for one in candidates if one.made is not None]
    if not made:
        raise TargetMissed(f"no export is as good as its student; the first: {candidates[0].note}", curve)
    meeting = [(one, accuracy) for one, accuracy in made if one.excess(target) <= 1]
    if not meeting:
        nearest = min((one for one, _ in made), key=lambda one: one.excess(target))
        accuracy, milliseconds, megabytes = nearest.figures()
        raise TargetMissed(
            f"no candidate of {len(candidates)} meets the target; the nearest, {nearest.name}, takes {milliseconds} ms "
            f"and {megabytes} MB (accuracy {accuracy}%); allow smaller --image-size, or train a smaller student",
            curve,
        )
    return max(meeting, key=lambda pair: (pair[1], -pair[0].seconds))[0]
