"""A student as an ONNX file: preprocessing, classes, temperature and threshold inside, checked on real pictures."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vl2v.data import decode, evaluation_view
from vl2v.drift import reference
from vl2v.errors import StudentError, need_extra
from vl2v.prediction import UNKNOWN
from vl2v.runs.folder import Run, write_bytes
from vl2v.runs.report import Report, silent
from vl2v.runs.sources import Sources, open_sources
from vl2v.runs.teaching import default_store
from vl2v.runtime import FORMAT, METADATA, Exported, load
from vl2v.seeds import derive
from vl2v.students import Classifier

TOLERANCE = 1e-4  # of the largest logit, in fp32
POINTS = 0.005  # that int8 may lose on any domain
CALIBRATION = 200  # pictures that int8's ranges are taken from
CHECKED = 500  # validation pictures of each domain that are looked at, at most

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Parity:
    """How an export compares with the student that it was made from, on the source domains' validation pictures.

    Attributes:
        difference: the largest, of logits, as a share of the largest logit.
        same: share of pictures with the same answer.
        accuracy: domain -> (student's, export's), 0 to 1.
        kept: layers that int8 was not used for, because accuracy fell.
    """

    difference: float
    same: float
    accuracy: dict[str, tuple[float, float]]
    kept: tuple[str, ...] = ()

    @property
    def lost(self) -> float:
        """How much accuracy falls on the domain where it falls most; negative where it rises everywhere."""
        return max(before - after for before, after in self.accuracy.values())

    def summary(self) -> str:
        """Return a few words for people."""
        domains = ", ".join(f"{name} {100 * a:.1f} -> {100 * b:.1f}" for name, (a, b) in self.accuracy.items())
        kept = f"; not in int8: {', '.join(self.kept)}" if self.kept else ""
        return f"{100 * self.same:.1f}% same answers, accuracy % {domains}{kept}"


class _Network(nn.Module):
    """Pixels [n, s, s, 3] (uint8) to logits [n, C] (closed) or unit embeddings [n, d] (open)."""

    mean: Tensor
    std: Tensor
    texts: Tensor | None

    def __init__(self, classifier: Classifier, *, form: str) -> None:
        super().__init__()
        student = classifier.student
        self.backbone, self.projector = student.backbone, student.projector
        self.normalised = student.head == "text"
        self.register_buffer("mean", student.mean.clone())
        self.register_buffer("std", student.std.clone())
        texts = classifier.texts if form == "closed" else None
        self.register_buffer("texts", None if texts is None else texts * classifier.scale)

    def forward(self, pixels: Tensor) -> Tensor:
        x = (pixels.permute(0, 3, 1, 2).to(torch.float32) - self.mean) / self.std
        out: Tensor = self.projector(self.backbone(x))
        if self.normalised:
            out = functional.normalize(out, dim=-1)
        return out if self.texts is None else out @ self.texts.T


def export_onnx(
    run: Run,
    out: Path,
    *,
    form: str = "closed",
    int8: bool = False,
    store: Path | None = None,
    report: Report = silent,
) -> Parity:
    """Write a run's student as an ONNX file, if it does the same as the student.

    Args:
        run: a finished run, its pictures at hand.
        out: the file.
        form: "closed", or "open" for students that classify by texts: classes can be added later.
        int8: static quantisation, per channel; layers at which accuracy falls stay as they are.
        store: for what is known of the pictures.
        report: told how far it is.

    Raises:
        StudentError: the export differs from the student, in fp32 by more than 1e-4 of the largest logit or in any
            answer, in int8 by more than half a point of accuracy on a domain; or an open form of a fixed head.
        MissingExtra: onnx, onnxruntime or onnxscript is not installed.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        need_extra(module, "export")
    classifier = run.classifier
    if form == "open" and classifier.texts is None:
        raise StudentError(f"{run.folder}: its head is fixed; only students that classify by texts have an open form")
    sources = open_sources(run.config, (store or default_store()) / "audit.sqlite", report)
    report("exporting", 0, 3, "")
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.onnx"
        _write(classifier, plain, form, "fp32")
        report("exporting", 1, 3, "")
        checked = list(_checked(sources, classifier.student.spec.image_size))
        parity = _compare(classifier, load(plain), checked)
        if parity.difference > TOLERANCE or parity.same < 1:
            raise StudentError(
                f"{run.folder}: the export differs from the student, by {parity.difference:.1e} of the largest logit; "
                f"{parity.summary()}; nothing was written"
            )
        report("exporting", 2, 3, "")
        made = plain
        if int8:
            made, parity = _quantised(classifier, plain, sources, checked)
        _add_reference(made, checked)
        write_bytes(out, made.read_bytes())
    report("exporting", 3, 3, "")
    return parity


