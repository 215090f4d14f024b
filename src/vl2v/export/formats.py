"""The formats, and how those beside ONNX are written: OpenVINO from an ONNX file, the others from the network."""

from __future__ import annotations

import io
import json
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vl2v.deploy.runtime import METADATA, files_of, onnxruntime_library, openvino_library, size_of
from vl2v.errors import ConfigError, RunError, StudentError, need_extra, writing
from vl2v.export.int8 import FRONT
from vl2v.export.network import Network
from vl2v.export.parity import Parity, Pixels
from vl2v.io import NEW, replacing, write_bytes

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
INSIDE = ("onnx", "openvino", "web")  # formats that can have preprocessing inside
NEEDED = {
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
            new = path.with_name(path.name + NEW)
            try:
                shutil.rmtree(new, ignore_errors=True)  # of one that was killed
                for source in files_of(self.path):
                    write_bytes(new / source.relative_to(self.path), source.read_bytes())
                with writing(path, RunError):
                    shutil.rmtree(path, ignore_errors=True)
                    new.rename(path)
            finally:
                shutil.rmtree(new, ignore_errors=True)
            return
        with ExitStack() as both:  # all of them are written before the first takes its name
            for source, file in zip(files_of(self.path), files_of(path), strict=True):
                both.enter_context(replacing(file)).write_bytes(source.read_bytes())


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
    if preprocess == "inside" and kind not in INSIDE:
        raise ConfigError(f"--preprocess inside: not available for {kind}, only for {', '.join(INSIDE)}")
    for module, extra in NEEDED[kind].items():
        onnxruntime_library() if module == "onnxruntime" else need_extra(module, extra)
    if kind == "openvino":
        openvino_library()


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


def write_openvino(source: Path, card: dict[str, Any], path: Path) -> None:
    """Write an ONNX file, fp32 or int8, as OpenVINO's `path` (.xml) and the weights beside it (.bin)."""
    openvino = openvino_library()
    model = openvino.Core().read_model(str(source))
    if model.input(0).partial_shape.rank.is_dynamic:  # an image or a batch of any size: here always a batch
        model.reshape([-1, -1, -1, 3])
    model.set_rt_info(json.dumps(card), METADATA)
    openvino.save_model(model, str(path), compress_to_fp16=False)


def write_torchscript(network: Network, card: dict[str, Any], path: Path) -> None:
    """Write a network for LibTorch; torch calls TorchScript deprecated, and still reads and writes it.

    (Its own writing to a file ends the process where the disk is full.)
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the deprecation, and of sizes that a trace takes for constants
        traced = torch.jit.freeze(torch.jit.trace(network, (network.example,), check_trace=False))
        archive = traced.save_to_buffer(_extra_files={METADATA: json.dumps(card)})
    path.write_bytes(_without_sources(archive))


def _without_sources(archive: bytes) -> bytes:
    """Return an archive without what it notes of where each line comes from: paths of this machine."""
    reader, kept = torch._C.PyTorchFileReader(io.BytesIO(archive)), io.BytesIO()
    writer = torch._C.PyTorchFileWriter(kept)
    for name in reader.get_all_records():
        if not name.endswith(".debug_pkl") and name not in ("version", "byteorder", ".data/serialization_id"):
            data = reader.get_record(name)
            writer.write_record(name, data, len(data))
    writer.write_end_of_file()
    return kept.getvalue()


def write_executorch(network: Network, card: dict[str, Any], path: Path) -> None:
    """Write a network for phones, its layers computed by XNNPACK; one image at a time.

    (ExecuTorch 1.5 narrows a range of batch sizes as it lowers: of 1 to 64 it left 2 to 15.)
    """
    need_extra("executorch.exir", "executorch")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(network, (network.example[:1],))
    lowered = to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner()], constant_methods={METADATA: json.dumps(card)}
    )
    path.write_bytes(lowered.to_executorch().buffer)


def write_litert(network: Network, path: Path) -> None:
    """Write a network for LiteRT (TensorFlow Lite's successor); one image at a time."""
    need_extra("litert_torch", "litert").convert(network, (network.example[:1],)).export(str(path))


def litert_int8_trials(source: Path, card: dict[str, Any], pixels: Pixels) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield int8 files beside a LiteRT file, and the layers left in fp32: none, then more and more of the first ones.

    Weights are per channel, each rounded to the nearest; ranges of activations are those of images [n, s, s, 3].
    """
    quantizer = need_extra("ai_edge_quantizer.quantizer", "litert")
    recipe = need_extra("ai_edge_quantizer.recipe", "litert")
    model, ready = _litert_model(source), source.with_name("ready.tflite")
    _revive_channels(model)
    _save_litert(model, ready)
    outputs = [_first_output(model, node) for node in model.subgraphs[0].operators]
    layers = [
        number for number, node in enumerate(model.subgraphs[0].operators) if _kind(model, node) in _litert_layers()
    ]
    images = [{"args_0": image[None]} for image in pixels]
    for count in (0, *sorted({int(share * len(layers)) for share in FRONT} - {0})):
        made = quantizer.Quantizer(str(ready))
        made.load_quantization_recipe(recipe.static_wi8_ai8())
        exempt = [f"^{re.escape(name)};" for name in outputs[: layers[count] if count else 0]]
        for scope, kind in (*((scope, "*") for scope in exempt), (".*", "OUTPUT")):  # logits are floats, as in fp32
            made.update_quantization_recipe(scope, kind, algorithm_key="no_quantize")
        path = source.with_name(f"int8-first-{count}.tflite")
        made.quantize(made.calibrate({"serving_default": images}, num_threads=1)).export_model(path, overwrite=True)
        put_litert_card(path, card)
        yield path, tuple(outputs[layer] for layer in layers[:count])


def _revive_channels(model: Any) -> None:
    """Give each channel of a convolution a weight of at least a ten thousandth of the layer's largest.

    Pretrained networks have channels of next to no weight, where a batch norm's variance is 0. In int8 a bias is a
    whole number of steps of input and weight, which overflows 32 bits there; this changes next to nothing else.
    """
    axes = _litert_layers()
    for graph in model.subgraphs:
        for node in graph.operators:
            axis = axes.get(_kind(model, node))
            if axis is None:
                continue
            tensor = graph.tensors[node.inputs[1]]
            buffer = model.buffers[tensor.buffer]
            weights = np.moveaxis(np.array(buffer.data, np.uint8).view(np.float32).reshape(tensor.shape), axis, 0)
            rows = weights.reshape(len(weights), -1).copy()
            largest = np.abs(rows).max(1)
            rows[largest < largest.max() / 10_000, 0] = largest.max() / 10_000
            buffer.data = np.ascontiguousarray(np.moveaxis(rows.reshape(weights.shape), 0, axis)).ravel().view(np.uint8)


def _litert_layers() -> dict[int, int]:
    """Return the kinds of LiteRT's convolutions, and the axis of their weights that channels lie on."""
    kinds = need_extra("ai_edge_litert.schema_py_generated", "litert").BuiltinOperator
    return {kinds.CONV_2D: 0, kinds.DEPTHWISE_CONV_2D: 3}


def _kind(model: Any, node: Any) -> int:
    code = model.operatorCodes[node.opcodeIndex]
    kind: int = max(code.builtinCode, code.deprecatedBuiltinCode)
    return kind


def _first_output(model: Any, node: Any) -> str:
    name: bytes = model.subgraphs[0].tensors[node.outputs[0]].name
    return name.decode()


def put_litert_card(path: Path, card: dict[str, Any]) -> None:
    """Write a card into a LiteRT file, as the metadata entry `vl2v`; an earlier one is replaced."""
    schema = need_extra("ai_edge_litert.schema_py_generated", "litert")
    model = _litert_model(path)
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(json.dumps(card).encode(), np.uint8)
    entry.name, entry.buffer = METADATA, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(each for each in model.metadata or [] if each.name != METADATA.encode()), entry]
    _save_litert(model, path)


def _litert_model(path: Path) -> Any:
    """Return a LiteRT file as objects; weights of megabytes, which the quantizer puts behind them, are among them."""
    data = path.read_bytes()
    model = need_extra("ai_edge_litert.schema_py_generated", "litert").ModelT.InitFromPackedBuf(data, 0)
    for buffer in model.buffers:
        if buffer.offset > 1:  # 0 and 1: it is empty, or among them
            buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def _save_litert(model: Any, path: Path) -> None:
    builder = need_extra("flatbuffers", "litert").Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())


