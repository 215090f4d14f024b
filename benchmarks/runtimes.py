"""What each runtime predicts for 200 odd images, beside the student in torch.

    python benchmarks/runtimes.py RUN [--store STORE] [--formats litert]

The images are validation images of the run's source domains: as they are, and made grey, tiny, large, of odd sizes,
very wide or tall. Each runtime gets them decoded, or as PNG where it decodes itself; LiteRT takes pixels of the
student's own size. What isn't installed has a row that says so: Node's packages and Chromium's onnxruntime-web (`npm
ci` in tests/node), LiteRT (`litert-torch`, in an environment of its own).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import timm
import torch
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "export"))

from hub import Hub
from selenium.webdriver.support.wait import WebDriverWait

from browser import IN_THE_BROWSER, PREDICT_ALL, chromium
from vl2v.data.augment import evaluation_view
from vl2v.deploy.runtime import load
from vl2v.errors import VL2VError
from vl2v.export.cards import public_card
from vl2v.export.formats import check_format
from vl2v.export.hub import parcel
from vl2v.export.parity import Parity, odd_images
from vl2v.export.student import Exporter, open_images, with_preprocessing
from vl2v.export.web import write_web
from vl2v.runs.folder import Run

NODE = Path(__file__).parents[1] / "tests" / "node"
DIST = NODE / "node_modules" / "onnxruntime-web" / "dist"
REPO = "maker/student"
Rows = NDArray[np.float32] | list[Any]


class Odd(NamedTuple):
    """Images uint8 [h, w, 3]; what the student wants of each [n, s, s, 3]; a folder with all of them as PNG files."""

    images: list[NDArray[np.uint8]]
    pixels: NDArray[np.uint8]
    folder: Path

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.png"))


@contextmanager
def served(folder: Path) -> Iterator[str]:
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *words: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextmanager
def closing_hub() -> Iterator[Hub]:
    hub = Hub("maker", "no token")
    try:
        yield hub
    finally:
        hub.stop()


def node(*words: object) -> Any:
    done = subprocess.run(["node", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout)


def in_python(file: Path, odd: Odd) -> Rows:
    session = onnxruntime.InferenceSession(file)
    return [session.run(["probabilities"], {"image": image})[0][0] for image in odd.images]


def in_node(file: Path, odd: Odd) -> Rows:
    return node(NODE / "predict.mjs", file, odd.folder / "images.json", odd.folder / "images.bin")


def in_browser(script: str, folder: Path, *given: object, ready: str = "") -> Any:
    with served(folder) as address, tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as browser:
        browser.set_script_timeout(600)
        browser.get(address)
        if ready:
            WebDriverWait(browser, 300).until(lambda _: browser.find_element("id", ready).text)
        found = browser.execute_async_script(script, *given)
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def on_the_web(file: Path, odd: Odd) -> Rows:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for each in (*DIST.glob("ort*wasm*"), odd.folder / "images.json", odd.folder / "images.bin"):
            shutil.copy(each, folder)
        shutil.copy(file, folder / "student.onnx")
        (folder / "index.html").write_text('<!doctype html><script src="ort.wasm.min.js"></script>')
        found: Rows = in_browser(IN_THE_BROWSER, folder)
        return found


def in_page(folder: Path, odd: Odd) -> Rows:
    classes = json.loads((folder / "student.json").read_text("utf-8"))["classes"]
    for file in odd.files:
        shutil.copy(file, folder)
    names = [file.name for file in odd.files]
    found = in_browser(PREDICT_ALL, folder, names, ready="count")
    return [[one["probabilities"][name] for name in classes] for one in found]


def by_vl2v(file: Path, odd: Odd) -> Rows:
    student = load(file)
    if student.inside:
        return [student.image_probabilities(image) for image in odd.images]
    return student.probabilities(odd.pixels)


def in_transformers_js(hub: Hub, dtype: str, classes: list[str], odd: Odd) -> Rows:
    with tempfile.TemporaryDirectory() as cache:
        found = node(NODE / "transformers.mjs", hub.url, REPO, cache, dtype, *odd.files)
    rows = [{one["label"]: one["score"] for one in each} for each in found]
    return [[row.get(name, 0.0) for name in classes] for row in rows]


def in_timm(hub: Hub, folder: Path, odd: Odd) -> Rows:
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(hub.head(REPO)[1][name])
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.inference_mode():
        rows = [model(transform(Image.fromarray(image))[None]).softmax(-1)[0].numpy() for image in odd.images]
    return np.stack(rows)


def row(name: str, wanted: NDArray[np.float32], call: Callable[[], Rows], note: str = "") -> str:
    """Return a line of the table, or why there is none; call gives probabilities [n, C]."""
    try:
        found = np.asarray(call(), np.float32).reshape(wanted.shape)
    except (VL2VError, RuntimeError, ImportError, OSError) as error:
        return f"| {name} | not run: {str(error).partition(chr(10))[0]} | | |"
    same = int((found.argmax(1) == wanted.argmax(1)).sum())
    return f"| {name} | {same} of {len(wanted)} | {np.abs(found - wanted).max():.1e} | {note} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--formats", nargs="+", default=["onnx", "openvino", "litert"])
    given = parser.parse_args()
    run = Run(given.run)
    student = run.classifier
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = open_images(run, given.store)
        odd = Odd(list(odd_images(sources)), np.empty(0, np.uint8), folder / "odd")
        views = [evaluation_view(Image.fromarray(i), student.image_size, student.student.spec.fit) for i in odd.images]
        odd = odd._replace(pixels=np.stack(views))
        odd.folder.mkdir()
        for number, image in enumerate(odd.images):
            Image.fromarray(image).save(odd.folder / f"{number:03d}.png")
        (odd.folder / "images.bin").write_bytes(b"".join(image.tobytes() for image in odd.images))
        (odd.folder / "images.json").write_text(json.dumps([image.shape[:2] for image in odd.images]))
        parts = torch.from_numpy(odd.pixels).split(50)
        wanted = np.concatenate([student.probabilities(part).numpy() for part in parts])

        copy = Run(shutil.copytree(run.folder, folder / "run"))
        dist = DIST if DIST.is_dir() else None
        exporter = Exporter(copy, folder, sources)
        made: dict[tuple[str, bool], tuple[Path, Parity] | VL2VError] = {}
        for kind, int8 in product(given.formats, (False, True)):
            try:
                check_format(kind)
                plain = exporter.make(kind, int8=int8)
                final = with_preprocessing(plain, kind, sources, None if kind == "litert" else "inside")
            except VL2VError as error:
                made[kind, int8] = error
                if kind == "onnx":
                    made["web", int8] = error
                continue
            made[kind, int8] = final.path, final.parity
            if kind == "onnx":
                final.copy(copy.folder / f"student{'-int8' if int8 else ''}.onnx")
                page = folder / f"page{int(int8)}"
                write_web(final.path, public_card(final.path, student, final.parity), page, runtime=dist)
                made["web", int8] = page, final.parity
        print("| runtime | same class | probabilities differ by up to | |\n| --- | --- | --- | --- |")
        with closing_hub() as hub:
            if "onnx" in given.formats:
                hub.commit(REPO, parcel(copy, REPO, store=given.store))
            for int8 in (False, True):
                for label, kind, call in (
                    ("ONNX Runtime, Python", "onnx", in_python),
                    ("ONNX Runtime, Node", "onnx", in_node),
                    ("ONNX Runtime, web (Chromium)", "onnx", on_the_web),
                    ("the page of `--format web` (Chromium)", "web", in_page),
                    ("OpenVINO", "openvino", by_vl2v),
                    ("LiteRT", "litert", by_vl2v),
                ):
                    if (kind, int8) not in made:
                        continue
                    found, label = made[kind, int8], f"{label}, {'int8' if int8 else 'fp32'}"
                    if isinstance(found, VL2VError):
                        print(f"| {label} | not run: {found} | | |", flush=True)
                        continue
                    file, parity = found
                    note = f"{len(parity.kept)} layers in fp32" if parity.kept else ""
                    print(row(label, wanted, partial(call, file, odd), note), flush=True)
                if "onnx" not in given.formats:
                    continue
                dtype = "q8" if int8 else "fp32"
                call = partial(in_transformers_js, hub, dtype, student.classes, odd)
                print(row(f"transformers.js, {dtype}", wanted, call), flush=True)
            if "onnx" not in given.formats:
                return
            words = "a text head's norm isn't in it" if student.texts is not None else ""
            print(row("timm, fp32", wanted, partial(in_timm, hub, folder, odd), words), flush=True)


if __name__ == "__main__":
    main()
