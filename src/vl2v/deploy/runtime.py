"""An exported student, ready to predict: onnxruntime, Pillow and numpy are all that an ONNX file needs.

import vl2v.deploy.runtime
student = vl2v.deploy.runtime.load("student.onnx")
student.predict(["image.jpg"])[0].label
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vl2v.data.augment import evaluation_view
from vl2v.deploy.prediction import Fit, Prediction, Predictor, prediction
from vl2v.errors import StudentError, VL2VError, need_extra

FORMAT = 1
FORMAT_INSIDE = 2  # of files that take images of any size: earlier versions can't feed them
METADATA = "vl2v"
NAMES = ("student-int8.onnx", "student.onnx")  # of exports in a run folder

Network = Callable[..., NDArray[np.float32]]
"""Takes pixels [n, s, s, 3], and which of its outputs is meant: the last one, unless said otherwise."""


class Exported(Predictor):
    """A student in a file of its own.

    Attributes:
        card: what the file says of itself: form ("closed": the classes are part of the network; "open": they are texts
            beside it, and more can be added), image_size, fit (how images become squares; stretched if it is missing),
            temperature, threshold, precision and about.
    """

    def __init__(self, network: Network, card: dict[str, Any]) -> None:
        self.card = card
        self.classes: list[str] = list(card["classes"])
        self._network = network
        self._texts: NDArray[np.float32] | None = None
        if card["form"] == "open":
            flat = np.frombuffer(base64.b64decode(card["texts"]), np.float32)
            self._texts = flat.reshape(len(self.classes), -1).copy()

    @property
    def kind(self) -> str:
        """Its form and precision in a few words: "open form, int8"."""
        return f"{self.card['form']} form, {self.card['precision']}"

    def with_card(self, card: dict[str, Any]) -> Exported:
        """Return the same network with another card: other class embeddings, temperature, threshold."""
        return Exported(self._network, card)

    def run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return what the network gives for pixels [n, s, s, 3]: logits [n, C] (closed) or embeddings [n, d] (open).

        Raises:
            StudentError: it isn't finite, or isn't of that shape: the file is broken.
        """
        out = self._network(pixels)
        width = len(self.classes) if self._texts is None else self._texts.shape[1]
        if out.shape != (len(pixels), width):
            raise StudentError(
                f"the export gives {out.shape[1:]} numbers an image, its card says {width}; export again"
            )
        if not np.isfinite(out).all():
            raise StudentError("the export gives NaN or infinity: its file is damaged; export it again")
        return out

    def embed(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return embeddings [n, d], unit rows, of pixels [n, s, s, 3].

        Raises:
            StudentError: the closed form has none.
        """
        if self._texts is None:
            raise StudentError("this export has its classes built in and gives no embeddings; export with --open")
        return self.run(pixels)

    @property
    def texts(self) -> NDArray[np.float32]:
        """The classes' text embeddings [C, d], unit rows.

        Raises:
            StudentError: the closed form has none.
        """
        if self._texts is None:
            raise StudentError("this export has its classes built in; export with --open to change them")
        return self._texts

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return logits [n, C], before the temperature, of pixels [n, s, s, 3]."""
        return self._logits(self.run(pixels))

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return calibrated probabilities [n, C] of pixels [n, s, s, 3]."""
        return softmax(self.logits(pixels) / self.card["temperature"])

    def predictions(self, out: NDArray[np.float32]) -> list[Prediction]:
        """Return the predictions that follow from what `run` gave, one a row."""
        rows = softmax(self._logits(out) / self.card["temperature"]).tolist()
        return [prediction(self.classes, row, self.card["threshold"]) for row in rows]

    @property
    def inside(self) -> bool:
        """Whether the file itself resizes images, and gives probabilities."""
        return bool(self.card["format"] == FORMAT_INSIDE)

    def image_probabilities(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the probabilities [C] of one image, uint8 RGB [h, w, 3]: as the file computes them, where it does."""
        if self.inside:
            return self._network(image[None], 0).reshape(-1)
        return self.probabilities(evaluation_view(Image.fromarray(image), self.image_size, self.fit)[None]).reshape(-1)

    @property
    def image_size(self) -> int:
        """Pixels a side that the network takes."""
        return int(self.card["image_size"])

    @property
    def fit(self) -> Fit:
        """How images become squares; exports of earlier versions stretch them."""
        fit: Fit = self.card.get("fit", "stretch")
        return fit

    def _predict(self, pixels: NDArray[np.uint8]) -> list[Prediction]:
        return self.predictions(self.run(pixels))

    def _class_embeddings(self) -> NDArray[np.float32]:
        return self.texts

    def _set_class_embeddings(self, embeddings: NDArray[np.float32]) -> None:
        self._texts = embeddings

    def _logits(self, out: NDArray[np.float32]) -> NDArray[np.float32]:
        return out if self._texts is None else np.asarray(self.card["scale"] * out @ self._texts.T)


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Return probabilities [n, C] of logits [n, C]."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def exports_in(path: Path) -> list[Path]:
    """Return the .onnx files that may be meant: the file itself, or those of a run folder, int8 before fp32.

    Raises:
        StudentError: a folder without an export.
    """
    if not path.is_dir():
        return [path]
    found = [path / name for name in NAMES if (path / name).is_file()]
    if not found:
        raise StudentError(f"{path}: no export in it ({', '.join(NAMES)}); `vl2v export {path}` makes one")
    return found


def files_of(path: Path) -> list[Path]:
    """Return the files of an export or a folder; OpenVINO keeps its weights in one of their own."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path.with_suffix(".bin"), path] if path.suffix == ".xml" else [path]


def size_of(path: Path) -> int:
    """Return how many bytes an export or a folder is, all of its files."""
    return sum(file.stat().st_size for file in files_of(path))


def load_current(file: Path, classes: Sequence[str]) -> Exported:
    """Return the export of a run whose student has these classes.

    Raises:
        StudentError: it was made when they were others, or as `load` does.
    """
    exported = load(file, threads=1)
    if exported.classes != list(classes):
        raise StudentError(f"{file}: exported before the student's classes changed; export it again, or delete it")
    return exported


def load(path: Path | str, *, threads: int | None = None) -> Exported:
    """Return an exported student.

    A file of TorchScript is a program, so load only what comes from where you trust; ONNX and OpenVINO files are data.

    Args:
        path: what `vl2v export` wrote: .onnx, .xml (OpenVINO), .pt (TorchScript), .pte (ExecuTorch) or .tflite
            (LiteRT).
        threads: that it computes with; by default as many as the library likes. TorchScript and ExecuTorch have one
            number for the whole process.

    Raises:
        StudentError: no such file, not an export of ours, or one that keeps its weights elsewhere.
        MissingExtra: what runs the file is not installed.
    """
    path = Path(path)
    try:
        network, text = _READERS.get(path.suffix, _onnx)(path, threads)
        card = json.loads(text)
        if card.get("format") not in (FORMAT, FORMAT_INSIDE):
            raise StudentError(f"{path}: format {card.get('format')}, this version reads {FORMAT_INSIDE}; update vl2v")
        return Exported(network, card)
    except VL2VError:
        raise
    except FileNotFoundError as error:
        if not path.exists():
            raise StudentError(f"{path}: no such export or run folder") from None
        lost = error.filename or "a file beside it"
        raise StudentError(f"{path}: {lost} is missing; copy all files of the export") from None
    except OSError as error:
        raise StudentError(f"{path}: can't be read ({error.strerror})") from None
    except Exception as error:  # each library has errors of its own for broken files
        reason = "no card in it" if isinstance(error, KeyError) else type(error).__name__
        raise StudentError(f"{path}: not an export of vl2v ({reason}); `vl2v export RUN` makes one") from None


def _onnx(path: Path, threads: int | None) -> tuple[Network, str]:
    ort = onnxruntime_library()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    data = path.read_bytes()  # given as bytes, a model can't refer to files beside it
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    card = session.get_modelmeta().custom_metadata_map[METADATA]
    name = session.get_inputs()[0].name
    return lambda pixels, out=-1: np.asarray(session.run(None, {name: pixels})[out]), card


def onnxruntime_library() -> ModuleType:
    """Import onnxruntime without its telemetry, which from 1.29 on reports every model that is opened over the network.

    Raises:
        MissingExtra: it is not installed.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    return need_extra("onnxruntime", "export")


def _openvino(path: Path, threads: int | None) -> tuple[Network, str]:
    openvino = openvino_library()
    weights = np.fromfile(path.with_suffix(".bin"), np.uint8)
    core = openvino.Core()
    model = core.read_model(path.read_bytes(), openvino.Tensor(weights))
    if not model.has_rt_info(METADATA):
        raise KeyError(METADATA)
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}  # else bfloat16, where the processor has it
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(model, "CPU", settings)
    outputs = compiled.outputs
    return lambda pixels, out=-1: np.asarray(compiled(pixels)[outputs[out]]).copy(), model.get_rt_info(METADATA).astype(
        str
    )


