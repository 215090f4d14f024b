"""One run on two devices (gloo): the gradients, the student and the teacher's questions of a run on one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import ModelParallelStrategy
from safetensors.torch import load_file

import vl2v
from forks import launched
from little import Interrupted, quick_settings, stopping
from vl2v.config import TrainConfig, validate
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import ConfigError
from vl2v.evaluation.metrics import Evaluation
from vl2v.runs.stages import check_trainable
from vl2v.students.backbone import pretrained_backbone
from vl2v.students.student import Student, new_projector
from vl2v.training.batches import DomainBalancedSampler
from vl2v.training.device import shard
from vl2v.training.loop import Trainer
from vl2v.tree import merge

pytestmark = pytest.mark.slow

STRATEGIES = ["ddp", "fsdp"]
SCRIPT = Path(__file__).with_name("gradients.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def runs(shapes: Path, recording: Path, unlabelled: Path) -> dict[str, dict[str, Any]]:
    """Two stages and SWAD; means over labelled images; two gradients a step, of two micro-batches; averages."""
    adip, rise, sam = (quick_settings(shapes, recording, method) for method in ("adip", "rise", "sam"))
    adip["train"]["swad"] = True
    rise["data"]["unlabelled"] = str(unlabelled)
    sam["stages"]["finetune"] |= {"steps": 2, "accumulate": 2, "clip": 1.0}
    averaging = {**quick_settings(shapes, recording, "miro"), "method": "averaging"}  # of the script
    return {"adip": adip, "rise": rise, "sam": sam, "averaging": averaging}


@pytest.fixture(scope="module")
def trained(shapes: Path, recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs by one process, and by two with each strategy."""
    folder = tmp_path_factory.mktemp("devices")
    shutil.copytree(shapes / "paint" / "box", folder / "unlabelled")  # the recorded teacher knows them
    wanted = runs(shapes, recording, folder / "unlabelled")
    for devices, names in ((1, ["one"]), (2, STRATEGIES)):
        together = {
            f"{name}/{method}": merge(settings, {"train": {"strategy": name}} if name in STRATEGIES else {})
            for name in names
            for method, settings in wanted.items()
        }
        (folder / "runs.json").write_text(json.dumps(together))
        launched(devices, [str(SCRIPT), str(folder / "runs.json"), str(folder)], folder)
    return folder


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("stage", ["adip.align", "adip.distill", "rise.distill", "sam.finetune", "averaging.finetune"])
def test_the_gradient_is_that_of_one_device_with_the_whole_batch(stage: str, strategy: str, trained: Path) -> None:
    one, two = (load_file(trained / name / f"{stage}.safetensors") for name in ("one", strategy))
    share = float(two.pop("share"))
    assert share == pytest.approx(0.5, abs=0.05) if strategy == "fsdp" else share == 1
    assert float(one.pop("share")) == 1
    assert one.keys() == two.keys() and len(one) > 1
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 1e-5
    assert max(float(value.abs().max()) for key, value in one.items() if key != "loss") > 1e-3


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("method", ["adip", "rise", "sam", "averaging"])
def test_the_run_ends_with_the_student_of_one_device(method: str, strategy: str, trained: Path) -> None:
    one, two = (vl2v.Run(trained / name / method) for name in ("one", strategy))
    assert same_evaluation(one.evaluation, two.evaluation)
    assert same_student(one, two)
    logs = [[json.loads(line) for line in (run.folder / "metrics.jsonl").open()] for run in (one, two)]
    assert [(row["stage"], row["step"]) for row in logs[0]] == [(row["stage"], row["step"]) for row in logs[1]]
    assert [row["loss"] for row in logs[0]] == pytest.approx([row["loss"] for row in logs[1]], abs=1e-4)


def same_evaluation(one: Evaluation | None, two: Evaluation | None) -> bool:
    assert one is not None and two is not None
    pairs = list(zip(one.rows, two.rows, strict=True))
    assert all((a.who, a.domain, a.metrics.images) == (b.who, b.domain, b.metrics.images) for a, b in pairs)
    return all(a.metrics.accuracy == b.metrics.accuracy for a, b in pairs)


def same_student(one: vl2v.Run, two: vl2v.Run) -> bool:
    """Whether all weights are nearer to one another than a tenth of a step of the optimiser."""
    ours, theirs = (run.classifier.student.state_dict() for run in (one, two))
    return ours.keys() == theirs.keys() and all((ours[key] - theirs[key]).abs().max() < 1e-4 for key in ours)


def test_the_teacher_is_queried_once_however_many_devices(trained: Path) -> None:
    queries = []
    for name in ("one", *STRATEGIES):
        with EmbeddingStore(trained / name / "store", read_only=True) as store:
            queries.append([(question.kind, question.count) for question in store.queries()])
    assert queries[0] == queries[1] == queries[2] and queries[0]


