"""ONNX files in int8: which layers, and weights that are rounded so that the layers' outputs change little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vl2v.deploy.runtime import onnxruntime_library
from vl2v.export.network import put_card
from vl2v.export.parity import Pixels, parts

FRONT = (1 / 16, 1 / 8, 1 / 4, 3 / 8)  # of the layers, that stay in fp32 where fewer aren't enough: the first ones,
EXEMPT = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2)  # and if that isn't enough, those that cost most, wherever they are
RANKED = 8  # images that layers are compared on
STEPS = 64  # a weight is one of -64 to 64 times its output's scale
WATCHED, POSITIONS = 64, 64  # images, and outputs of an image, that weights are rounded by
TOGETHER = 4  # of these images in memory
WIDEST = 2304  # inputs an output: of more, weights are rounded to the nearest
DAMPING = 0.01  # of a layer's mean squared input, added to each, so that inputs that are 0 or alike do no harm
BLOCK = 64  # inputs that are rounded before the others are made up

Weights = NDArray[np.float32]

_LAYERS = ("Conv", "Gemm", "MatMul")
_BETWEEN = ("Add", "Mul", "GlobalAveragePool", "Clip", "Relu")  # in int8, too, where no attention is


def int8_trials(plain: Path, card: dict[str, Any], pixels: Pixels) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield int8 files beside a plain one, and the layers left in fp32: none, then the first ones, then the worst ones.

    The first layers have the largest images, few channels and the coarsest numbers. Numbers go from fp32 to int8 once
    behind them, but twice for each of the worst that lies alone.

    Args:
        plain: an fp32 file.
        card: for the int8 one.
        pixels: [n, s, s, 3], for the ranges, and for how weights are rounded.
    """
    onnxruntime_library()  # without telemetry
    from onnxruntime.quantization import quant_pre_process

    ready = plain.with_name("ready.onnx")
    quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
    weights = rounded_weights(ready, pixels)

    def trial(exempt: tuple[str, ...], kind: str = "first") -> tuple[Path, tuple[str, ...]]:
        made = plain.with_name(f"int8-{kind}-{len(exempt)}.onnx")
        _quantise(ready, made, pixels, weights, exempt=exempt)
        put_card(made, card)
        return made, exempt

    yield trial(())
    layers = _sorted_out(ready)[1]
    for count in sorted({int(share * len(layers)) for share in FRONT} - {0}):
        yield trial(tuple(layers[:count]))
    layers = worst_first(ready, pixels, weights)
    for count in sorted({1, *(int(share * len(layers)) for share in EXEMPT)} - {0}):
        yield trial(tuple(layers[:count]), "worst")


def worst_first(ready: Path, pixels: Pixels, weights: Mapping[str, Weights]) -> list[str]:
    """Return a file's layers by how far its output moves if only that one is in int8; on a few of the images."""
    few = _few(pixels, RANKED)
    alone = ready.with_name("alone.onnx")
    wanted, moved = _output(ready, few), {}
    for layer in _sorted_out(ready)[1]:
        _quantise(ready, alone, pixels, weights, only=layer)
        moved[layer] = float(np.square(_output(alone, few) - wanted).mean())
    return sorted(moved, key=lambda layer: -moved[layer])


def _few(pixels: Pixels, count: int) -> Pixels:
    """Return about so many of the images, evenly."""
    return pixels[:: -(-len(pixels) // count)]


def _output(path: Path, pixels: Pixels) -> Weights:
    session = onnxruntime_library().InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"pixels": pixels})[0])


def _quantise(
    ready: Path,
    made: Path,
    pixels: Pixels,
    weights: Mapping[str, Weights],
    *,
    exempt: Sequence[str] = (),
    only: str | None = None,
) -> None:
    """Write a file in int8, but for the layers that are exempt; or with a single layer in it.

    Weights have seven bits: processors without VNNI add two products of bytes in 16 bits, which those of eight bits
    overflow, so that the same file would give other classes there.
    """
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
            self.parts = parts(pixels)

        def get_next(self) -> dict[str, Pixels] | None:
            part = next(self.parts, None)
            return None if part is None else {"pixels": part}

    inside, _, outside = _sorted_out(ready)
    model, source = onnx.load(str(ready)), ready.with_name("rounded.onnx")
    names = {node.input[1]: node.name for node in model.graph.node if node.name in weights}
    for tensor in model.graph.initializer:
        layer = names.get(tensor.name)
        if layer is not None and layer not in exempt and only in (None, layer):
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights[layer], tensor.name))
    onnx.save(model, str(source))
    quantize_static(
        str(source),
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


def rounded_weights(ready: Path, pixels: Pixels) -> dict[str, Weights]:
    """Return layers' weights as int8 has them, rounded so that the layers' outputs change little.

    Args:
        ready: an fp32 file.
        pixels: [n, s, s, 3], whose way through the layers tells which inputs go together.

    Returns:
        By the layer's name; none of a layer that shares its weights or has more than `WIDEST` inputs an output, nor of
        convolutions in one or three dimensions.
    """
    import onnx

    model = onnx.load(str(ready))
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    uses, none = Counter(name for node in model.graph.node for name in node.input), np.empty(0)
    layers = [
        _Layer(node, arrays[node.input[1]])
        for node in model.graph.node
        if node.op_type in _LAYERS
        and uses[node.input[1]] == 1
        and arrays.get(node.input[1], none).ndim == (4 if node.op_type == "Conv" else 2)
    ]
    layers = [layer for layer in layers if layer.rows.shape[-1] <= WIDEST]
    names = sorted({layer.source for layer in layers} - {given.name for given in model.graph.input})
    outs = {out.name for out in model.graph.output}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in outs)
    session = onnxruntime_library().InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    few = _few(pixels, WATCHED)
    for start in range(0, len(few), TOGETHER):
        found = dict(zip(names, session.run(names, {"pixels": few[start : start + TOGETHER]}), strict=True))
        for layer in layers:
            inputs = layer.inputs(found[layer.source])
            layer.squares = layer.squares + inputs @ inputs.swapaxes(1, 2)
    return {layer.name: layer.shaped(rounded(layer.rows, layer.squares)) for layer in layers}


