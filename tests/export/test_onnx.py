"""An export: the student's answers without torch, or nothing at all."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx.external_data_helper import convert_model_to_external_data
from PIL import ExifTags, Image
from typer.testing import CliRunner

import vl2v
import vl2v.deploy.runtime
from vl2v.cli.app import app
from vl2v.data.augment import evaluation_view
from vl2v.errors import DataError, StudentError
from vl2v.export import parity as checking
from vl2v.export import student as making
from vl2v.export.int8 import STEPS, int8_trials, rounded, rounded_weights
from vl2v.export.network import write_onnx
from vl2v.export.student import export_student

if TYPE_CHECKING:
    from .conftest import Made


@pytest.mark.parametrize("form", ["closed", "opened"])
def test_an_export_predicts_what_the_student_does(
    form: str, run: vl2v.Run, shapes: Path, request: pytest.FixtureRequest
) -> None:
    images = sorted((shapes / "paint").rglob("*.png"))
    exported = vl2v.deploy.runtime.load(request.getfixturevalue(form), threads=1)
    for ours, theirs in zip(exported.predict(images), run.classifier.predict(images), strict=True):
        assert (ours.best, ours.label) == (theirs.best, theirs.label)
        assert ours.probability == pytest.approx(theirs.probability, abs=1e-4)
    one = exported.predict([images[0].read_bytes()])  # a batch of one, and bytes
    assert one[0].probability == pytest.approx(exported.predict(images)[0].probability, abs=1e-5)


def test_it_needs_onnxruntime_pillow_and_numpy_alone(closed: Path, shapes: Path) -> None:
    image = next((shapes / "paint").rglob("*.png"))
    program = f"""
import sys

class Nothing:  # else is installed
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in {{"vl2v", "onnxruntime", "PIL", "numpy", *sys.stdlib_module_names}}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Nothing())
import vl2v.deploy.runtime
print(vl2v.deploy.runtime.load({str(closed)!r}).predict([{str(image)!r}])[0].best)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("ball", "box", "cone")


@pytest.mark.parametrize("form", ["closed", "outside", "open outside"])
def test_the_documentation_tells_other_languages_how(
    form: str,
    made: Callable[..., Made],
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    (example,) = (text for text in blocks if ('{"image"' if form == "closed" else '{"pixels"') in text)
    where = None if form == "closed" else "outside"
    shutil.copy(made(form="open" if form == "open outside" else "closed", preprocess=where).path, tmp_path)
    exported = vl2v.deploy.runtime.load(tmp_path / "student.onnx")
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for image in (Image.open(shapes / "paint" / "ball" / "00.png"), Image.fromarray(pixels[:20])):
        image.save("image.jpg", exif=exif)
        names: dict[str, Any] = {}
        exec(example, names)
        (answer,) = exported.predict(["image.jpg"])
        label, probability = capsys.readouterr().out.split()
        assert label == answer.label and float(probability) == pytest.approx(answer.probability, abs=0.01)
    for size in (8, 32, 200) if form != "closed" else ():
        said, done = names["squeezed"](pixels, size), evaluation_view(Image.fromarray(pixels), size)
        assert np.abs(said.astype(int) - done).max() <= 1  # Pillow computes in integers
    assert exported.card["preprocessing"].keys() == {"orientation", "colours", "fit", "resize", "filter", "input"}


def test_the_file_is_all_there_is(closed: Path, shapes: Path) -> None:
    model = onnx.load(str(closed), load_external_data=False)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    card = json.loads({entry.key: entry.value for entry in model.metadata_props}["vl2v"])
    assert card["classes"] == ["ball", "box", "cone"] and card["image_size"] == 32 and card["form"] == "closed"
    assert str(shapes).encode() not in closed.read_bytes()  # no path of the images, or of the teacher
    data = closed.read_bytes()
    assert not any(path in data for path in (str(Path.home()).encode(), b"site-packages", b"/src/vl2v"))


def test_classes_are_added_to_the_open_form_alone(opened: Path, closed: Path, shapes: Path) -> None:
    exported = vl2v.deploy.runtime.load(opened)
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    z = exported.embed(pixels)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)
    exported.add_class("star", z[0])
    assert exported.probabilities(pixels).shape == (2, 4) and exported.probabilities(pixels)[0].argmax() == 3
    with pytest.raises(StudentError, match="'star' is there already"):
        exported.add_class("star", z[0])
    with pytest.raises(StudentError, match="3 numbers, the student has 16"):
        exported.add_class("moon", np.zeros(3, np.float32))
    with pytest.raises(StudentError, match="export with --open"):
        vl2v.deploy.runtime.load(closed).embed(pixels)


