"""`student.json` beside an export, and the programs of docs/deploy.md: each predicts what the student does."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import onnxruntime
import pytest
from PIL import ExifTags, Image, ImageOps

import vl2v.deploy.runtime
from vl2v.deploy.prediction import Prediction

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

    from .conftest import Made

DOCS = Path(__file__).parents[2] / "docs"


def program(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / "deploy.md").read_text("utf-8"), re.M | re.S)
    return str(found)


@pytest.fixture
def deployed(closed: Path, shapes: Path, tmp_path: Path) -> tuple[Path, Prediction]:
    """Return a folder with an export, its card and a turned image, and what the student says of the image."""
    for file in (closed, closed.with_suffix(".json")):
        shutil.copy(file, tmp_path)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image = Image.open(shapes / "paint" / "cone" / "00.png").convert("RGB").resize((211, 150))
    image.save(tmp_path / "image.jpg", exif=exif, quality=95, subsampling=0)
    return tmp_path, vl2v.deploy.runtime.load(closed).predict([tmp_path / "image.jpg"])[0]


def assert_says(line: str, wanted: Prediction, *, apart: float) -> None:
    label, probability = line.split()
    assert label == wanted.label and float(probability) == pytest.approx(wanted.probability, abs=apart)


@pytest.mark.parametrize(("kind", "form"), [("onnx", "closed"), ("onnx", "open"), ("openvino", "closed")])
def test_the_card_is_what_its_schema_says(kind: str, form: str, made: Callable[..., Made]) -> None:
    file, parity = made(kind, form)
    card = json.loads(file.with_name("student.json" if kind == "onnx" else "student.xml.json").read_text("utf-8"))
    jsonschema.Draft202012Validator(json.loads((DOCS / "student.schema.json").read_text("utf-8"))).validate(card)
    exported = vl2v.deploy.runtime.load(file)
    assert card["classes"] == exported.classes and card["threshold"] == exported.card["threshold"]
    assert card["files"][0]["name"] == file.name and len(card["files"]) == (2 if kind == "openvino" else 1)
    for each in card["files"]:
        data = file.with_name(each["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (each["bytes"], each["sha256"])
    assert card["accuracy"]["ink"] == {"accuracy": parity.accuracy["ink"][1], "images": parity.images["ink"]}
    assert card["accuracy"].keys() == {"chalk", "ink"}  # the source domains
    if kind == "onnx":
        session = onnxruntime.InferenceSession(file)
        assert card["input"]["name"] == session.get_inputs()[0].name
        assert card["outputs"] == [out.name for out in session.get_outputs()]
    if form == "open":
        embeddings = np.frombuffer(base64.b64decode(card["class_embeddings"]), "<f4").reshape(3, -1)
        np.testing.assert_array_equal(embeddings, exported.texts)


def test_python(deployed: tuple[Path, Prediction]) -> None:
    folder, wanted = deployed
    done = subprocess.run([sys.executable, "-c", program("python")], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_says(done.stdout, wanted, apart=1e-3)


def test_node(deployed: tuple[Path, Prediction], node_modules: Path) -> None:
    folder, wanted = deployed
    (folder / "predict.mjs").write_text(program("js"))
    (folder / "node_modules").symlink_to(node_modules)
    done = subprocess.run(["node", "predict.mjs", "image.jpg"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_says(done.stdout, wanted, apart=0.02)  # another JPEG decoder


def test_a_page(deployed: tuple[Path, Prediction], node_modules: Path, site: tuple[Path, str], browser: Chrome) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    (folder, wanted), (served, address) = deployed, site
    assert folder == served
    for name in ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"):
        shutil.copy(node_modules / "onnxruntime-web" / "dist" / name, folder)
    (folder / "index.html").write_text(program("html"))
    browser.get(address)
    handler = "return document.getElementById('file').onchange !== null"
    WebDriverWait(browser, 300).until(lambda _: browser.execute_script(handler))
    browser.find_element(By.ID, "file").send_keys(str(folder / "image.jpg"))
    verdict = browser.find_element(By.ID, "verdict")
    WebDriverWait(browser, 300).until(lambda _: verdict.text)
    assert_says(verdict.text, wanted, apart=0.02)


def test_cpp(deployed: tuple[Path, Prediction]) -> None:
    """With the library of Python's package, and the header in ONNXRUNTIME_INCLUDE, or else the part of it beside."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile it with")
    headers = os.environ.get("ONNXRUNTIME_INCLUDE", Path(__file__).with_name("include"))
    folder, wanted = deployed
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    (folder / "libonnxruntime.so.1").symlink_to(library)
    (folder / "classify.cpp").write_text(program("cpp"))
    words: list[Any] = ["g++", "-std=c++17", "-I", headers, "classify.cpp", library, "-o", "classify"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    image = ImageOps.exif_transpose(Image.open(folder / "image.jpg")).convert("RGB")
    done = subprocess.run(
        [folder / "classify", "student.onnx", str(image.width), str(image.height)],
        cwd=folder,
        input=image.tobytes(),
        capture_output=True,
        env={**os.environ, "LD_LIBRARY_PATH": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    found = [float(line) for line in done.stdout.split()]
    assert found == pytest.approx(list(wanted.probabilities.values()), abs=1e-3)
