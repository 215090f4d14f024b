"""Commands that only look at something start at once: torch and what belongs to it stay out of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vl2v
from little import quick_settings
from vl2v.export.student import keep_export
from vl2v.runs.folder import Run
from vl2v.runs.predict import add_class, predict_files
from vl2v.students.backbone import LITE_WIDTH, PACKAGED, output_width, pretrained_backbone
from vl2v.students.stored import load_beside

HEAVY = "torch torchvision timm open_clip lightning_fabric transformers pandas scipy matplotlib sympy huggingface_hub"
# Does commands one after the other; tells of each how it ended, what it printed, and what was imported by then.
IMPORTED = f"""
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from vl2v.cli import main
found = []
for words in json.load(sys.stdin):
    sys.argv, code = ["vl2v", *words], 0
    with redirect_stdout(io.StringIO()) as printed, redirect_stderr(io.StringIO()) as errors:
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    heavy = [name for name in {HEAVY!r}.split() if name in sys.modules]
    found.append([code, printed.getvalue().strip() != "", errors.getvalue(), heavy])
json.dump(found, sys.stdout)
"""
LOOKING = """
--help
--version
distill --help
methods
config
config --schema
data list
data inspect SHAPES
bill --store STORE
bill RUN --store STORE
store ls --store STORE
store info --store STORE
benchmark status BENCH
classes list RUN
predict RUN IMAGE
"""


@pytest.fixture(scope="module")
def runs(trained: Callable[[str], Run], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return run folders with an export beside the student: of a text head and of a linear one."""
    folder, made = tmp_path_factory.mktemp("quick"), {}
    for method in ("erm", "adip"):
        shutil.copytree(trained(method).folder.parent, folder, dirs_exist_ok=True)
        run = Run(folder / method)
        assert keep_export(run, folder / "store")
        made[method] = run.folder
    return made


