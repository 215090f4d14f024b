"""What training on a GPU needs, as far as a machine without one can tell."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import vl2v
from steps import begun
from vl2v.config import DataConfig, validate
from vl2v.errors import ConfigError, RunError
from vl2v.runs.stages import check_trainable
from vl2v.system import processors
from vl2v.training.device import lacks_compiler
from vl2v.training.stage import StageRun
from vl2v.tree import merge

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2"}


class Waits(TorchDispatchMode):
    """The operators for whose results a processor waits for its GPU, as they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        masks = name in ("index", "index_put") and any(x is not None and x.dtype == torch.bool for x in args[1])
        if name in WAITS or masks:
            self.called.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loop take the CPU for a GPU: it then reads what lies there between evaluations only."""
    begin = StageRun.__init__

    def begun_on_gpu(self: StageRun, *given: Any, **options: Any) -> None:
        begin(self, *given, **options)
        self.on_gpu = True

    monkeypatch.setattr(StageRun, "__init__", begun_on_gpu)


@pytest.mark.parametrize(  # not: coral, mixup, rise
    "method", ["adip", "adip-plus", "erm", "fd", "kd", "miro", "sagm", "scmd"]
)
def test_no_step_waits_for_the_device(method: str, tmp_path: Path, on_gpu: None) -> None:
    run, batches = begun(method, tmp_path)
    steps = batches.between(0, 2)
    run.optimise(steps)  # the first one chooses how many images fit
    with Waits() as waits:
        run.optimise(steps)
    assert not waits.called
    with Waits() as waits:
        run.on_gpu = False
        run.optimise(batches.between(2, 3))
    assert waits.called == ["_local_scalar_dense"], "a CPU looks at every loss"


def test_losses_are_those_of_a_run_that_waits(quick: dict[str, Any], tmp_path: Path, on_gpu: None) -> None:
    run = vl2v.distill(quick, tmp_path / "gpu", store=tmp_path / "store")
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageRun, "on_gpu", property(lambda self: False, lambda self, value: None), raising=False)
        usual = vl2v.distill(quick, tmp_path / "cpu", store=tmp_path / "store")
    others = [json.loads(line) for line in (usual.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(row["step"], row["loss"]) for row in others]


def test_a_loss_that_is_not_finite_is_reported_at_the_next_evaluation(
    quick: dict[str, Any], tmp_path: Path, on_gpu: None
) -> None:
    settings = merge(quick, {"stages": {"distill": {"lr": 1e30, "clip": None}}})
    with pytest.raises(RunError, match=r"the loss of distill is (nan|inf) at step 2; start again with a smaller"):
        vl2v.distill(settings, tmp_path / "run", store=tmp_path / "store")


def test_auto_workers_are_the_processors_there_are() -> None:
    most = 32 if torch.cuda.is_available() else 4
    assert DataConfig(path=Path("x")).processes == min(processors(), most)
    assert DataConfig(path=Path("x"), workers=0).processes == 0


def test_a_compiled_run_learns_and_where_it_can_not_be_compiled_it_says_why(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = validate(merge(quick, {"train": {"compile": True}}))
    with pytest.raises(ConfigError, match=r"train.compile: cached activations \(train.quick\) aren't compiled"):
        check_trainable(validate(merge(quick, {"train": {"compile": True, "quick": "auto"}})), 1)
    with pytest.raises(ConfigError, match=r"train.compile: a run on several devices"):
        check_trainable(config, 2)
    with pytest.raises(ConfigError, match=r"train.compile: it isn't used on this kind of device"):
        check_trainable(config, 1, "mps")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        patch.delenv("CXX", raising=False)
        with pytest.raises(ConfigError, match=r"train.compile: it needs a C.. compiler, and none of c.., g.., clang"):
            check_trainable(config, 1)


@pytest.mark.skipif(not os.environ.get("VL2V_COMPILE"), reason="minutes of compiling; set VL2V_COMPILE=1 to run it")
@pytest.mark.skipif(bool(lacks_compiler("cpu")), reason="no C++ compiler is installed")
def test_a_compiled_run_ends_as_one_that_is_not(quick: dict[str, Any], tmp_path: Path) -> None:
    found = []
    for name, compiled in (("plain", False), ("compiled", True)):
        settings = merge(quick, {"train": {"compile": compiled}, "stages": {"distill": {"steps": 2, "eval_every": 2}}})
        run = vl2v.distill(settings, tmp_path / name, store=tmp_path / "store")
        found.append(json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])["loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.slow
def test_the_benchmark_of_gpus_runs(quick_python: str) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
    done = subprocess.run([quick_python, script, "--device", "cpu", "--quick"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("|") and "---" not in line]
    checks = {cells[1].strip(): cells[2].strip() for cells in rows if len(cells) == 6 and cells[1].strip() != "check"}
    assert len(checks) == 7 and set(checks.values()) == {"ok"}, done.stdout
    assert "embed:" in done.stdout and done.stdout.count("bar 0.8") == 1
