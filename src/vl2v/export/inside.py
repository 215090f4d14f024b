"""Preprocessing and probabilities as part of an ONNX graph: images of any size in, a probability a class out."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from vl2v.data.augment import PADDING, Fit
from vl2v.export.network import set_card

IMAGE, PIXELS, PROBABILITIES = "image", "pixels", "probabilities"


class _Nodes:
    """Nodes and constants in the order in which they are computed."""

    def __init__(self, prefix: str) -> None:
        self.prefix = f"vl2v/{prefix}"
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, op: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """Add a node and return its output's name."""
        from onnx import helper

        name = f"{self.prefix}/{len(self.nodes)}_{op}"
        out = out or name
        self.nodes.append(helper.make_node(op, list(inputs), [out], name, **attributes))
        return out

    def constant(self, value: ArrayLike, dtype: DTypeLike = np.int64) -> str:
        """Add a constant and return its name."""
        from onnx import numpy_helper

        name = f"{self.prefix}/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def either(self, condition: str, values: str, perm: list[int], other: list[int], kind: int) -> str:
        """Add a transposition that depends on a condition and return its output's name."""
        from onnx import helper

        branches = {}
        for branch, axes in (("then_branch", perm), ("else_branch", other)):
            name = f"{self.prefix}/{len(self.nodes)}_{branch}"
            node = helper.make_node("Transpose", [values], [name], name, perm=axes)
            info = helper.make_tensor_value_info(name, kind, [None] * 4)
            branches[branch] = helper.make_graph([node], name, [], [info])
        return self.add("If", condition, **branches)


def put_inside(source: Path, card: dict[str, Any], path: Path) -> None:
    """Write an ONNX file that takes images, not pixels, and gives probabilities, too.

    The new input is `image`, uint8 RGB [h, w, 3] or a batch [n, h, w, 3], of any size; the outputs are `probabilities`
    [n, C] and what the source gives.

    Args:
        source: an ONNX file that takes pixels [n, s, s, 3].
    """
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(str(source))
    graph, size = model.graph, card["image_size"]
    before, after = _Nodes("before"), _Nodes("after")
    add_resize(before, size, card["fit"])
    _probabilities(after, graph.output[0].name, card)
    image = helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, None)
    probabilities = helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["n", len(card["classes"])])
    inside = helper.make_graph(
        [*before.nodes, *graph.node, *after.nodes],
        graph.name,
        [image],
        [probabilities, *graph.output],
        [*before.constants, *graph.initializer, *after.constants],
    )
    graph.CopyFrom(inside)
    set_card(model, card)
    onnx.save(model, str(path))


def add_resize(nodes: _Nodes, size: int, fit: Fit) -> None:
    """Add what makes pixels [n, s, s, 3] of images: Pillow's BILINEAR in Pillow's own integers, to the last bit.

    ONNX's Resize isn't used: its kernels differ from Pillow by a level or two, which moves probabilities by up to 0.02.
    From Pillow 13 on the columns come first where the height shrinks by more than twice as many pixels as the width.
    """
    from onnx import TensorProto

    last = nodes.add("Shape", IMAGE, start=-3)
    batch = nodes.add("Reshape", IMAGE, nodes.add("Concat", nodes.constant([-1]), last, axis=0))
    batch = _fitted(nodes, batch, fit)
    height, width = _sides(nodes, batch)
    shrunk = nodes.add("Sub", height, nodes.constant(size))
    twice = nodes.add("Mul", nodes.add("Sub", width, nodes.constant(size)), nodes.constant(2))
    shrinks = nodes.add("Greater", shrunk, nodes.constant(0))
    columns = nodes.add("And", shrinks, nodes.add("Greater", shrunk, twice))
    first = nodes.either(columns, batch, [1, 0, 2, 3], [2, 0, 1, 3], TensorProto.UINT8)
    half = nodes.add("Transpose", _resize_axis(nodes, first, size), perm=[2, 1, 0, 3])
    both = _resize_axis(nodes, nodes.add("Cast", half, to=TensorProto.UINT8), size)
    square = nodes.either(columns, both, [1, 2, 0, 3], [1, 0, 2, 3], TensorProto.INT32)
    nodes.add("Cast", square, out=PIXELS, to=TensorProto.UINT8)


def _sides(nodes: _Nodes, batch: str) -> list[str]:
    """Add what gives the height and the width of a batch [n, h, w, 3], and return their names."""
    shape = nodes.add("Shape", batch)
    return [nodes.add("Gather", shape, nodes.constant([axis])) for axis in (1, 2)]