def test_commands_that_look_import_no_torch(runs: dict[str, Path], shapes: Path, tmp_path: Path) -> None:
    run = runs["adip"]
    (tmp_path / "jobs.jsonl").touch()
    image = next(iter(sorted(shapes.rglob("*.png"))))
    names = {"SHAPES": shapes, "STORE": run.parent / "store", "RUN": run, "BENCH": tmp_path, "IMAGE": image}
    commands = [[str(names.get(word, word)) for word in line.split()] for line in LOOKING.split("\n") if line]
    order = json.dumps(commands)
    done = subprocess.run([sys.executable, "-c", IMPORTED], input=order, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for words, (code, printed, errors, heavy) in zip(commands, json.loads(done.stdout), strict=True):
        assert (code, printed, errors.strip(), heavy) == (0, True, "", []), words


WHOLE_RUN = """
import json, sys
import vl2v

first = []

def progress(stage, done, total, remark):
    if stage == "distill" and done and not first:
        first.extend(sys.modules)

settings, out, store = json.loads(sys.argv[1]), *sys.argv[2:]
vl2v.distill(settings, out, store=store, progress=progress)
print(json.dumps([first, list(sys.modules)]))
"""


def test_a_run_needs_no_compiler_and_little_for_its_first_step(shapes: Path, recording: Path, tmp_path: Path) -> None:
    settings = quick_settings(shapes, recording, "kd")
    settings["student"] = {"name": "tf_efficientnet_lite0", "weights": "package", "image_size": 32}
    settings["teacher"]["adapt"], settings["train"]["head"] = "auto", "start"
    command = [sys.executable, "-c", WHOLE_RUN, json.dumps(settings), tmp_path / "run", tmp_path / "store"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, last = json.loads(done.stdout)
    compiler = {"torch._dynamo", "torch._inductor", "sympy"}
    assert not compiler & {*last}, "seven seconds"
    others = {"torchvision", "lightning_fabric", "wandb", "matplotlib", "transformers", "open_clip"}
    assert not {*others, "torch.distributed.fsdp"} & {*first}
    assert len(first) < 2600, "3,448 before"


def test_the_default_student_is_as_wide_as_it_is_taken_to_be() -> None:
    for name in PACKAGED:
        backbone, _ = pretrained_backbone(name, "none", image_size=33)
        assert (
            backbone.eval()(torch.zeros(1, 3, 33, 33)).shape == (1, LITE_WIDTH) and output_width(name, 64) == LITE_WIDTH
        )


def test_torchvision_is_whole_for_whoever_imports_it_later() -> None:
    words = """
import vl2v.students.backbone, torchvision, torch
from torchvision.models import resnet18
assert torchvision.ops.nms(torch.rand(3, 4), torch.rand(3), 0.5) is not None
assert torchvision.transforms.ToTensor and torchvision.datasets.ImageFolder and resnet18
assert torch.compiler.disable.__module__ == "torch.compiler"
"""
    subprocess.run([sys.executable, "-c", words], check=True)


def test_what_open_clip_takes_of_transformers_is_imported_when_it_is_used() -> None:
    pytest.importorskip("transformers")
    words = """
import sys
from vl2v.lazy import import_lightly
import_lightly("open_clip")
from open_clip import hf_model
assert "transformers" not in sys.modules and hf_model.transformers is not None
config = hf_model.AutoConfig.for_model("bert")
assert isinstance(config, hf_model.PretrainedConfig) and not isinstance(3, hf_model.PretrainedConfig)
import transformers
assert isinstance(config, transformers.BertConfig)
"""
    subprocess.run([sys.executable, "-c", words], check=True)


def test_what_needs_more_of_torchvision_is_imported_with_all_of_it(tmp_path: Path) -> None:
    files = {
        "torchvision/__init__.py": "from torchvision import models, ops",
        "torchvision/ops/__init__.py": "nms = object()",
        "torchvision/models.py": "resnet18 = object()",
        "needy.py": "from torchvision.ops import nms\nfrom torchvision.models import resnet18",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    words = """
import sys
from vl2v.lazy import import_lightly
import_lightly("needy")
import needy, torchvision, torch
assert needy.nms is torchvision.ops.nms and needy.resnet18 is torchvision.models.resnet18
assert torch.compiler.disable.__module__ == "torch.compiler" and sys.modules.get("wandb", 1) is not None
"""
    subprocess.run([sys.executable, "-c", words], check=True, cwd=tmp_path)


def predictions(run: Path, images: Path) -> list[tuple[Path, str, np.ndarray[Any, Any]]]:
    made = []
    for path, prediction in predict_files(run, [images]):
        assert not isinstance(prediction, str)
        made.append((path, prediction.label, np.array(list(prediction.probabilities.values()))))
    return made


@pytest.mark.parametrize("method", ["adip", "erm"])
def test_an_export_beside_the_student_predicts_as_it_does(method: str, runs: dict[str, Path], shapes: Path) -> None:
    run = runs[method]
    (file,) = (run / "student").glob("network-*.onnx")
    assert load_beside(run / "student") is not None
    quick = predictions(run, shapes)
    hidden = file.rename(file.with_suffix(".hidden"))
    try:
        assert load_beside(run / "student") is None
        slow = predictions(run, shapes)
    finally:
        hidden.rename(file)
    assert [(path, label) for path, label, _ in quick] == [(path, label) for path, label, _ in slow]
    assert max(np.abs(a - b).max() for (*_, a), (*_, b) in zip(quick, slow, strict=True)) < 1e-4


def test_added_classes_need_no_new_export_and_other_weights_do(runs: dict[str, Path], shapes: Path) -> None:
    run = runs["adip"]
    student = run / "student"
    before = (student / "student.json").read_bytes(), (student / "student.safetensors").read_bytes()
    add_class(run, "star", store=run.parent / "store")
    quick = load_beside(student)
    assert quick is not None and quick.classes[-1] == "star"
    image = next(iter(sorted(shapes.rglob("*.png"))))
    (made,), (wanted,) = quick.predict([image]), vl2v.load(run).predict([image])
    assert made.label == wanted.label and made.probability == pytest.approx(wanted.probability, abs=1e-4)
    classifier = vl2v.load(run)
    with torch.no_grad():
        classifier.student.projector.weight += 1e-3
    classifier.save(student)
    assert load_beside(student) is None
    old = {file.name for file in student.glob("network-*")}
    assert keep_export(Run(run), run.parent / "store")
    assert load_beside(student) is not None and len({*student.glob("network-*")}) == 1
    assert old != {file.name for file in student.glob("network-*")}
    for name, data in zip(("student.json", "student.safetensors"), before, strict=True):
        (student / name).write_bytes(data)
    assert keep_export(Run(run), run.parent / "store")


@pytest.mark.parametrize("damage", [b"", b"not a model"])
def test_a_damaged_export_is_not_used(damage: bytes, runs: dict[str, Path], shapes: Path) -> None:
    run = runs["erm"]
    (file,) = (run / "student").glob("network-*.onnx")
    whole = file.read_bytes()
    file.write_bytes(damage)
    try:
        assert load_beside(run / "student") is None
        assert len(predictions(run, shapes)) == 108
    finally:
        file.write_bytes(whole)
