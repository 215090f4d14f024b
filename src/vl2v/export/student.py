"""A run's student as files for other runtimes, each checked on real images before it is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vl2v.deploy.runtime import FORMAT_INSIDE, load
from vl2v.errors import StudentError
from vl2v.evaluation.metrics import fit_temperature, unknown_threshold
from vl2v.export.cards import public_card, write_card
from vl2v.export.formats import (
    FORMATS,
    NEEDED,
    Export,
    check_format,
    check_name,
    default_name,
    litert_int8_trials,
    put_litert_card,
    write_coreml,
    write_executorch,
    write_litert,
    write_openvino,
    write_torchscript,
)
from vl2v.export.inside import put_inside
from vl2v.export.int8 import int8_trials
from vl2v.export.measure import side_by_side, timed
from vl2v.export.network import Network, as_export, card_of, put_card, with_reference, write_onnx
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
from vl2v.io import temporary_folder
from vl2v.runs.datasets import Images, Sources, at_hand
from vl2v.runs.folder import Run
from vl2v.session import Progress, Session, silent
from vl2v.students.classifier import Classifier, at_size
from vl2v.students.stored import export_of
from vl2v.system import processors


class Exporter:
    """Makes exports of a run's student in a folder.

    Args:
        run: a finished run, its images at hand.
        folder: for the files.
        form: "closed", or "open" for students that classify by texts: classes can be added later.
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
        self._tried: list[tuple[Path, tuple[str, ...]]] = []
        self._more: Iterator[tuple[Path, tuple[str, ...]]] | None = None
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
        one that seems to, by chance; where none has 98%, the one that has most of them.
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
        path, parity = min(found, key=lambda pair: (0, pair[1].lost) if pair[1].agrees else (1, -pair[1].same))
        self._put_card(path, with_reference(load(path), self.domains))
        return Export.of(path, parity)

    def _int8_files(self, kind: str) -> Iterator[tuple[Path, tuple[str, ...]]]:
        card = card_of(self.classifier, self.form, "int8")
        if kind == "litert":
            yield from litert_int8_trials(self.make(kind).path, card, self._calibration)
            return
        for made, kept in self._trials(card):
            if kind == "onnx":
                yield made, kept
            else:
                path = made.with_suffix(FORMATS[kind])
                self._put_card(path, card)
                yield path, kept

    def _trials(self, card: dict[str, Any]) -> Iterator[tuple[Path, tuple[str, ...]]]:
        """Yield ONNX files in int8, made once for all formats."""
        if self._more is None:
            self._more = int8_trials(self._plain.path, card, self._calibration)
        yield from self._tried
        for each in self._more:
            self._tried.append(each)
            yield each

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


def with_preprocessing(made: Export, kind: str, sources: Sources, where: str | None) -> Export:
    """Return an export with its preprocessing where it is wanted; inside, it is checked on 200 odd images.

    Args:
        made: an export of pixels, its folder at hand.
        where: "inside", "outside", or None: inside an ONNX file, if that passes its check.

    Raises:
        StudentError: inside, where that is wanted, it gives an image another class, or a probability that differs by
            more than 1e-3.
    """
    if where == "outside" or (where is None and kind != "onnx"):
        return made
    plain = load(made.path)
    card = {**plain.card, "format": FORMAT_INSIDE, "fit": plain.fit}
    path = made.path.with_name(f"inside-{made.path.stem}.onnx")
    put_inside(made.path.with_suffix(FORMATS["onnx"]), card, path)
    if kind == "openvino":
        source, path = path, path.with_suffix(FORMATS[kind])
        write_openvino(source, card, path)
    try:
        checked = check_inside(load(path), plain, odd_images(sources))
    except StudentError:
        if where is None:
            return made
        raise
    return Export.of(path, replace(made.parity, inside=checked))


def open_images(run: Run, store: Path | None, progress: Progress = silent) -> Sources:
    """Open the images that a run learnt from, but for those without labels that are gone."""
    return Images(at_hand(run.config.data), Session.of(store, progress=progress)).sources


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
    run = Run.of(run)
    out = Path(out) if out else run.folder / default_name(kind, int8=bool(int8))
    check_name(out, kind)
    page, kind = kind == "web", "onnx" if kind == "web" else kind
    if page:
        check_folder(out)
        preprocess = "inside"
    sources = open_images(run, store, progress)
    progress("exporting", 0, 2, "")
    with temporary_folder() as folder:
        exporter = Exporter(run, folder, sources, form=form, image_size=image_size)
        made = exporter.small() if page and int8 is None else exporter.make(kind, int8=bool(int8))
        progress("exporting", 1, 2, "")
        final = with_preprocessing(made, kind, sources, preprocess)
        parity = final.parity
        if page:
            public = public_card(final.path, exporter.classifier, parity)
            write_web(final.path, public, out, others=others, runtime=runtime, progress=progress)
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


def keep_export(run: Run, store: Path | None = None, progress: Progress = silent) -> bool:
    """Keep an ONNX file beside a finished run's student, checked on its validation images.

    Returns:
        Whether there is one now: not where the packages of the extra `export` are missing.

    Raises:
        StudentError: the export differs from the student by more than 1e-4 of the largest logit.
        VL2VError: the run's images can't be read any more.
    """
    folder = run.folder / "student"
    file = export_of(folder)
    if file.is_file():
        return True
    if not all(map(find_spec, NEEDED["onnx"])):
        return False
    form = "closed" if run.classifier.texts is None else "open"
    export_student(run, file, form=form, preprocess="outside", card=False, store=store, progress=progress)
    for old in folder.glob("network-*.onnx"):
        if old != file:
            old.unlink()
    return True
