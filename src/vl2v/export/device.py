"""How quick, how small and how hungry a run's student is on this machine, in every form that it ships in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vl2v.config import TeacherConfig
from vl2v.errors import ConfigError, StudentError
from vl2v.export.measure import SECONDS, TURNS, Speed, Way, png, side_by_side, workers
from vl2v.export.student import Exporter, open_images
from vl2v.io import temporary_folder, write_bytes, write_text
from vl2v.runs.folder import Run
from vl2v.session import Progress, silent
from vl2v.students.classifier import Classifier
from vl2v.students.student import Student
from vl2v.system import processors
from vl2v.table import Table
from vl2v.teachers import the_teacher
from vl2v.teachers.protocol import gives_weights

REFERENCE = "eager fp32"
BATCHES = (1, 32)
_LABELS = {"onnx": "ONNX", "openvino": "OpenVINO"}


@dataclass(frozen=True)
class Line:
    """What was measured of one way: bytes on the disk, the peak of its process (None: unknown), its speeds."""

    name: str
    bytes: int
    peak: int | None
    speeds: tuple[Speed, ...]


@dataclass(frozen=True)
class Device:
    """What was measured.

    Attributes:
        notes: what couldn't be measured, and why; how it was measured.
    """

    lines: list[Line]
    notes: list[str]

    def table(self) -> Table:
        """Return it for people."""
        heads = ["", "batch 1 ms", "p95", f"x {REFERENCE}"]
        for batch in BATCHES[1:]:
            heads += [f"batch {batch} images/s", f"x {REFERENCE}"]
        rows = []
        for line in self.lines:
            first, *others = line.speeds
            row = [line.name, f"{1000 * first.p50:.2f}", f"{1000 * first.p95:.2f}", f"{first.gain:.3g}"]
            for speed in others:
                row += [f"{speed.rate:.0f}", f"{speed.gain:.3g}"]
            rows.append([*row, f"{line.bytes / 1e6:.1f}", "" if line.peak is None else f"{line.peak / 1e6:.0f}"])
        return Table([*heads, "file MB", "peak memory MB"], rows, notes=self.notes)

    def to_json(self) -> dict[str, Any]:
        """Return plain types only: seconds, bytes."""
        return asdict(self)

    def save(self, folder: Path) -> None:
        """Write `device.md`, `device.json` and the plot `device.png`.

        Raises:
            RunError: they can't be written.
        """
        write_text(folder / "device.md", self.table().render("md") + "\n")
        write_text(folder / "device.json", json.dumps(self.to_json(), indent=2))
        write_bytes(folder / "device.png", _plot(self.lines))


def bench_device(
    run: Run,
    *,
    against: str | None = None,
    image_size: int | None = None,
    store: Path | None = None,
    threads: int | None = None,
    turns: int = TURNS,
    seconds: float = SECONDS,
    progress: Progress = silent,
) -> Device:
    """Measure a run's student: eager PyTorch in fp32 and bf16, and exports in fp32 and int8, each checked first.

    Args:
        run: a finished run, its images at hand.
        against: a teacher whose image tower is measured, too; "teacher": the run's own.
        image_size: pixels a side; by default the student's.
        store: for what is known of the images.
        threads: of each; by default as many as there are processors.
        turns: how often each has its turn.
        seconds: of one turn, at least.
        progress: called with the progress.

    Raises:
        ConfigError: the teacher to be compared with is a black box.
        StudentError: the fp32 export differs from the student.
    """
    with temporary_folder() as folder:
        exporter = Exporter(run, folder, open_images(run, store, progress), image_size=image_size)
        classifier, notes = exporter.classifier, []
        size = classifier.student.spec.image_size
        classifier.save(folder / "eager")
        ways = [] if against is None else [_teacher(run, against, folder / "teacher")]
        ways += [Way(REFERENCE, folder / "eager", size), Way("eager bf16", folder / "eager", size, "bf16")]
        for kind in ("onnx", *(["openvino"] if find_spec("openvino") else [])):
            for int8 in (False, True):
                label = f"{_LABELS[kind]} {'int8' if int8 else 'fp32'}"
                try:
                    made = exporter.make(kind, int8=int8)
                    ways.append(Way(label, made.path, size))
                    notes.append(f"{label}: {made.parity.summary()}.")
                except StudentError as error:
                    notes.append(f"{label}: {error}")
        lines = list(_lines(ways, threads or processors(), turns, seconds, progress))
    if against is not None:
        notes += [_beside(line, lines[0]) for line in lines if line.name.endswith("int8")]
    notes.append(
        f"{size} px, {threads or processors()} threads, medians of {turns} turns taken in rotation, each ratio within "
        "its turn; peak memory of a process of its own at batch 1, libraries included."
    )
    return Device(lines, notes)


def _beside(line: Line, teacher: Line) -> str:
    quicker, smaller = line.speeds[0].gain / teacher.speeds[0].gain, teacher.bytes / line.bytes
    return f"{line.name} against {teacher.name}: {quicker:.0f} times as quick at batch 1, {smaller:.0f} times as small."


def _lines(ways: list[Way], threads: int, turns: int, seconds: float, progress: Progress) -> Iterator[Line]:
    steps = len(BATCHES) + 1
    progress("measuring", 0, steps, "opening")
    with workers(ways, threads) as open_workers:
        speeds, peaks = [], {}
        for done, batch in enumerate(BATCHES, 1):
            progress("measuring", done, steps, f"batch {batch}")
            speeds.append(side_by_side(open_workers, REFERENCE, batch, turns=turns, seconds=seconds))
            if batch == 1:
                peaks = {name: worker.peak for name, worker in open_workers.items()}
        progress("measuring", steps, steps, "")
        for way in ways:
            yield Line(way.name, way.bytes, peaks[way.name], tuple(found[way.name] for found in speeds))


def _teacher(run: Run, against: str, folder: Path) -> Way:
    """Keep a teacher's image tower as a student, and return the way to compute it."""
    config = run.config.teacher if against == "teacher" else TeacherConfig(spec=against)
    teacher = the_teacher(config)
    if not gives_weights(teacher):
        raise ConfigError(
            f"--against {config.spec}: a black box can't be measured; give a model of its size, "
            "for example open_clip:ViT-B-16/laion2b_s34b_b88k"
        )
    tower, spec = teacher.image_tower()
    student = Student(tower, nn.Identity(), spec)
    Classifier(student, ["anything"], torch.zeros(1, teacher.dim)).save(folder)  # it is only timed
    return Way(f"teacher, {spec.image_size} px", folder, spec.image_size)


def _plot(lines: list[Line]) -> bytes:
    """Return a PNG: milliseconds of an image, images a second, size and memory."""
    from matplotlib.figure import Figure

    first, *others = BATCHES
    panels = {
        f"ms an image, batch {first}": [1000 * line.speeds[0].p50 for line in lines],
        **{
            f"images/s, batch {batch}": [line.speeds[index].rate for line in lines]
            for index, batch in enumerate(others, 1)
        },
        "file, MB": [line.bytes / 1e6 for line in lines],
        "peak memory, MB": [(line.peak or 0) / 1e6 for line in lines],
    }
    figure = Figure(figsize=(3.1 * len(panels) + 1, 0.42 * len(lines) + 1), layout="constrained")
    names = [line.name for line in lines][::-1]
    for axes, (title, values) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        colours = ["#999999" if name == REFERENCE else "#0072B2" for name in names]
        bars = axes.barh(names, values[::-1], color=colours)
        axes.bar_label(bars, fmt=lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}", padding=3)
        axes.margins(x=0.22)
        axes.set_title(title, fontsize=10)
        axes.set_xticks([])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    return png(figure)
