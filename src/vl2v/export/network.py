"""What is exported: the student's network with its preprocessing and its card, as ONNX; and Triton's folder for one."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.nn import functional

from vl2v.deploy.drift import reference
from vl2v.deploy.runtime import FORMAT, METADATA, Exported, load, onnxruntime_library
from vl2v.export.parity import Domain, Pixels, parts
from vl2v.io import write_text
from vl2v.names import UNKNOWN
from vl2v.students.classifier import Classifier

PUBLIC = ("method", "seed", "sources", "target", "images", "validation_accuracy", "validation_agreement")
PREPROCESSING = {
    "orientation": "EXIF orientation is applied",
    "colours": "8-bit RGB: palettes are resolved, transparency is laid on white, grey and CMYK are converted without "
    "colour profiles, of 16 bits the upper 8 are taken, of an animation the first frame",
    "fit": "stretch: the whole image, without keeping its ratio; crop: its central square, which begins at "
    "(longer side - shorter side) // 2; pad: the image on a square of its longer side in RGB 124, 116, 104, "
    "from (longer - shorter side) // 2 on",
    "resize": "to image_size x image_size",
    "filter": "bilinear with antialiasing (Pillow's BILINEAR): weights fall linearly to nothing at max(1, old / new) "
    "old pixels from the new pixel's centre; first along rows, then along columns, each result rounded to 8 bits",
    "input": "pixels, uint8 [n, image_size, image_size, 3], 0 to 255; normalisation is in the network",
}
"""How images become what the network takes, for programs in other languages: what `vl2v.data` does."""


class Network(nn.Module):
    """Pixels [n, s, s, 3] (uint8) to logits [n, C] (closed) or unit embeddings [n, d] (open)."""

    mean: Tensor
    std: Tensor
    texts: Tensor | None

    def __init__(self, classifier: Classifier, *, form: str) -> None:
        super().__init__()
        student = classifier.student
        self.backbone, self.projector = reparameterize_model(student.backbone), student.projector  # of a copy
        for part in self.backbone.modules():
            if hasattr(part, "fused_attn"):  # ONNX has no fused attention, and not every mask can be taken apart (BEiT)
                part.fused_attn = False
        self.normalised = student.head == "text"
        self.size = student.spec.image_size
        for name, each in (("mean", student.mean), ("std", student.std)):  # of a row: three numbers at a time are slow
            self.register_buffer(name, each.view(3).repeat(self.size, 1))
        texts = classifier.texts if form == "closed" else None
        self.register_buffer("texts", None if texts is None else texts * classifier.scale)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return what the student's own forward does, in one piece."""
        x = ((pixels.to(torch.float32) - self.mean) / self.std).permute(0, 3, 1, 2)
        out: Tensor = self.projector(self.backbone(x))
        if self.normalised:
            out = functional.normalize(out, dim=-1)
        return out if self.texts is None else out @ self.texts.T

    @property
    def example(self) -> Tensor:
        """Pixels to trace it with."""
        return torch.zeros(2, self.size, self.size, 3, dtype=torch.uint8)


def public_about(about: dict[str, Any]) -> dict[str, Any]:
    """Return what others may know of where a student comes from: no folder and no address of its maker's."""
    return {name: about[name] for name in PUBLIC if name in about}


def card_of(classifier: Classifier, form: str, precision: str) -> dict[str, Any]:
    """Return what an export says of itself, plain types only."""
    card = {
        "format": FORMAT,
        "form": form,
        "image_size": classifier.student.spec.image_size,
        "fit": classifier.student.spec.fit,
        "classes": classifier.classes,
        "scale": classifier.scale,
        "temperature": classifier.temperature,
        "threshold": classifier.threshold,
        "precision": precision,
        "preprocessing": PREPROCESSING,
        "about": public_about(classifier.about),
    }
    if classifier.about.get("teacher"):  # how another class's embedding is queried
        card["teacher"] = classifier.about["teacher"]["fingerprint"]
        card["prompts"] = classifier.about["prompts"]
    if form == "open" and classifier.texts is not None:
        card["texts"] = base64.b64encode(classifier.texts.float().numpy().tobytes()).decode()
    return card


