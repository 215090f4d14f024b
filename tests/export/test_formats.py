"""Formats beside ONNX: read back as a user would, they answer as the student does; or nothing is written."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

import vl2v
import vl2v.deploy.runtime
from little import no_file_larger_than
from vl2v.cli.app import app
from vl2v.deploy.runtime import files_of, size_of
from vl2v.errors import ConfigError, MissingExtra, RunError, StudentError, need_extra
from vl2v.export import student as making
from vl2v.export.formats import FORMATS, Export, write_openvino, write_torchscript
from vl2v.export.measure import Way
from vl2v.export.network import Network
from vl2v.export.student import export_student
from vl2v.io import temporary_folder

if TYPE_CHECKING:
    from .conftest import Made

QUIET = pytest.mark.filterwarnings("ignore")
NO_LITERT = "LiteRT isn't installed: its xdsl wants typing-extensions < 4.13, openai >= 4.14"
OTHERS = ["openvino", "torchscript", *(pytest.param(name, marks=QUIET) for name in ("executorch", "litert"))]


@pytest.fixture(scope="session", params=OTHERS)
def other(request: pytest.FixtureRequest, made: Callable[..., Made]) -> Path:
    """Return an export in another format."""
    if request.param == "litert":
        pytest.importorskip("litert_torch", reason=NO_LITERT)
    if request.param == "executorch":
        pytest.importorskip("executorch")
    file, parity = made(request.param)
    assert parity.exact
    return file


def test_it_predicts_what_the_student_does(other: Path, run: vl2v.Run, shapes: Path) -> None:
    images = sorted((shapes / "paint").rglob("*.png"))
    exported = vl2v.deploy.runtime.load(other)
    assert exported.card["precision"] == "fp32" and exported.classes == run.classifier.classes
    assert exported.card["reference"]["domains"].keys() == {"chalk", "ink"}  # what live traffic is compared with
    for batch in (images, images[:1]):
        for ours, theirs in zip(exported.predict(batch), run.classifier.predict(batch), strict=True):
            assert (ours.best, ours.label) == (theirs.best, theirs.label)
            assert ours.probability == pytest.approx(theirs.probability, abs=1e-4)


def test_it_tells_nothing_of_this_machine(other: Path, shapes: Path) -> None:
    for file in other.parent.iterdir():
        data = file.read_bytes()
        for path in (str(shapes), str(Path.home()), "site-packages", "/src/vl2v", str(Path(vl2v.__file__).parents[2])):
            assert path.encode() not in data


@pytest.mark.parametrize("kind", ["openvino", "torchscript"])
def test_a_full_temporary_folder_is_one_line(kind: str, closed: Path, run: vl2v.Run) -> None:
    """Libraries in C++ have exceptions of their own for it, or write half a file and say nothing."""
    card, line = (
        vl2v.deploy.runtime.load(closed).card,
        r"temporary files can't be written \(File too large\); free some",
    )
    with no_file_larger_than(3000), pytest.raises(RunError, match=line) as error, temporary_folder() as folder:
        path = folder / f"student{FORMATS[kind]}"
        if kind == "openvino":
            write_openvino(closed, card, path)
        else:
            write_torchscript(Network(run.classifier, form="closed").eval(), card, path)
        vl2v.deploy.runtime.load(path)
    assert "\n" not in str(error.value) and not folder.exists()


def test_without_a_temporary_folder_a_line_names_the_remedy(
    run: vl2v.Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(RunError, match=r"no temporary folder can be written to \(No such file.*TMPDIR name another"):
        export_student(run, tmp_path / "student.pt", "torchscript", store=store)


@pytest.mark.parametrize("there", [False, True], ids=["a new one", "an earlier one"])
def test_of_two_files_none_is_left_where_the_disk_is_full(
    there: bool, made: Callable[..., Made], tmp_path: Path
) -> None:
    export, out = Export.of(made("openvino").path, made("openvino").parity), tmp_path / "student.xml"
    if there:
        export.copy(out)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    sizes = sorted(file.stat().st_size for file in files_of(export.path))
    with (
        no_file_larger_than(sizes[0]),
        pytest.raises(RunError, match=r"student\.(xml|bin): can't be written .*free some"),
    ):
        export.copy(out)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_of_a_folder_nothing_is_left_where_the_disk_is_full(made: Callable[..., Made], tmp_path: Path) -> None:
    folder, out = tmp_path / "made", tmp_path / "out"
    for number in range(3):
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "weights").write_bytes(bytes(1000 * number))
    export = Export.of(folder, made().parity)
    export.copy(out)
    (out / "earlier").touch()
    with no_file_larger_than(1500), pytest.raises(RunError, match=r"weights: can't be written .*free some space"):
        export.copy(out)
    assert (out / "earlier").exists() and {file.name for file in tmp_path.iterdir()} == {"made", "out"}
    export.copy(out)
    assert not (out / "earlier").exists() and size_of(out) == 3000


def test_what_is_broken_or_foreign_is_named(other: Path, tmp_path: Path) -> None:
    broken = tmp_path / other.name
    if other.suffix == ".xml":
        broken.with_suffix(".bin").write_bytes(other.with_suffix(".bin").read_bytes())
    for data in (b"junk", b"", other.read_bytes()[: other.stat().st_size // 2]):
        broken.write_bytes(data)
        with pytest.raises(StudentError, match="not an export of vl2v"):
            vl2v.deploy.runtime.load(broken)


def test_openvino_has_int8(made: Callable[..., Made], closed: Path, tmp_path: Path) -> None:
    file, parity = made("openvino", int8=True)
    assert not parity.worse and parity.gain is not None
    card = vl2v.deploy.runtime.load(file).card
    assert card["precision"] == "int8" and card["reference"]["images"] == 14
    write_openvino(closed, {}, tmp_path / "fp32.xml")
    small, large = (path.with_suffix(".bin").stat().st_size for path in (file, tmp_path / "fp32.xml"))
    assert small < 0.6 * large and 'type="FakeQuantize"' in file.read_text()


@QUIET
def test_litert_has_int8(made: Callable[..., Made], run: vl2v.Run, shapes: Path) -> None:
    pytest.importorskip("litert_torch", reason=NO_LITERT)
    file, parity = made("litert", int8=True)
    assert not parity.worse and parity.gain is not None
    exported, images = vl2v.deploy.runtime.load(file), sorted((shapes / "ink").rglob("*.png"))
    assert exported.card["precision"] == "int8"
    for ours, theirs in zip(exported.predict(images), run.classifier.predict(images), strict=True):
        assert ours.probabilities == pytest.approx(theirs.probabilities, abs=0.1)  # of logits, not of their bytes


@QUIET
def test_core_ml_describes_the_student_and_says_that_it_was_not_run(run: vl2v.Run, store: Path, tmp_path: Path) -> None:
    tools = pytest.importorskip("coremltools")
    file = tmp_path / "student.mlpackage"
    (file / "Data").mkdir(parents=True)
    (file / "Data" / "earlier").touch()
    parity = export_student(run, file, "coreml", store=store)
    assert not (file / "Data" / "earlier").exists()
    assert "not its predictions: Core ML runs on a Mac" in parity.summary()
    model = tools.models.MLModel(str(file), skip_model_load=True)
    image = model.get_spec().description.input[0].type.imageType
    assert (image.width, image.height) == (32, 32)
    card = json.loads(model.user_defined_metadata["vl2v"])
    assert card["classes"] == run.classifier.classes and card["threshold"] == run.classifier.threshold
    with pytest.raises(StudentError, match="no open form"):
        export_student(run, tmp_path / "open.mlpackage", "coreml", form="open", store=store)


def test_openvino_files_without_a_card_or_weights_are_refused(
    run: vl2v.Run, store: Path, closed: Path, tmp_path: Path
) -> None:
    openvino = vl2v.deploy.runtime.openvino_library()
    openvino.save_model(openvino.Core().read_model(str(closed)), tmp_path / "bare.xml")
    with pytest.raises(StudentError, match="no card in it"):
        vl2v.deploy.runtime.load(tmp_path / "bare.xml")
    (tmp_path / "bare.bin").unlink()
    with pytest.raises(StudentError, match=r"bare\.bin is missing"):
        vl2v.deploy.runtime.load(tmp_path / "bare.xml")


def test_sizes_are_of_all_files(run: vl2v.Run, store: Path, tmp_path: Path) -> None:
    file = tmp_path / "s.xml"
    given = ["export", str(run.folder), "--format", "openvino", "--preprocess", "inside", "--out", str(file)]
    result = CliRunner().invoke(app, [*given, "--store", str(store)])
    both = sum((tmp_path / name).stat().st_size for name in ("s.xml", "s.bin"))
    assert f"{both / 1e6:.1f} MB" in result.stdout and vl2v.deploy.runtime.size_of(file) == both
    assert "takes images of any size (200 odd ones" in result.stdout and vl2v.deploy.runtime.load(file).inside
    student = run.folder / "student"
    every = sum(file.stat().st_size for file in student.iterdir())
    assert Way("eager", student, 32).bytes == vl2v.deploy.runtime.size_of(student) == every


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (
            "raise ModuleNotFoundError(name='torch')",
            r"^torch, which extra_one needs, is not installed: pip install 'vl2v\[x\]'$",
        ),
        ("import extra_one.inner", r"^extra_one.inner is not installed"),
        ("raise ImportError('libfoo.so: no such file')", r"^extra_one can't be loaded \(libfoo.so: no such file\)"),
        ("raise OSError('libfoo.so: no such file')", r"^extra_one can't be loaded"),
    ],
)
def test_what_is_really_missing_is_named(
    raised: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "extra_one").mkdir()
    (tmp_path / "extra_one" / "__init__.py").write_text(raised)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "extra_one", raising=False)
    with pytest.raises(MissingExtra, match=said):
        need_extra("extra_one", "x")


@pytest.mark.parametrize("suffix", [".pt", ".pte"])
def test_a_file_that_wants_torch_says_so(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"student{suffix}").write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"^torch is not installed: pip install vl2v$"):
        vl2v.deploy.runtime.load(tmp_path / f"student{suffix}")


def keeps(folder: Path, program: str, *words: Path) -> list[str]:
    """Return what a program leaves in an empty home, where libraries keep who they are and what isn't sent yet."""
    folder.mkdir()
    home = {"HOME": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}  # no CI, which would silence them, too
    home |= {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}  # nobody is there
    subprocess.run([sys.executable, "-c", program, *map(str, words)], env=home, check=True)
    return [path.name for path in folder.iterdir()]


