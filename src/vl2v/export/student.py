"""A run's student as files for other runtimes, each checked on real images before it is written."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vl2v.deploy.runtime import FORMAT_INSIDE, files_of, load, openvino_library, size_of
from vl2v.errors import ConfigError, RunError, StudentError, need_extra, writing
from vl2v.evaluation.metrics import fit_temperature, unknown_threshold
from vl2v.export import inside
from vl2v.export.card import public_card, write_card
from vl2v.export.measure import side_by_side, timed
from vl2v.export.network import Network, as_export, card_of, with_reference
from vl2v.export.onnx import int8_trials, put_card, write_onnx
from vl2v.export.others import (
    put_litert_card,
    write_coreml,
    write_executorch,
    write_litert,
    write_litert_int8,
    write_openvino,
    write_torchscript,
)
from vl2v.export.parity import (
    POINTS,
    Domain,
    Parity,
    Pixels,
    calibration_pixels,
    check_inside,
    compare,
    odd_images,
    source_domains,
)
from vl2v.export.web import check_folder, write_web
from vl2v.io import write_bytes
from vl2v.runs.datasets import Sources, open_sources
from vl2v.runs.folder import Run
from vl2v.session import Progress, Session, silent
from vl2v.students.classifier import Classifier, at_size
from vl2v.system import processors

FORMATS = {
    "onnx": ".onnx",
    "openvino": ".xml",
    "torchscript": ".pt",
    "executorch": ".pte",
    "litert": ".tflite",
    "coreml": ".mlpackage",
    "web": "",
}
INT8 = ("onnx", "openvino", "web", "litert")  # formats that have it
_NEEDED = {
    "onnx": {"onnx": "export", "onnxscript": "export", "onnxruntime": "export"},
    "openvino": {"onnx": "export", "onnxscript": "export", "onnxruntime": "export"},
    "torchscript": {},
    "web": {"onnx": "export", "onnxscript": "export", "onnxruntime": "export"},
    "executorch": {"torch": "", "executorch.exir": "executorch"},
    "litert": {"ai_edge_litert.interpreter": "litert", "litert_torch": "litert"},
    "coreml": {"coremltools": "coreml"},
}


@dataclass(frozen=True)
class Export:
    """A file that does what the student does; OpenVINO keeps its weights in a second one beside it.

    Attributes:
        path: where it is.
        parity: with the student.
        bytes: how large it is, both files together.
    """

    path: Path
    parity: Parity
    bytes: int

    @classmethod
    def of(cls, path: Path, parity: Parity) -> Export:
        """Return the export that is in a file."""
        return cls(path, parity, size_of(path))

    def copy(self, path: Path) -> None:
        """Write it somewhere else.

        Raises:
            RunError: that can't be written.
        """
        if self.path.is_dir():
            with writing(path, RunError):
                shutil.rmtree(path, ignore_errors=True)
                shutil.copytree(self.path, path)
            return
        for source, file in zip(files_of(self.path), files_of(path), strict=True):
            write_bytes(file, source.read_bytes())


class Exporter:
    """Makes exports of a run's student in a folder.

    Args:
        run: a finished run, its images at hand.
        folder: for the files.
        form: "closed", or "open" for students that classify by texts: classes can be added later.
        sources: the run's images.
        image_size: pixels a side; by default the student's. Temperature and threshold are fitted anew to another one.

    Raises:
        StudentError: an open form of a fixed head, or a size that the student can't take.
    """

    def __init__(
        self, run: Run, folder: Path, sources: Sources, *, form: str = "closed", image_size: int | None = None
    ) -> None:
        if form == "open" and run.classifier.texts is None:
            raise StudentError(
                f"{run.folder}: its head is fixed; only students that classify by texts have an open form"
            )
        self.run, self.folder, self.form, self._sources = run, folder, form, sources
        self._others: dict[str, Export] = {}
        size = image_size or run.classifier.student.spec.image_size
        self.classifier: Classifier = at_size(run.classifier, size)
        if self.classifier is not run.classifier:
            logits = torch.from_numpy(np.concatenate([domain.logits for domain in self.domains]))
            labels = torch.from_numpy(np.concatenate([domain.labels for domain in self.domains]))
            temperature = fit_temperature(logits, labels)
            threshold = unknown_threshold(logits / temperature, labels)
            self.classifier = replace(self.classifier, temperature=temperature, threshold=threshold)

    @cached_property
    def domains(self) -> list[Domain]:
        """What exports are checked on."""
        return list(source_domains(self.classifier, self._sources))

    def make(self, kind: str, *, int8: bool = False) -> Export:
        """Return an export.

        Raises:
            StudentError: it differs from the student, in fp32 by more than 1e-4 of the largest logit or in any
                prediction, in int8 by surely more than half a point of accuracy.
            ConfigError: the format has no int8.
            MissingExtra: what writes the format is not installed.
        """
        check_format(kind, int8=int8)
        if int8:
            return self._made_int8(kind)
        if kind == "coreml":  # it can't be run here
            parity = compare(as_export(self._network, self._card), self.domains)
            return Export.of(self._write(kind), replace(parity, unrun="Core ML runs on a Mac, iPhone or iPad only"))
        if kind == "onnx":
            return self._plain
        if kind not in self._others:
            self._others[kind] = self._checked(self._write(kind))
        return self._others[kind]

    def small(self) -> Export:
        """Return an ONNX file in int8 if it keeps accuracy and predictions, else in fp32, which says why.

        Raises:
            StudentError: as `make` does in fp32.
        """
        try:
            made = self.make("onnx", int8=True)
            if made.parity.agrees:
                return made
            reason = f"int8 changes {100 * (1 - made.parity.same):.1f}% of the predictions"
        except StudentError as error:
            reason = str(error).partition(" (")[0]
        plain = self.make("onnx")
        return replace(plain, parity=replace(plain.parity, refused=reason))

    @cached_property
    def _plain(self) -> Export:
        path = self.folder / "student.onnx"
        write_onnx(self._network, self._card, path)
        return self._checked(path)

    @cached_property
    def _card(self) -> dict[str, Any]:
        """What files in fp32 say of themselves."""
        exported = as_export(self._network, card_of(self.classifier, self.form, "fp32"))
        return with_reference(exported, self.domains)

    @property
    def _network(self) -> Network:
        return Network(self.classifier, form=self.form).eval()

    def _write(self, kind: str) -> Path:
        path, card = self.folder / f"student{FORMATS[kind]}", self._card
        if kind == "openvino":
            write_openvino(self._plain.path, card, path)
        elif kind == "torchscript":
            write_torchscript(self._network, card, path)
        elif kind == "litert":
            write_litert(self._network, path)
            put_litert_card(path, card)
        elif kind == "coreml":
            write_coreml(self._network, card, path)
        else:
            write_executorch(self._network, card, path)
        return path

    def _checked(self, path: Path) -> Export:
        parity = compare(load(path), self.domains)
        if not parity.exact:
            raise StudentError(
                f"{self.run.folder}: the export differs from the student, by {parity.difference:.1e} of the largest "
                f"logit; {parity.summary()}; nothing was written"
            )
        return Export.of(path, parity)

    def _made_int8(self, kind: str) -> Export:
        """Return an int8 export that isn't shown to lose accuracy, leaving out as few layers as that takes.

        One that loses none beyond the tolerance on these images, and has 98% of the student's classes, is taken before
        one that seems to, by chance.
        """
        found: list[tuple[Path, Parity]] = []
        refused: list[Parity] = []
        for path, kept in self._int8_files(kind):
            parity = compare(load(path), self.domains, kept)
            if parity.worse:
                refused.append(parity)
                continue
            found.append((path, parity))
            if parity.lost <= POINTS and parity.agrees:
                break
        if not found:
            best = min(refused, key=lambda parity: parity.lost)
            raise StudentError(f"int8 loses accuracy ({best.summary()}); nothing was written: use fp32")
        path, parity = min(found, key=lambda pair: (not pair[1].agrees, pair[1].lost))
        self._put_card(path, with_reference(load(path), self.domains))
        return Export.of(path, parity)

    def _int8_files(self, kind: str) -> Iterator[tuple[Path, tuple[str, ...]]]:
        card = card_of(self.classifier, self.form, "int8")
        if kind == "litert":
            path = self.folder / "student-int8.tflite"
            write_litert_int8(self.make(kind).path, path, self._calibration)
            put_litert_card(path, card)
            yield path, ()
            return
        for made, kept in int8_trials(self._plain.path, card, self._calibration):
            if kind == "onnx":
                yield made, kept
            else:
                path = made.with_suffix(FORMATS[kind])
                self._put_card(path, card)
                yield path, kept

    def _put_card(self, path: Path, card: dict[str, Any]) -> None:
        if path.suffix == FORMATS["onnx"]:
            put_card(path, card)
        elif path.suffix == FORMATS["litert"]:
            put_litert_card(path, card)
        else:
            write_openvino(path.with_suffix(FORMATS["onnx"]), card, path)

    @cached_property
    def _calibration(self) -> Pixels:
        return calibration_pixels(self._sources, self.classifier)


def put_images_inside(made: Export, kind: str, sources: Sources) -> Export:
    """Return an export that takes images of any size and gives probabilities, checked on 200 odd images.

    Args:
        made: an export of pixels, its folder at hand.
        kind: "onnx" or "openvino".
        sources: the images.

    Raises:
        StudentError: it gives an image another class, or a probability that differs by more than 1e-3.
    """
    plain = load(made.path)
    card = {**plain.card, "format": FORMAT_INSIDE, "fit": plain.fit}
    path = made.path.with_name(f"inside-{made.path.stem}.onnx")
    inside.put_inside(made.path.with_suffix(FORMATS["onnx"]), card, path)
    if kind == "openvino":
        source, path = path, path.with_suffix(FORMATS[kind])
        write_openvino(source, card, path)
    checked = check_inside(load(path), plain, odd_images(sources))
    return Export.of(path, replace(made.parity, inside=checked))


def with_preprocessing(made: Export, kind: str, sources: Sources, where: str | None) -> Export:
    """Return an export with its preprocessing where it is wanted; None: inside an ONNX file, if that passes its check.

    Raises:
        StudentError: as `put_images_inside` does, where inside is what is wanted.
    """
    if where == "outside" or (where is None and kind != "onnx"):
        return made
    try:
        return put_images_inside(made, kind, sources)
    except StudentError:
        if where is None:
            return made
        raise


def check_format(kind: str, *, int8: bool = False, preprocess: str | None = None) -> None:
    """Check that a format can be written here.

    Raises:
        ConfigError: there is no such format, or none of it in int8 or with preprocessing inside.
        MissingExtra: what writes the format is not installed.
    """
    if kind not in FORMATS:
        raise ConfigError(f"--format {kind}: choose one of {', '.join(FORMATS)}")
    if int8 and kind not in INT8:
        raise ConfigError(f"--int8: {kind} has no int8 form, only {', '.join(INT8)}")
    if preprocess not in (None, "inside", "outside"):
        raise ConfigError(f"--preprocess {preprocess}: choose inside or outside")
    if preprocess == "inside" and kind not in inside.KINDS:
        raise ConfigError(f"--preprocess inside: not available for {kind}, only for {', '.join(inside.KINDS)}")
    for module, extra in _NEEDED[kind].items():
        need_extra(module, extra)
    if kind == "openvino":
        openvino_library()


def open_images(run: Run, store: Path | None, progress: Progress = silent) -> Sources:
    """Open the images that a run learnt from."""
    return open_sources(run.config, Session.of(store, progress=progress))


def export_student(
    run: Run | Path | str,
    out: Path | str | None = None,
    kind: str = "onnx",
    *,
    form: str = "closed",
    int8: bool | None = None,
    image_size: int | None = None,
    preprocess: str | None = None,
    card: bool = True,
    others: Mapping[str, NDArray[np.float32]] | None = None,
    runtime: Path | None = None,
    store: Path | None = None,
    progress: Progress = silent,
) -> Parity:
    """Write a run's student as a file, if that does the same as the student.

    Args:
        run: a finished run or its folder, its images at hand.
        out: the file; by default `default_name` in the run folder.
        kind: "onnx", "openvino", "torchscript", "executorch", "litert", "coreml" or "web" (a folder, a finished page).
        form: "closed", or "open" for students that classify by texts: classes can be added later.
        int8: static quantisation, per channel; layers at which accuracy falls stay as they are. None: of a page, where
            that keeps accuracy and 98% of the predictions; of a file, no.
        image_size: pixels a side; by default the student's.
        preprocess: "inside": the file takes images of any size and gives probabilities; "outside": pixels of its own
            size, and logits; None: inside an ONNX file that passes its check.
        card: whether `student.json` is written beside it, for programs that can't read what is inside the file.
        others: of a page in the open form: classes that can be added in it, name -> class embedding [d].
        runtime: of a page: a folder that has onnxruntime-web; None: the cache, or downloaded.
        store: with the embeddings and the index of the images.
        progress: called with the progress.

    Raises:
        StudentError: the export differs from the student, in fp32 by more than 1e-4 of the largest logit or in any
            prediction, in int8 by surely more than half a point of accuracy; or an open form of a fixed head.
        ConfigError: an unknown format, or a file name that doesn't fit it.
        MissingExtra: what writes the format is not installed.

    Examples:
        >>> parity = export_student("runs/a", "student.pt", "torchscript")
    """
    check_format(kind, int8=bool(int8), preprocess=preprocess)
    run = run if isinstance(run, Run) else Run(run)
    out = Path(out) if out else run.folder / default_name(kind, int8=bool(int8))
    check_name(out, kind)
    page, kind = kind == "web", "onnx" if kind == "web" else kind
    if page:
        check_folder(out)
        preprocess = "inside"
    sources = open_images(run, store, progress)
    progress("exporting", 0, 2, "")
    with tempfile.TemporaryDirectory() as folder:
        exporter = Exporter(run, Path(folder), sources, form=form, image_size=image_size)
        made = exporter.small() if page and int8 is None else exporter.make(kind, int8=bool(int8))
        progress("exporting", 1, 2, "")
        final = with_preprocessing(made, kind, sources, preprocess)
        parity = final.parity
        if page:
            told = public_card(final.path, exporter.classifier, parity)
            write_web(final.path, told, out, others=others, runtime=runtime, progress=progress)
        else:
            final.copy(out)
            if card and kind != "coreml":
                write_card(out, exporter.classifier, parity)
        if int8:
            parity = replace(parity, gain=_gain(exporter.make(kind).path, made.path, exporter.classifier))
    progress("exporting", 2, 2, "")
    return parity


def _gain(plain: Path, int8: Path, classifier: Classifier) -> float:
    """Return how many times as quick as the fp32 file the int8 one is, one image at a time."""
    size = classifier.student.spec.image_size
    callers = {path.name: partial(timed, load(path, threads=processors()).run, size) for path in (plain, int8)}
    return side_by_side(callers, plain.name, 1, turns=3, seconds=0.1)[int8.name].gain


def default_name(kind: str, *, int8: bool = False) -> str:
    """Return how an export in a run folder is called.

    Raises:
        ConfigError, MissingExtra: as `check_format` does.
    """
    check_format(kind, int8=int8)
    if kind == "web":
        return f"web{'-int8' if int8 else ''}"
    return f"student{'-int8' if int8 else ''}{FORMATS[kind]}"


def check_name(out: Path, kind: str) -> None:
    """Check that a file's name says what is in it.

    Raises:
        ConfigError: it doesn't.
    """
    if out.suffix != FORMATS[kind]:
        ends = f"ends in {FORMATS[kind]}" if FORMATS[kind] else "is a folder's"
        raise ConfigError(f"--out {out}: the name of what is exported as {kind} {ends}")