def _write(classifier: Classifier, path: Path, form: str, precision: str) -> None:
    """Write the network and its card, weights inside."""
    import onnx

    size = classifier.student.spec.image_size
    network = _Network(classifier, form=form).eval()
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    program = torch.onnx.export(
        network,
        (example,),
        input_names=["pixels"],
        output_names=["embedding" if form == "open" else "logits"],
        dynamic_shapes={"pixels": {0: torch.export.Dim("n", min=1, max=4096)}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    program.save(str(path), external_data=False)
    model = onnx.load(str(path))
    _forget_sources(model.graph)
    _put_card(model, _card(classifier, form, precision))
    onnx.save(model, str(path))


def _forget_sources(graph: Any) -> None:
    """Take out what the exporter notes of where each node comes from: paths of this machine."""
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""


def _card(classifier: Classifier, form: str, precision: str) -> dict[str, Any]:
    known = ("method", "seed", "sources", "target", "validation_accuracy")
    card = {
        "format": FORMAT,
        "form": form,
        "image_size": classifier.student.spec.image_size,
        "classes": classifier.classes,
        "scale": classifier.scale,
        "temperature": classifier.temperature,
        "threshold": classifier.threshold,
        "precision": precision,
        "about": {name: classifier.about[name] for name in known if name in classifier.about},
    }
    if classifier.about.get("teacher"):  # what another class's text is asked of, and how
        card["teacher"] = classifier.about["teacher"]["fingerprint"]
        card["prompts"] = classifier.about["prompts"]
    if form == "open" and classifier.texts is not None:
        card["texts"] = base64.b64encode(classifier.texts.float().numpy().tobytes()).decode()
    return card


def _put_card(model: Any, card: dict[str, Any]) -> None:
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(card)


def _add_reference(path: Path, domains: list[_Domain]) -> None:
    """Put into the card what live traffic can be compared with: each domain's mean output, and how much is unknown."""
    import onnx

    exported = load(path)
    outputs = {each.name: np.concatenate([exported.run(part) for part in _parts(each.pixels)]) for each in domains}
    answers = [answer.label == UNKNOWN for rows in outputs.values() for answer in exported.predictions(rows)]
    model = onnx.load(str(path))
    _put_card(model, {**exported.card, "reference": reference(outputs, sum(answers) / len(answers))})
    onnx.save(model, str(path))


@dataclass(frozen=True)
class _Domain:
    name: str
    pixels: Pixels
    labels: NDArray[np.int64]


def _checked(sources: Sources, size: int) -> Iterator[_Domain]:
    """Yield the validation pictures of each source domain."""
    dataset, val = sources.dataset, sources.split.val
    for name in sources.names:
        pictures = val[dataset.domain_ids[val] == dataset.domain_index(name)][:CHECKED]
        yield _Domain(name, _pixels(sources, pictures, size), dataset.labels[pictures])


def _pixels(sources: Sources, pictures: NDArray[np.int64], size: int) -> Pixels:
    return np.stack([evaluation_view(decode(sources.dataset.read(int(i))), size) for i in pictures])


def _compare(classifier: Classifier, exported: Exported, domains: list[_Domain]) -> Parity:
    largest, difference, same, accuracy = 0.0, 0.0, 0, {}
    for domain in domains:
        wanted = np.concatenate([classifier.logits(torch.from_numpy(part)).numpy() for part in _parts(domain.pixels)])
        found = np.concatenate([exported.logits(part) for part in _parts(domain.pixels)])
        largest = max(largest, float(np.abs(wanted).max()))
        difference = max(difference, float(np.abs(wanted - found).max()))
        same += int((wanted.argmax(1) == found.argmax(1)).sum())
        right = [float((logits.argmax(1) == domain.labels).mean()) for logits in (wanted, found)]
        accuracy[domain.name] = (right[0], right[1])
    return Parity(difference / largest, same / sum(len(domain.labels) for domain in domains), accuracy)


def _parts(pixels: Pixels) -> Iterator[Pixels]:
    for start in range(0, len(pixels), 64):
        yield pixels[start : start + 64]


def _quantised(classifier: Classifier, plain: Path, sources: Sources, domains: list[_Domain]) -> tuple[Path, Parity]:
    """Return an int8 model that keeps the accuracy, leaving out as few layers as that takes."""
    import onnx
    from onnxruntime.quantization import quant_pre_process

    ready = plain.with_name("ready.onnx")
    quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
    layers = [node.name for node in onnx.load(str(ready)).graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    pixels = _calibration(sources, classifier.student.spec.image_size)
    tried: list[Parity] = []
    for ends in (0, 1, len(layers) // 8, len(layers) // 4):
        kept = tuple(dict.fromkeys([*layers[:ends], *layers[len(layers) - ends :]]))
        made = plain.with_name(f"int8-{ends}.onnx")
        _quantise(ready, made, pixels, kept, _card_of(plain))
        found = _compare(classifier, load(made), domains)
        parity = Parity(found.difference, found.same, found.accuracy, kept)
        if parity.lost <= POINTS:
            return made, parity
        tried.append(parity)
    best = min(tried, key=lambda parity: parity.lost)
    raise StudentError(f"int8 loses {100 * best.lost:.1f} points ({best.summary()}); nothing was written: use fp32")


def _quantise(ready: Path, made: Path, pixels: Pixels, kept: tuple[str, ...], card: dict[str, Any]) -> None:
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.parts = _parts(pixels)

        def get_next(self) -> dict[str, Pixels] | None:
            part = next(self.parts, None)
            return None if part is None else {"pixels": part}

    quantize_static(
        str(ready),
        str(made),
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm", "MatMul", "Add", "Mul", "GlobalAveragePool", "Clip", "Relu"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=[*kept, *_preprocessing(ready)],
        calibrate_method=CalibrationMethod.MinMax,
    )
    model = onnx.load(str(made))
    _put_card(model, {**card, "precision": "int8"})
    onnx.save(model, str(made))


def _preprocessing(ready: Path) -> list[str]:
    """Return the nodes before the first layer, and after the last: pixels and cosines stay exact."""
    import onnx

    nodes = list(onnx.load(str(ready)).graph.node)
    layers = [place for place, node in enumerate(nodes) if node.op_type in ("Conv", "Gemm", "MatMul")]
    return [node.name for node in (*nodes[: layers[0]], *nodes[layers[-1] + 1 :])]


def _calibration(sources: Sources, size: int) -> Pixels:
    """Return training pictures of all source domains, drawn evenly."""
    rng = np.random.default_rng(derive(0, "calibration"))
    train, domains = sources.split.train, sources.dataset.domain_ids[sources.split.train]
    each = -(-CALIBRATION // len(np.unique(domains)))
    drawn = [rng.permutation(train[domains == domain])[:each] for domain in np.unique(domains)]
    return _pixels(sources, np.concatenate(drawn), size)


def _card_of(path: Path) -> dict[str, Any]:
    return load(path).card