def test_openvino_reports_nothing_over_the_network(tmp_path: Path) -> None:
    assert keeps(tmp_path / "ours", "import vl2v.deploy.runtime; vl2v.deploy.runtime.openvino_library()") == []
    assert keeps(tmp_path / "its own", "import openvino") != []


def test_onnxruntime_reports_nothing_over_the_network(closed: Path, tmp_path: Path) -> None:
    for place, before in enumerate(
        ("vl2v.deploy.runtime.load(sys.argv[1])", "vl2v.export.formats.check_format('onnx')", "pass")
    ):
        program = f"import sys, vl2v.export.formats; {before}; import onnxruntime as o; o.InferenceSession(sys.argv[1])"
        assert bool(keeps(tmp_path / f"{place}", program, closed)) == (before == "pass")


def test_a_foreign_torchscript_file_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(tmp_path / "other.pt"))
    with pytest.raises(StudentError, match="no card in it"):
        vl2v.deploy.runtime.load(tmp_path / "other.pt")


def test_a_format_that_differs_is_not_written(
    run: vl2v.Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = making.write_torchscript

    def off(network: torch.nn.Module, *rest: Any) -> None:
        network = copy.deepcopy(network)
        with torch.no_grad():
            next(network.parameters()).mul_(1.01)
        write(network, *rest)

    monkeypatch.setattr(making, "write_torchscript", off)
    with pytest.raises(StudentError, match="the export differs from the student"):
        export_student(run, tmp_path / "x.pt", "torchscript", store=store)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_predictions_that_are_not_finite_are_refused(closed: Path, tmp_path: Path, value: float) -> None:
    model = onnx.load(str(closed))
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 4:
            array = onnx.numpy_helper.to_array(tensor).copy()
            array.flat[0] = value
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, str(tmp_path / "nan.onnx"))
    with pytest.raises(StudentError, match="NaN or infinity"):
        vl2v.deploy.runtime.load(tmp_path / "nan.onnx").run(np.full((1, 32, 32, 3), 255, np.uint8))


def test_what_a_format_lacks_is_said_before_work_begins(run: vl2v.Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="torchscript has no int8 form, only onnx, openvino"):
        export_student(run, tmp_path / "x.pt", "torchscript", int8=True)
    with pytest.raises(ConfigError, match=r"ends in \.xml"):
        export_student(run, tmp_path / "x.onnx", "openvino")
    result = CliRunner().invoke(app, ["export", str(run.folder), "--format", "caffe"])
    assert isinstance(result.exception, ConfigError) and "onnx, openvino, torchscript, executorch" in str(
        result.exception
    )