class _Probabilities(nn.Module):
    """Images [1, 3, s, s], 0 to 255, to calibrated probabilities [1, C]."""

    def __init__(self, network: Network, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, image: Tensor) -> Tensor:
        """Return the probabilities."""
        logits: Tensor = self.network(image.permute(0, 2, 3, 1))
        return (logits / self.temperature).softmax(-1)


def write_coreml(network: Network, card: dict[str, Any], path: Path) -> None:
    """Write a network as a Core ML classifier, a folder: an RGB image in, its class and all probabilities out.

    Core ML runs on Apple's systems only: what can be checked elsewhere is what the file says of itself.

    Raises:
        StudentError: an open form; or the file's own description isn't that of this student.
    """
    if card["form"] == "open":
        raise StudentError("Core ML: there is no open form; its classifier has fixed classes")
    tools = need_extra("coremltools", "coreml")
    size = network.size
    example = torch.zeros(1, 3, size, size)
    with torch.no_grad():
        program = torch.export.export(_Probabilities(network, card["temperature"]).eval(), (example,))
    made = tools.convert(
        program.run_decompositions({}),
        inputs=[tools.ImageType(name="image", shape=example.shape, color_layout=tools.colorlayout.RGB)],
        classifier_config=tools.ClassifierConfig(card["classes"]),
        convert_to="mlprogram",
        compute_precision=tools.precision.FLOAT32,
        minimum_deployment_target=tools.target.iOS16,
        skip_model_load=True,
    )
    made.user_defined_metadata[METADATA] = json.dumps(card)
    made.save(str(path))
    spec = tools.models.MLModel(str(path), skip_model_load=True).get_spec()
    (image,), outputs = spec.description.input, {each.name for each in spec.description.output}
    found = (image.name, image.type.imageType.width, image.type.imageType.height)
    said = {spec.description.predictedFeatureName, spec.description.predictedProbabilitiesName}
    if found != ("image", size, size) or outputs != said or _classes(spec) != card["classes"]:
        raise StudentError(f"Core ML: the file describes {found} and {sorted(outputs)}, which isn't this student")


def _classes(spec: Any) -> list[str]:
    """Return the classes of a Core ML program, in the order of its probabilities."""
    functions = spec.mlProgram.functions.values()
    blocks = [block for function in functions for block in function.block_specializations.values()]
    (last,) = [node for block in blocks for node in block.operations if node.type == "classify"]
    names = last.inputs["classes"].arguments[0].value.immediateValue.list.values
    return [name.immediateValue.tensor.strings.values[0] for name in names]
