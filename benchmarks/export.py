"""What an export gains: speed, size and memory beside the same student in eager PyTorch, and the cold start.

    python benchmarks/export.py RUN                      # a finished run, its images at hand
    python benchmarks/export.py RUN --against vit-b-16   # and beside a ViT-B/16 of random weights
    python benchmarks/export.py RUN --int8               # int8 beside fp32 of the same runtime, and where the time goes
    python benchmarks/export.py --fused repvgg_a0 mobileone_s0 fastvit_t8   # random weights, 128 px

The first prints the table of `vl2v bench-device`, and the cold start: a new process that imports vl2v.deploy.runtime,
loads the int8 file (or fp32, where int8 is refused) and predicts one image. The others measure the network alone, with
one thread, by the processor's time, so that a busy machine disturbs them little; a ratio is the median of the turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import timm
import torch
from timm.utils import reparameterize_model
from torch import nn

from vl2v.deploy.runtime import load
from vl2v.errors import StudentError
from vl2v.export.device import bench_device
from vl2v.export.measure import Call, side_by_side
from vl2v.export.network import write_onnx
from vl2v.export.parity import parts
from vl2v.export.student import Exporter, export_student, open_images
from vl2v.runs.folder import Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--formats", nargs="+", default=["onnx", "openvino"], help="of --int8")
    parser.add_argument("--fused", nargs="+", metavar="MODEL", default=[])
    parser.add_argument("--against", help="as for `vl2v bench-device`, or vit-b-16")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--store", type=Path)
    given = parser.parse_args()
    if given.run is None and not given.fused:
        parser.error("a run, or --fused with names of timm's models")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.fused:
            print_fused(given.fused, folder, given.turns)
            return
        if given.int8:
            print_int8(Run(given.run), folder, given.store, given.turns, given.formats)
            return
        against = f"open_clip:local-dir:{vit_b_16(folder)}" if given.against == "vit-b-16" else given.against
        found = bench_device(
            Run(given.run), against=against, image_size=given.image_size, turns=given.turns, store=given.store
        )
        print(found.table().render("md"))
        print(f"cold start: {cold_start(exported(given.run, folder, given.store), folder):.2f} s")


def print_int8(run: Run, folder: Path, store: Path | None, turns: int, formats: list[str]) -> None:
    exporter = Exporter(run, folder, open_images(run, store))
    size = exporter.classifier.student.spec.image_size
    print(
        "| runtime | batch 1, fp32 ms | int8 ms | ratio | batch 32, fp32 ms | int8 ms | ratio | fp32 MB | int8 MB "
        "| same class | layers in fp32 |"
    )
    print("| --- " * 11 + "|")
    files = {}
    for kind in formats:
        plain, small = exporter.make(kind), exporter.make(kind, int8=True)
        files[kind] = plain.path, small.path
        callers = {
            name: partial(busy, load(path, threads=1).run, size)
            for name, path in zip(("fp32", "int8"), files[kind], strict=True)
        }
        cells = []
        for batch in (1, 32):
            found = side_by_side(callers, "fp32", batch, turns=turns)
            cells += [f"{1000 * found[name].p50:.2f}" for name in callers] + [f"{found['int8'].gain:.2f}"]
        sizes = [f"{made.bytes / 1e6:.1f}" for made in (plain, small)]
        parity = small.parity
        print(
            "|",
            " | ".join(
                [
                    {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "litert": "LiteRT"}[kind],
                    *cells,
                    *sizes,
                    f"{100 * parity.same:.1f}%",
                    str(len(parity.kept)),
                ]
            ),
            "|",
            flush=True,
        )
    if "onnx" not in files:
        return
    exact, images = 0, 0
    session = opened(files["onnx"][1], onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    for domain in exporter.domains:
        found = np.concatenate([session.run(None, {"pixels": part})[0] for part in parts(domain.pixels)])
        exact, images = exact + int((found.argmax(1) == domain.logits.argmax(1)).sum()), images + len(found)
    print(f"\nIn exact arithmetic {100 * exact / images:.1f}% of {images} images have the class of fp32.\n")
    times = [profile(path, size, folder) for path in files["onnx"]]
    print("| ms an image in ONNX Runtime, batch 1 | fp32 | int8 |\n| --- | --- | --- |")
    for name in sorted({*times[0], *times[1]}, key=lambda name: -max(each[name] for each in times)):
        if max(each[name] for each in times) >= 0.01:
            print(f"| {name} | {times[0][name]:.2f} | {times[1][name]:.2f} |")


def busy(call: Call, size: int, batch: int, seconds: float) -> list[float]:
    """Return the seconds of processor time of each call, after one that isn't counted."""
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    call(pixels)
    times: list[float] = []
    while sum(times) < seconds:
        start = time.process_time()
        call(pixels)
        times.append(time.process_time() - start)
    return times