@pytest.mark.parametrize("method", ["adip", "rise", "sam", "averaging"])
def test_the_others_wait_for_the_first_process_at_three_points(method: str, trained: Path) -> None:
    waits = [(trained / name / f"{method}.{rank}.waits").read_text() for name in STRATEGIES for rank in range(2)]
    assert waits == ["3"] * 4, "open, query, save"


# Its first process dies as it has written the checkpoint of the sixth step; torchrun ends the other one.
KILLED = """
import os, signal
from vl2v.cli import main
from vl2v.training import stage
save = stage.save_checkpoint
def dying(folder, name, *rest):
    save(folder, name, *rest)
    if name == "01-00000006":
        os.kill(os.getpid(), signal.SIGKILL)
stage.save_checkpoint = dying
main()
"""


def test_a_killed_run_goes_on_with_more_devices_with_fewer_and_with_another_strategy(
    quick: dict[str, Any], quick_python: str, tmp_path: Path
) -> None:
    quick["stages"]["distill"] |= {"steps": 12, "eval_every": 3}
    quick["train"]["swad"] = True
    store = tmp_path / "store"
    calm, fewer, out = (tmp_path / name for name in ("calm", "fewer", "run"))
    vl2v.distill(quick, calm, store=store)
    (tmp_path / "config.toml").write_text(tomli_w.dumps(quick))
    words = ["distill", "--config", str(tmp_path / "config.toml"), "--out", str(out), "--store", str(store)]

    with pytest.raises(Interrupted):
        vl2v.distill(quick, out, store=store, progress=stopping("distill", 4))
    (tmp_path / "killed.py").write_text(KILLED)
    command, own = [*TORCHRUN, str(tmp_path / "killed.py"), *words, "--set", "train.strategy=fsdp"], {**os.environ}
    killed = subprocess.run(command, capture_output=True, text=True, env=own | {"PYTHON_EXEC": quick_python})
    assert killed.returncode and "Signal 9 (SIGKILL)" in killed.stderr, killed.stderr
    assert max(file.name for file in (out / "checkpoints").iterdir()) == "01-00000006.safetensors"
    shutil.copytree(out, fewer)
    vl2v.distill(quick, fewer, store=store)
    assert launched(2, ["-m", "vl2v", *words], tmp_path).count("student saved in") == 1
    for folder in (fewer, out):
        assert same_evaluation(vl2v.Run(calm).evaluation, vl2v.Run(folder).evaluation)
        assert same_student(vl2v.Run(calm), vl2v.Run(folder))


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        (
            "adip",
            {"stages": {"distill": {"batch_per_domain": 5}}},
            "= 5: 2 devices can't have equal parts of it; use 6",
        ),
        ("coral", {}, "method coral: its loss is of a whole batch at once; train it on one device"),
        ("erm", {"student": {"batch_norm": "train"}}, "student.batch_norm = 'train': its statistics"),
    ],
)
def test_what_cannot_be_learnt_in_parts_is_refused(
    method: str, change: dict[str, Any], message: str, shapes: Path, recording: Path
) -> None:
    config = validate(merge(quick_settings(shapes, recording, method), change))
    check_trainable(config, 1)
    with pytest.raises(ConfigError, match=message):
        check_trainable(config, 2)


def test_a_student_that_cannot_be_sharded_is_refused(tmp_path: Path) -> None:
    backbone, spec = pretrained_backbone("test_efficientnet", "none", image_size=32)
    student = Student(backbone, new_projector(int(backbone.num_features), 8, seed=0), spec)
    trainer = Trainer(tmp_path, TrainConfig(precision="fp32", accelerator="cpu"), seed=0)
    trainer.fabric = Fabric(accelerator="cpu", devices=1, strategy=ModelParallelStrategy(shard, 1, 1))
    trainer.prepare(student)
    student.backbone.register_parameter("gain", torch.nn.Parameter(torch.tensor(1.0)))  # as NFNets have them
    with pytest.raises(ConfigError, match=r"'fsdp': the student's backbone.gain is a single number.*; use ddp"):
        trainer.prepare(student)


def test_parts_make_up_the_batch_with_as_many_of_each_domain() -> None:
    groups = [np.arange(5), np.arange(5, 12)]
    whole, turns = DomainBalancedSampler(groups, 4, 0).batch(3)
    parts = [DomainBalancedSampler(groups, 4, 0, (k, 2)).batch(3) for k in range(2)]
    drawn = sorted(pair for part in parts for pair in zip(*(x.tolist() for x in part), strict=True))
    assert drawn == sorted(zip(whole.tolist(), turns.tolist(), strict=True))
    assert all((images < 5).sum() == 2 for images, _ in parts)
