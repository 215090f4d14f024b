"""ONNX files, in fp32 and in int8: weights, preprocessing and card inside; and Triton's folder for one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vl2v.deploy.runtime import METADATA, load, onnxruntime_library
from vl2v.export.network import Network
from vl2v.export.parity import Pixels, parts
from vl2v.io import write_text

EXEMPT = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2)  # of the layers, that stay in fp32 where fewer aren't enough
RANKED = 8  # images that layers are compared on

_LAYERS = ("Conv", "Gemm", "MatMul")
_BETWEEN = ("Add", "Mul", "GlobalAveragePool", "Clip", "Relu")  # in int8, too, where no attention is

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


def int8_trials(plain: Path, card: dict[str, Any], pixels: Pixels) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield int8 files beside a plain one, and the layers that they leave in fp32: none, then more of the worst.

    Args:
        plain: an fp32 file.
        card: for the int8 one.
        pixels: [n, s, s, 3], for the ranges.
    """
    onnxruntime_library()  # without telemetry
    from onnxruntime.quantization import quant_pre_process

    ready = plain.with_name("ready.onnx")
    quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)

    def trial(exempt: tuple[str, ...]) -> tuple[Path, tuple[str, ...]]:
        made = plain.with_name(f"int8-{len(exempt)}.onnx")
        _quantise(ready, made, pixels, exempt=exempt)
        put_card(made, card)
        return made, exempt

    yield trial(())
    layers = worst_first(ready, pixels)
    for count in sorted({1, *(int(share * len(layers)) for share in EXEMPT)} - {0}):
        yield trial(tuple(layers[:count]))


def worst_first(ready: Path, pixels: Pixels) -> list[str]:
    """Return a file's layers by how far its output moves if only that one is in int8; on a few of the images."""
    few = pixels[:: -(-len(pixels) // RANKED)]
    alone = ready.with_name("alone.onnx")
    wanted, moved = _output(ready, few), {}
    for layer in _sorted_out(ready)[1]:
        _quantise(ready, alone, pixels, only=layer)
        moved[layer] = float(np.square(_output(alone, few) - wanted).mean())
    return sorted(moved, key=lambda layer: -moved[layer])


def _output(path: Path, pixels: Pixels) -> NDArray[np.float32]:
    session = onnxruntime_library().InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"pixels": pixels})[0])


def _quantise(ready: Path, made: Path, pixels: Pixels, *, exempt: Sequence[str] = (), only: str | None = None) -> None:
    """Write a file in int8, but for the layers that are exempt; or with a single layer in it.

    Weights have seven bits: processors without VNNI add two products of bytes in 16 bits, which those of eight bits
    overflow, so that the same file would give other classes there.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.parts = parts(pixels)

        def get_next(self) -> dict[str, Pixels] | None:
            part = next(self.parts, None)
            return None if part is None else {"pixels": part}

    inside, _, outside = _sorted_out(ready)
    quantize_static(
        str(ready),
        str(made),
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=inside,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=None if only is None else [only],
        nodes_to_exclude=[*exempt, *outside],
        calibrate_method=CalibrationMethod.MinMax,
        calibration_cache_path=ready.with_suffix(".ranges"),  # the same for every choice of layers
    )


def _sorted_out(ready: Path) -> tuple[list[str], list[str], list[str]]:
    """Return the kinds of node that become int8, the layers among them, and the nodes that don't all the same.

    What comes before the first layer and after the last stays: pixels and cosines are exact. Of a transformer only the
    layers with weights are taken: products of activations, and sums, gain no speed in int8 and can cost accuracy.
    """
    import onnx

    graph = onnx.load(str(ready)).graph
    nodes, weights = list(graph.node), {tensor.name for tensor in graph.initializer}
    layers = [place for place, node in enumerate(nodes) if node.op_type in _LAYERS]
    ends = [node.name for node in (*nodes[: layers[0]], *nodes[layers[-1] + 1 :])]
    products = [nodes[place].name for place in layers if not weights & set(nodes[place].input)]
    weighted = [nodes[place].name for place in layers if nodes[place].name not in products]
    return [*_LAYERS, *(() if products else _BETWEEN)], weighted, [*ends, *products]


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