def opened(path: Path, level: onnxruntime.GraphOptimizationLevel, profiles: str = "") -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.graph_optimization_level, options.log_severity_level = 1, level, 3
    options.enable_profiling, options.profile_file_prefix = bool(profiles), profiles
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def profile(path: Path, size: int, folder: Path) -> Counter[str]:
    """Return the milliseconds of each kind of operator; convolutions by their kernels."""
    session = opened(path, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL, str(folder / "profile"))
    calls, found = 50, Counter[str]()
    for _ in range(calls):
        session.run(None, {"pixels": np.zeros((1, size, size, 3), np.uint8)})
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            shapes = [next(iter(each.values())) for each in event["args"].get("input_type_shape", [])]
            found[operator(event["args"]["op_name"], shapes)] += event["dur"] / calls / 1000
    return found


def operator(op: str, shapes: list[list[int]]) -> str:
    if op in ("QLinearConv", "Conv", "FusedConv"):
        kernel = next((shape for shape in shapes[1:] if len(shape) == 4), None)
        name = "other" if kernel is None else "depthwise" if kernel[1] == 1 else f"{kernel[2]} x {kernel[3]}"
        return f"convolutions, {name}, {'int8' if op == 'QLinearConv' else 'fp32'}"
    if op.startswith("Reorder") or op == "Transpose":
        return "another order of the numbers in memory"
    if op in ("QuantizeLinear", "DequantizeLinear"):
        return "from fp32 to int8 and back"
    return op


class Fused(nn.Module):
    """A model of timm that takes bytes."""

    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__()
        self.model, self.example = model, torch.zeros(2, size, size, 3, dtype=torch.uint8)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model(pixels.permute(0, 3, 1, 2) / 255)
        return out


def print_fused(names: list[str], folder: Path, turns: int, size: int = 128) -> None:
    print("| | branches, ms | fused, ms | ratio | logits apart |\n| --- | --- | --- | --- | --- |")
    for name in names:
        model = timm.create_model(name, num_classes=54).eval()
        callers, outs = {}, []
        for which, each in (("branches", model), ("fused", reparameterize_model(model))):
            path = folder / f"{name}-{which}.onnx"
            write_onnx(Fused(each, size).eval(), {"form": "closed"}, path)  # type: ignore[arg-type]
            session = opened(path, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
            callers[which] = partial(busy, lambda pixels, session=session: session.run(None, {"pixels": pixels}), size)
            outs.append(
                session.run(None, {"pixels": np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)})[
                    0
                ]
            )
        found = side_by_side(callers, "branches", 1, turns=turns)
        apart = np.abs(outs[0] - outs[1]).max() / np.abs(outs[0]).max()
        times = " | ".join(f"{1000 * found[which].p50:.2f}" for which in callers)
        print(f"| {name} | {times} | {found['fused'].gain:.2f} | {apart:.0e} |", flush=True)


def vit_b_16(folder: Path) -> Path:
    """Return the folder of an open_clip model of random weights."""
    import open_clip
    from safetensors.torch import save_file

    model_folder = folder / "vit-b-16"
    model_folder.mkdir()
    model = open_clip.create_model("ViT-B-16")
    save_file(model.state_dict(), model_folder / "open_clip_model.safetensors")
    config = {"model_cfg": open_clip.get_model_config("ViT-B-16"), "preprocess_cfg": {}}
    (model_folder / "open_clip_config.json").write_text(json.dumps(config))
    return model_folder


def exported(run: Path, folder: Path, store: Path | None) -> Path:
    """Return an export in int8, or in fp32 where accuracy would fall."""
    file = folder / "student.onnx"
    try:
        export_student(Run(run), file, int8=True, store=store)
    except StudentError:
        export_student(Run(run), file, store=store)
    return file


def cold_start(file: Path, folder: Path) -> float:
    """Return the median seconds of five new processes."""
    from PIL import Image

    Image.effect_noise((227, 227), 64).convert("RGB").save(folder / "noise.jpg")
    program = f"import vl2v.deploy.runtime as r; r.load({str(file)!r}).predict([{str(folder / 'noise.jpg')!r}])"
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], check=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
