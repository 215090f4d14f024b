"""ONNX files, in fp32 and in int8: weights, preprocessing and card inside."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vl2v.drift import reference
from vl2v.export.network import Network
from vl2v.export.parity import Domain, Pixels, parts
from vl2v.prediction import UNKNOWN
from vl2v.runtime import METADATA, load, onnxruntime_library

_LAYERS = ("Conv", "Gemm", "MatMul")
_BETWEEN = ("Add", "Mul", "GlobalAveragePool", "Clip", "Relu")  # in int8, too, where no attention is


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
    _put_card(model, card)
    onnx.save(model, str(path))


def _forget_sources(graph: Any) -> None:
    """Take out what the exporter notes of where each node comes from: paths of this machine."""
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""


def _put_card(model: Any, card: dict[str, Any]) -> None:
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(card)


def add_reference(path: Path, domains: Sequence[Domain]) -> None:
    """Put into the card what live traffic can be compared with: each domain's mean output, and how much is unknown."""
    import onnx

    exported = load(path)
    rows = {each.name: np.concatenate([exported.run(part) for part in parts(each.pixels)]) for each in domains}
    answers = {name: exported.predictions(out) for name, out in rows.items()}
    outputs = {name: (out, [answer.best for answer in answers[name]]) for name, out in rows.items()}
    unknown = [answer.label == UNKNOWN for each in answers.values() for answer in each]
    model = onnx.load(str(path))
    _put_card(model, {**exported.card, "reference": reference(outputs, sum(unknown) / len(unknown))})
    onnx.save(model, str(path))


def int8_trials(plain: Path, card: dict[str, Any], pixels: Pixels) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield int8 files beside a plain one, and the layers that they leave in fp32: first none, then more and more.

    Args:
        plain: an fp32 file.
        card: for the int8 one.
        pixels: [n, s, s, 3], for the ranges.
    """
    import onnx

    onnxruntime_library()  # without telemetry
    from onnxruntime.quantization import quant_pre_process

    ready = plain.with_name("ready.onnx")
    quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
    layers = [node.name for node in onnx.load(str(ready)).graph.node if node.op_type in _LAYERS]
    for ends in (0, 1, len(layers) // 8, len(layers) // 4):
        kept = tuple(dict.fromkeys([*layers[:ends], *layers[len(layers) - ends :]]))
        made = plain.with_name(f"int8-{ends}.onnx")
        _quantise(ready, made, pixels, kept)
        model = onnx.load(str(made))
        _put_card(model, card)
        onnx.save(model, str(made))
        yield made, kept


def _quantise(ready: Path, made: Path, pixels: Pixels, kept: tuple[str, ...]) -> None:
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

    inside, outside = _sorted_out(ready)
    quantize_static(
        str(ready),
        str(made),
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=inside,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=[*kept, *outside],
        calibrate_method=CalibrationMethod.MinMax,
    )


def _sorted_out(ready: Path) -> tuple[list[str], list[str]]:
    """Return the kinds of node that become int8, and the nodes that don't all the same.

    What comes before the first layer and after the last stays: pixels and cosines are exact. Of a transformer only the
    layers with weights are taken: products of activations, and sums, gain no speed in int8 and can cost accuracy.
    """
    import onnx

    graph = onnx.load(str(ready)).graph
    nodes, weights = list(graph.node), {tensor.name for tensor in graph.initializer}
    layers = [place for place, node in enumerate(nodes) if node.op_type in _LAYERS]
    ends = [node.name for node in (*nodes[: layers[0]], *nodes[layers[-1] + 1 :])]
    products = [nodes[place].name for place in layers if not weights & set(nodes[place].input)]
    return [*_LAYERS, *(() if products else _BETWEEN)], [*ends, *products]