def openvino_library() -> ModuleType:
    """Import OpenVINO without its telemetry, which would report every import over the network.

    Raises:
        MissingExtra: it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # "not installed": it has a stub for that
    return need_extra("openvino", "openvino")


def _torchscript(path: Path, threads: int | None) -> tuple[Network, str]:
    torch = need_extra("torch", "")

    if threads is not None:
        torch.set_num_threads(threads)
    extra = {METADATA: ""}
    module = torch.jit.load(io.BytesIO(path.read_bytes()), map_location="cpu", _extra_files=extra)
    if not extra[METADATA]:
        raise KeyError(METADATA)

    def network(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(pixels)))

    return network, extra[METADATA]


def _executorch(path: Path, threads: int | None) -> tuple[Network, str]:
    torch = need_extra("torch", "")
    runtime = need_extra("executorch.runtime", "executorch").Runtime.get()
    data = path.read_bytes()
    program = runtime.load_program(data)
    forward, card = program.load_method("forward"), program.load_method(METADATA)

    def network(pixels: NDArray[np.uint8], _alive: object = (data, program)) -> NDArray[np.float32]:
        rows = [forward.execute([torch.from_numpy(one[None])])[0].numpy().copy() for one in pixels]  # of one image
        return np.concatenate(rows)

    return network, card.execute([])[0]


def _litert(path: Path, threads: int | None) -> tuple[Network, str]:
    library = need_extra("ai_edge_litert.interpreter", "litert")
    schema = need_extra("ai_edge_litert.schema_py_generated", "litert")
    data = path.read_bytes()
    interpreter = library.Interpreter(model_content=data, num_threads=threads)
    model = schema.Model.GetRootAs(data)
    entries = {entry.Name(): entry.Buffer() for entry in map(model.Metadata, range(model.MetadataLength()))}
    card = model.Buffers(entries[METADATA.encode()]).DataAsNumpy().tobytes().decode()
    interpreter.allocate_tensors()
    (into,), (out,) = interpreter.get_input_details(), interpreter.get_output_details()

    def network(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        rows = []
        for one in pixels:
            interpreter.set_tensor(into["index"], one[None])
            interpreter.invoke()
            rows.append(interpreter.get_tensor(out["index"]))
        return np.concatenate(rows)

    return network, card


_READERS = {".onnx": _onnx, ".xml": _openvino, ".pt": _torchscript, ".pte": _executorch, ".tflite": _litert}