def rounded(weights: Weights, squares: Weights) -> Weights:
    """Round weights to whole multiples of an output's scale, input by input.

    What a rounding changes of the output is made up for by the weights that follow, as far as inputs go together
    (GPTQ: Frantar et al. 2022, arXiv 2210.17323, algorithm 1). The largest weight of an output stays, since the scale
    is taken from it.

    Args:
        weights: [g, o, k], of g groups of o outputs of k inputs each.
        squares: [g, k, k], sums of products of the inputs of a group.
    """
    left, count = weights.astype(np.float64), weights.shape[-1]
    largest, place = np.abs(left).max(-1), np.abs(left).argmax(-1)
    scale = np.where(largest > 0, largest / STEPS, 1)
    mean = np.diagonal(squares, axis1=1, axis2=2).mean(-1)
    damped = squares + (DAMPING * mean + 1e-9)[:, None, None] * np.eye(count)
    upper = np.linalg.cholesky(np.linalg.inv(damped.astype(np.float64))).swapaxes(1, 2)
    found, lost = np.empty_like(left), np.empty_like(left)
    for start in range(0, count, BLOCK):
        end = min(start + BLOCK, count)
        for j in range(start, end):
            one = np.clip(np.round(left[..., j] / scale), -STEPS, STEPS) * scale
            found[..., j] = np.where(place == j, weights[..., j], one)
            lost[..., j] = (left[..., j] - found[..., j]) / upper[:, j, j, None]
            left[..., j + 1 : end] -= lost[..., j, None] * upper[:, j, None, j + 1 : end]
        left[..., end:] -= lost[..., start:end] @ upper[:, start:end, end:]
    return found.astype(np.float32)


class _Layer:
    """A layer: its weights as rows [g, o, k], by groups and outputs, and what it takes of images."""

    def __init__(self, node: Any, weights: Weights) -> None:
        import onnx

        given = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        self.name, self.source, self.shape = node.name, node.input[0], weights.shape
        self.convolution, self.turned = node.op_type == "Conv", node.op_type != "Conv" and not given.get("transB")
        self.pads = given.get("pads", (0, 0, 0, 0))
        self.strides, self.dilations = given.get("strides", (1, 1)), given.get("dilations", (1, 1))
        rows = weights.T if self.turned else weights.reshape(len(weights), -1)
        self.rows: Weights = rows.reshape(given.get("group", 1), -1, rows.shape[1])
        self.squares: Weights = np.zeros((), np.float32)

    def inputs(self, x: Weights) -> Weights:
        """Return what at most `POSITIONS` outputs of each image are sums of, [g, k, m]."""
        if not self.convolution:
            rows = x.reshape(-1, x.shape[-1])
            return rows[:: -(-len(rows) // (POSITIONS * len(x)))].T[None]
        top, left, bottom, right = self.pads
        (down, across), (far, wide) = self.strides, self.dilations
        reach = (1 + far * (self.shape[2] - 1), 1 + wide * (self.shape[3] - 1))
        padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        seen = sliding_window_view(padded, reach, (2, 3))[:, :, ::down, ::across, ::far, ::wide]
        height, width = seen.shape[2:4]
        picked = np.arange(0, height * width, -(-height * width // POSITIONS))
        columns = seen[:, :, picked // width, picked % width].transpose(1, 3, 4, 0, 2)
        return columns.reshape(len(self.rows), self.rows.shape[-1], -1)

    def shaped(self, rows: Weights) -> Weights:
        """Return rows [g, o, k] as the node has its weights."""
        return np.ascontiguousarray(rows[0].T if self.turned else rows.reshape(self.shape))