def with_reference(exported: Exported, domains: Sequence[Domain]) -> dict[str, Any]:
    """Return an export's card with what live traffic is compared with."""
    rows = {each.name: np.concatenate([exported.run(part) for part in parts(each.pixels)]) for each in domains}
    found = {name: exported.predictions(out) for name, out in rows.items()}
    outputs = {
        name: (out, [one.best for one in found[name]], [one.probability for one in found[name]])
        for name, out in rows.items()
    }
    unknown = [one.label == UNKNOWN for each in found.values() for one in each]
    return {**exported.card, "reference": reference(outputs, unknown)}


def as_export(network: Network, card: dict[str, Any]) -> Exported:
    """Return a network as it will be once it is a file."""

    def run(pixels: Pixels) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(network(torch.from_numpy(pixels)))

    return Exported(run, card)


TRITON_BATCH = 32
_DELAY = 2000  # microseconds that an image waits for others
_TRITON_TYPES = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}
_TRITON = """\
name: "{name}"
backend: "onnxruntime"
max_batch_size: {batch}
input [
{inputs}
]
output [
{outputs}
]
dynamic_batching {{
  max_queue_delay_microseconds: {delay}
}}
"""


def write_onnx(network: Network, card: dict[str, Any], path: Path) -> None:
    """Write a network and its card."""
    import onnx

    logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)  # which warns where there is no Triton
    program = torch.onnx.export(
        network,
        (network.example,),
        input_names=["pixels"],
        output_names=["embedding" if card["form"] == "open" else "logits"],
        dynamic_shapes={"pixels": {0: torch.export.Dim("n", min=1, max=4096)}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    program.save(str(path), external_data=False)
    model = onnx.load(str(path))
    _forget_sources(model.graph)
    set_card(model, card)
    onnx.save(model, str(path))


def _forget_sources(graph: Any) -> None:
    """Take out what the exporter notes of where each node comes from: paths of this machine."""
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""


def set_card(model: Any, card: dict[str, Any]) -> None:
    """Give a model in memory another card."""
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(card)


def put_card(path: Path, card: dict[str, Any]) -> None:
    """Give an ONNX file another card."""
    import onnx

    model = onnx.load(str(path))
    set_card(model, card)
    onnx.save(model, str(path))


def model_file(folder: Path) -> Path:
    """Return where the model of a folder of the repository is."""
    return folder / "1" / "model.onnx"


def write_config(folder: Path) -> None:
    """Write the `config.pbtxt` beside a model: its tensors, and dynamic batching.

    The classes of a closed export are in `labels.txt`, for Triton's classification extension.
    """
    student = load(model_file(folder))
    session = onnxruntime_library().InferenceSession(str(model_file(folder)), providers=["CPUExecutionProvider"])
    label = "" if student.card["form"] == "open" else "labels.txt"
    if label:
        write_text(folder / label, "".join(f"{name}\n" for name in student.classes))
    inputs, outputs = (
        ",\n".join(_tensor(part, label) for part in parts)
        for parts, label in ((session.get_inputs(), ""), (session.get_outputs(), label))
    )
    text = _TRITON.format(name=folder.resolve().name, batch=TRITON_BATCH, inputs=inputs, outputs=outputs, delay=_DELAY)
    write_text(folder / "config.pbtxt", text)


def _tensor(part: Any, label: str) -> str:
    dims = ", ".join(str(side) for side in part.shape[1:])  # the first is the batch's
    lines = [f'name: "{part.name}"', f"data_type: {_TRITON_TYPES[part.type]}", f"dims: [ {dims} ]"]
    lines += [f'label_filename: "{label}"'] if label else []
    return "  {\n" + "".join(f"    {line}\n" for line in lines) + "  }"