def test_int8_is_smaller_and_as_good(made: Callable[..., Made], closed: Path) -> None:
    file, parity = made(int8=True)
    assert not parity.worse and file.stat().st_size < 0.6 * closed.stat().st_size
    assert vl2v.deploy.runtime.load(file).card["precision"] == "int8"


def test_the_first_layers_stay_in_fp32_before_those_that_int8_hurts_most(tmp_path: Path) -> None:
    torch.manual_seed(0)

    class Net(torch.nn.Module):
        example = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)

        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(*(torch.nn.Conv2d(3 if i == 0 else 8, 8, 3) for i in range(5)))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.layers(pixels.permute(0, 3, 1, 2) / 255).mean((2, 3))

    net = Net().eval()
    with torch.no_grad():
        net.layers[1].weight[0], net.layers[1].bias[0] = 0, 0  # a channel that is always 0 ...
        net.layers[2].weight[:, 0] = (
            1000  # ... whose weights change nothing, and leave the others no room in eight bits
        )
    write_onnx(net, {"form": "closed"}, tmp_path / "plain.onnx")  # type: ignore[arg-type]
    nodes = [node.name for node in onnx.load(str(tmp_path / "plain.onnx")).graph.node if node.op_type == "Conv"]
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), np.uint8)
    trials = [kept for _, kept in int8_trials(tmp_path / "plain.onnx", {}, pixels)]
    assert trials[:3] == [(), (nodes[0],), (nodes[2],)] and [len(kept) for kept in trials] == [0, 1, 1, 2]


@pytest.mark.parametrize(("groups", "outputs", "inputs"), [(1, 16, 40), (8, 1, 9), (3, 5, 30)])
def test_weights_are_rounded_so_that_outputs_change_less_than_by_rounding_each(
    groups: int, outputs: int, inputs: int
) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(groups, inputs, 5)) @ rng.normal(size=(groups, 5, 400))  # inputs that go together
    x += 0.1 * rng.normal(size=x.shape)
    weights = rng.normal(size=(groups, outputs, inputs)).astype(np.float32)
    weights[0, 0] = 0
    found, largest = rounded(weights, (x @ x.swapaxes(1, 2)).astype(np.float32)), np.abs(weights).max(-1, keepdims=True)
    steps = found / np.where(largest > 0, largest / STEPS, 1)
    np.testing.assert_allclose(steps, steps.round(), atol=1e-3)
    np.testing.assert_array_equal(np.abs(found).max(-1, keepdims=True), largest)
    nearest = (weights / largest.clip(1e-9) * STEPS).round() / STEPS * largest
    lost = [float(np.square((each - weights) @ x).mean()) for each in (found, nearest)]
    assert lost[0] < 0.5 * lost[1]


def test_an_int8_file_has_the_weights_that_were_chosen(tmp_path: Path) -> None:
    torch.manual_seed(0)

    class Net(torch.nn.Module):
        example = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)

        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Conv2d(3, 8, 3, stride=2, padding=(1, 2)),
                torch.nn.ReLU(),
                torch.nn.Conv2d(8, 16, 3, groups=4, dilation=2),
                torch.nn.ReLU(),
                torch.nn.Conv2d(16, 16, 1),
            )
            self.mixed, self.head = torch.nn.Linear(5, 6), torch.nn.Linear(16, 5)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            x = self.layers(pixels.permute(0, 3, 1, 2) / 255)
            return self.head(self.mixed(x).mean((2, 3)).relu())

    write_onnx(Net().eval(), {"form": "closed"}, tmp_path / "plain.onnx")  # type: ignore[arg-type]
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), np.uint8)
    made, _ = next(int8_trials(tmp_path / "plain.onnx", {}, pixels))
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(str(made)).graph.initializer}
    wanted = rounded_weights(tmp_path / "ready.onnx", pixels)
    assert len(wanted) == 5
    for node in onnx.load(str(tmp_path / "ready.onnx")).graph.node:
        if node.name in wanted:
            name, chosen = node.input[1], wanted[node.name]
            axis = 1 if chosen.ndim == 2 and len(arrays[f"{name}_scale"]) == chosen.shape[1] else 0
            scale = arrays[f"{name}_scale"].reshape([-1 if each == axis else 1 for each in range(chosen.ndim)])
            np.testing.assert_allclose(arrays[f"{name}_quantized"] * scale, chosen, rtol=1e-5, atol=1e-7)


