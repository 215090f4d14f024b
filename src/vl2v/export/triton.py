"""Triton's model repository: `NAME/1/model.onnx`, and the `NAME/config.pbtxt` that describes it."""

from pathlib import Path
from typing import Any

from vl2v.deploy.runtime import load, onnxruntime_library
from vl2v.io import write_text

BATCH = 32
DELAY = 2000  # microseconds that an image waits for others
_TYPES = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}
_CONFIG = """\
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
    text = _CONFIG.format(name=folder.resolve().name, batch=BATCH, inputs=inputs, outputs=outputs, delay=DELAY)
    write_text(folder / "config.pbtxt", text)


def _tensor(part: Any, label: str) -> str:
    dims = ", ".join(str(side) for side in part.shape[1:])  # the first is the batch's
    lines = [f'name: "{part.name}"', f"data_type: {_TYPES[part.type]}", f"dims: [ {dims} ]"]
    lines += [f'label_filename: "{label}"'] if label else []
    return "  {\n" + "".join(f"    {line}\n" for line in lines) + "  }"
