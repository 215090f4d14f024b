"""Images of any size in, probabilities out: the student's own, in every runtime that reads the file."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

import vl2v
import vl2v.deploy.runtime
from browser import IN_THE_BROWSER
from vl2v.cli.app import app
from vl2v.data.augment import Fit, evaluation_view
from vl2v.errors import ConfigError, StudentError
from vl2v.export import inside
from vl2v.export import parity as checking
from vl2v.export.formats import Export
from vl2v.export.parity import odd
from vl2v.export.student import open_images, with_preprocessing

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

    from .conftest import Made


class Odd(NamedTuple):
    """Images, what the student says of each [n, C], and the folder that has them as one file."""

    images: list[NDArray[np.uint8]]
    wanted: NDArray[np.float32]
    folder: Path


@pytest.fixture(scope="module")
def two_hundred(run: vl2v.Run, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Odd:
    files = sorted(shapes.rglob("*.png"))
    rng = np.random.default_rng(0)
    images = [odd(Image.open(files[i % len(files)]).convert("RGB"), i, rng) for i in range(200)]
    student, folder = run.classifier, tmp_path_factory.mktemp("odd")
    views = [evaluation_view(Image.fromarray(image), student.image_size) for image in images]
    wanted = student.probabilities(torch.from_numpy(np.stack(views))).numpy()
    (folder / "images.bin").write_bytes(b"".join(image.tobytes() for image in images))
    (folder / "images.json").write_text(json.dumps([image.shape[:2] for image in images]))
    return Odd(images, wanted, folder)


def assert_same(found: list[NDArray[np.float32]] | NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    found = np.asarray(found).reshape(wanted.shape)
    assert (found.argmax(1) == wanted.argmax(1)).all()
    assert np.abs(found - wanted).max() < 1e-3


@pytest.mark.parametrize("form", ["closed", "opened"])
def test_one_image_or_a_batch_of_any_size(form: str, two_hundred: Odd, request: pytest.FixtureRequest) -> None:
    session = onnxruntime.InferenceSession(request.getfixturevalue(form))
    found = [session.run(["probabilities"], {"image": image})[0] for image in two_hundred.images]
    assert_same(found, two_hundred.wanted)
    batch = np.stack([two_hundred.images[0], two_hundred.images[9]])
    assert_same(session.run(["probabilities"], {"image": batch})[0], two_hundred.wanted[[0, 9]])


def test_openvino(made: Callable[..., Made], two_hundred: Odd) -> None:
    file, parity = made("openvino", preprocess="inside")
    assert parity.inside is not None and parity.inside[0] == 200
    exported = vl2v.deploy.runtime.load(file, threads=1)
    assert exported.inside
    assert_same([exported.image_probabilities(image) for image in two_hundred.images], two_hundred.wanted)


def test_node(closed: Path, two_hundred: Odd, node_modules: Path) -> None:
    program = node_modules.with_name("predict.mjs")
    given = [closed, two_hundred.folder / "images.json", two_hundred.folder / "images.bin"]
    done = subprocess.run(["node", program, *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same(json.loads(done.stdout), two_hundred.wanted)


def test_a_browser(closed: Path, two_hundred: Odd, node_modules: Path, site: tuple[Path, str], browser: Chrome) -> None:
    folder, address = site
    dist = node_modules / "onnxruntime-web" / "dist"
    for name in ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"):
        shutil.copy(dist / name, folder)
    for file in (closed, two_hundred.folder / "images.json", two_hundred.folder / "images.bin"):
        shutil.copy(file, folder)
    (folder / "index.html").write_text('<!doctype html><script src="ort.wasm.min.js"></script>')
    browser.set_script_timeout(120)
    browser.get(address)
    found = browser.execute_async_script(IN_THE_BROWSER)
    assert not isinstance(found, str), found
    assert_same(found, two_hundred.wanted)


@pytest.mark.parametrize(("size", "fit"), [(32, "stretch"), (50, "stretch"), (32, "crop"), (50, "pad")])
def test_resizing_is_pillows_to_the_last_bit(size: int, fit: Fit) -> None:
    nodes = inside._Nodes("test")
    inside.add_resize(nodes, size, fit)
    kind = onnx.TensorProto.UINT8
    given, made = (onnx.helper.make_tensor_value_info(name, kind, None) for name in ("image", "pixels"))
    graph = onnx.helper.make_graph(nodes.nodes, "resize", [given], [made], nodes.constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    rng = np.random.default_rng(0)
    sides = [1, 2, 3, 31, 32, 33, 49, 50, 51, 64, 75, 100, 107, 333]
    for height in sides:
        for width in (*sides, 2000):
            image = rng.integers(0, 256, (height, width, 3), np.uint8)
            pixels = session.run(None, {"image": image})[0][0]
            assert (pixels == evaluation_view(Image.fromarray(image), size, fit)).all(), (height, width)


def test_a_file_says_which_form_it_has(closed: Path, outside: Path, shapes: Path) -> None:
    image = next((shapes / "paint").rglob("*.png"))
    ours, plain = vl2v.deploy.runtime.load(closed), vl2v.deploy.runtime.load(outside)
    assert ours.inside and not plain.inside and plain.card["format"] == 1
    assert ours.predict([image]) == plain.predict([image])
    pixels = np.asarray(Image.open(image).convert("RGB"))
    np.testing.assert_allclose(ours.image_probabilities(pixels), plain.image_probabilities(pixels), atol=1e-6)


def test_int8_has_it_too(made: Callable[..., Made]) -> None:
    file, parity = made(int8=True)
    assert parity.inside is not None and parity.inside[1] < 1e-3 and "images of any size (200 odd" in parity.summary()
    assert vl2v.deploy.runtime.load(file).inside


def test_what_fails_its_check_stays_outside(
    made: Callable[..., Made], run: vl2v.Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "INSIDE", -1.0)
    file, parity = made(preprocess="outside")
    plain, sources = Export.of(Path(shutil.copy(file, tmp_path)), parity), open_images(run, store)
    assert with_preprocessing(plain, "onnx", sources, None) is plain
    with pytest.raises(StudentError, match=r"0 of 200 images are of another class.*--preprocess outside"):
        with_preprocessing(plain, "onnx", sources, "inside")


def test_formats_without_it_are_named(run: vl2v.Run, store: Path, tmp_path: Path) -> None:
    for kind, where, said in (
        ("torchscript", "inside", "only for onnx, openvino"),
        ("onnx", "x", "choose inside or out"),
    ):
        given = ["export", str(run.folder), "--format", kind, "--preprocess", where, "--store", str(store)]
        done = CliRunner().invoke(app, given)
        assert isinstance(done.exception, ConfigError) and said in str(done.exception)