def _fitted(nodes: _Nodes, batch: str, fit: Fit) -> str:
    """Add what `vl2v.data.augment.fitted` does to a batch [n, h, w, 3], and return the name of what is resized."""
    if fit == "stretch":
        return batch
    sides = _sides(nodes, batch)
    side = nodes.add("Min" if fit == "crop" else "Max", *sides)
    colour = nodes.constant(PADDING, np.uint8)
    for axis, old in zip((1, 2), sides, strict=True):
        apart = nodes.add("Abs", nodes.add("Sub", old, side))
        before = nodes.add("Div", apart, nodes.constant([2]))
        if fit == "crop":
            end = nodes.add("Add", before, side)
            batch = nodes.add("Slice", batch, before, end, nodes.constant([axis]))
            continue
        count = nodes.add("Gather", nodes.add("Shape", batch), nodes.constant([0]))
        other = nodes.add("Gather", nodes.add("Shape", batch), nodes.constant([3 - axis]))
        margins = []
        for length in (before, nodes.add("Sub", apart, before)):
            shape = (count, length, other) if axis == 1 else (count, other, length)
            margins.append(nodes.add("Expand", colour, nodes.add("Concat", *shape, nodes.constant([3]), axis=0)))
        batch = nodes.add("Concat", margins[0], batch, margins[1], axis=axis)
    return batch


def _resize_axis(nodes: _Nodes, values: str, new: int) -> str:
    """Add what resizes the first axis of bytes [old, a, b, 3], and return the name of levels [new, a, b, 3].

    New pixel i is the mean of the old pixels j near its centre. In integers, the weight of j is
    D - |(2j + 1) new - (2i + 1) old| with D = 2 max(old, new), divided by the sum of all of i's and rounded to 22 bits,
    as in Pillow. Weights are cut into bytes, so that their products with bytes are exact in 32 bits.
    """
    from onnx import TensorProto

    add, number = nodes.add, nodes.constant
    zero, one, two, size = number(0), number(1), number(2), number(new)
    old = add("Gather", add("Shape", values), zero)
    large = add("Max", old, size)
    steps = add("Div", add("Add", large, number(new - 1)), size)
    taps = add("Range", zero, add("Add", add("Mul", steps, two), one), one)
    centres = add("Mul", number(2 * np.arange(new)[:, None] + 1), old)
    start = add("Sub", add("Add", centres, size), add("Mul", large, two))
    start = add("Max", add("Div", start, number(2 * new)), zero)
    positions = add("Add", start, taps)  # [new, taps]
    positions_2 = add("Add", add("Mul", positions, two), one)
    away = add("Abs", add("Sub", add("Mul", positions_2, size), centres))
    weights = add("Max", add("Sub", add("Mul", large, two), away), zero)
    weights = add("Where", add("Less", positions, old), weights, zero)
    whole = add("ReduceSum", weights, number([1]))
    shares, rest = zero, weights
    for bits in (8, 7, 7):  # long division: all numbers stay below 2^31, which OpenVINO computes in
        rest = add("Mul", rest, number(1 << bits))
        digit = add("Div", rest, whole)
        rest = add("Sub", rest, add("Mul", digit, whole))
        shares = add("Add", add("Mul", shares, number(1 << bits)), digit)
    up = add("Cast", add("GreaterOrEqual", add("Mul", rest, two), whole), to=TensorProto.INT64)
    shares = add("Add", shares, up)
    byte = number(256)
    low = add("Mod", shares, byte)
    high = add("Div", shares, number(1 << 16))
    middle = add("Mod", add("Div", shares, byte), byte)
    axis = number([1])
    parts = [add("Unsqueeze", part, axis) for part in (high, middle, low)]
    bytes_ = add("Cast", add("Concat", *parts, axis=1), to=TensorProto.UINT8)  # [new, 3, taps]
    inside = add("Min", positions, add("Sub", old, one))
    rows = add("Reshape", values, number([0, -1]))
    near = add("Gather", rows, inside, axis=0)  # [new, taps, a * b * 3]
    sums = add("MatMulInteger", bytes_, near)  # [new, 3, a * b * 3]
    high, middle, low = (add("Gather", sums, number(part), axis=1) for part in range(3))
    byte, eighth, sixty_four, white = (nodes.constant(value, np.int32) for value in (256, 1 << 13, 64, 255))
    carried = add("Div", add("Add", add("Add", middle, add("Div", low, byte)), eighth), byte)  # rounds, too
    levels = add("Min", add("Div", add("Add", high, carried), sixty_four), white)
    return add("Reshape", levels, add("Concat", number([new]), add("Shape", values, start=1), axis=0))


def _probabilities(nodes: _Nodes, out: str, card: dict[str, Any]) -> None:
    """Add softmax(logits / temperature); of the open form, for the classes that it is exported with."""
    if card["form"] == "open":
        texts = np.frombuffer(base64.b64decode(card["texts"]), np.float32).reshape(len(card["classes"]), -1)
        scaled = nodes.add("MatMul", out, nodes.constant(texts.T * (card["scale"] / card["temperature"]), np.float32))
    else:
        scaled = nodes.add("Div", out, nodes.constant(card["temperature"], np.float32))
    nodes.add("Softmax", scaled, out=PROBABILITIES, axis=-1)
