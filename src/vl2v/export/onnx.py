"""ONNX files: weights, preprocessing and card inside; and Triton's folder for one."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from vl2v.deploy.runtime import METADATA, load, onnxruntime_library
from vl2v.export.network import Network
from vl2v.io import write_text

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