def test_what_is_reported_says_how_many_images_it_is_of() -> None:
    parity = checking.Parity(
        0, 1, {"ink": (6 / 7, 5 / 7), "chalk": (0.5, 0.5)}, {"ink": 7, "chalk": 400}, {"ink": (1, 0), "chalk": (2, 2)}
    )
    assert "ink 85.7 -> 71.4 (7 images, 1 fewer right), chalk 50.0 -> 50.0 (400 images)" in parity.summary()


def parity(**changed: tuple[int, int, int]) -> checking.Parity:
    """Return the comparison of domains with so many images right before only, after only, and in all."""
    accuracy = {name: (0.9, 0.9 - (lost - won) / count) for name, (lost, won, count) in changed.items()}
    counts = {name: count for name, (_, _, count) in changed.items()}
    return checking.Parity(0.1, 0.95, accuracy, counts, {name: each[:2] for name, each in changed.items()})


def test_int8_is_refused_for_what_it_surely_loses_and_not_for_one_image() -> None:
    for fine in (parity(a=(1, 0, 153)), parity(a=(1, 0, 14)), parity(a=(3, 2, 150), b=(4, 3, 150))):
        assert not fine.worse and fine.wanted > 0
        assert f"about {float(f'{fine.wanted:.2g}'):,.0f} more validation images would tell" in fine.summary()
    for bad in (parity(a=(12, 0, 153)), parity(a=(60, 20, 1000)), parity(a=(0, 0, 400), b=(14, 0, 150))):
        assert bad.worse and "more validation images" not in bad.summary()
    sure = parity(a=(1, 1, 4000))
    assert not sure.worse and sure.wanted == 0 and "keeps its accuracy" in sure.summary()


def test_as_many_more_images_as_are_wanted_do_tell() -> None:
    for lost, won, count in ((1, 0, 153), (0, 0, 14), (5, 1, 100), (2, 3, 300)):
        more = 1 + parity(a=(lost, won, count)).wanted / count
        low, high = checking.loss_interval(lost * more, won * more, count * more)
        assert high <= checking.POINTS or low > checking.POINTS


def test_int8_that_loses_accuracy_is_refused_with_the_figures(
    run: vl2v.Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "POINTS", -1.1)
    monkeypatch.setattr(making, "int8_trials", lambda *given: islice(int8_trials(*given), 1))  # the others take long
    with pytest.raises(StudentError, match=r"int8 loses accuracy \(.*chalk .* -> .*ink .*nothing was written"):
        export_student(run, tmp_path / "int8.onnx", int8=True, store=store)
    assert not (tmp_path / "int8.onnx").exists()


def test_weights_elsewhere_are_refused(closed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load(str(closed))
    convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, str(tmp_path / "split.onnx"))
    monkeypatch.chdir(tmp_path)  # the weights are in reach
    with pytest.raises(StudentError, match="not an export of vl2v"):
        vl2v.deploy.runtime.load("split.onnx")


def test_what_is_no_export_is_named(tmp_path: Path, closed: Path) -> None:
    with pytest.raises(StudentError, match=r"missing\.onnx: no such export"):
        vl2v.deploy.runtime.load(tmp_path / "missing.onnx")
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(StudentError, match="not an export of vl2v"):
        vl2v.deploy.runtime.load(tmp_path / "junk.onnx")
    model = onnx.load(str(closed))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "bare.onnx"))
    with pytest.raises(StudentError, match="no card in it"):
        vl2v.deploy.runtime.load(tmp_path / "bare.onnx")
    with pytest.raises(DataError, match=r"nowhere\.png"):
        vl2v.deploy.runtime.load(closed).predict(["nowhere.png"])


def test_a_fixed_head_has_no_open_form(trained: Callable[[str], vl2v.Run], tmp_path: Path) -> None:
    erm = trained("erm")
    store = erm.folder.with_name("store")
    with pytest.raises(StudentError, match="its head is fixed"):
        export_student(erm, tmp_path / "x.onnx", form="open", store=store)
    result = CliRunner().invoke(app, ["export", str(erm.folder), "--store", str(store)])
    assert result.exit_code == 0 and "100.0% same predictions" in result.stdout
    assert vl2v.deploy.runtime.load(erm.folder / "student.onnx").classes == ["ball", "box", "cone"]
