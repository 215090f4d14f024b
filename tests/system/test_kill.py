"""A run that is killed with -9 and started again ends with the weights of one that never was."""

from __future__ import annotations

import signal
import subprocess
import tomllib
from pathlib import Path

import pytest
import tomli_w
import torch
from safetensors.torch import load_file

import vl2v
from little import quick_settings

SWAD = {"swad": True, "precision": "fp32", "accelerator": "cpu"}


# Dies as it has written the checkpoint that its first argument names.
KILLED = """
import os, signal, sys
from vl2v.cli import main
from vl2v.training import stage
save, last = stage.save_checkpoint, sys.argv.pop(1)
def dying(folder, name, *rest):
    save(folder, name, *rest)
    if name == last:
        os.kill(os.getpid(), signal.SIGKILL)
stage.save_checkpoint = dying
main()
"""


def student(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "student" / "student.safetensors")


@pytest.fixture(scope="module")
def config(shapes: Path, recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = quick_settings(shapes, recording)
    settings["train"] = SWAD
    settings["stages"]["distill"] |= {"steps": 12}
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_text(tomli_w.dumps(settings))
    return path


def distill(config: Path, out: Path) -> Path:
    """Train, or go on training; return the run folder."""
    return vl2v.distill(tomllib.loads(config.read_text()), out, store=config.with_name("store")).folder


@pytest.fixture(scope="module")
def calm(config: Path) -> Path:
    """Return the folder of a run that nobody disturbed."""
    return distill(config, config.with_name("calm"))


@pytest.mark.parametrize("last", ["00-00000010", "01-00000004", "01-00000008"])
def test_a_killed_run_ends_the_same(last: str, config: Path, calm: Path, quick_python: str, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    command = [quick_python, "-c", KILLED, last, "distill", "--config", str(config), "--out", str(killed)]
    command += ["--store", str(config.with_name("store"))]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert (killed / "checkpoints" / f"{last}.safetensors").exists()
    one, other = student(calm), student(distill(config, killed))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    metrics = [
        [line.split('"seconds"')[0] for line in (out / "metrics.jsonl").read_text().splitlines()]
        for out in (calm, killed)
    ]
    assert metrics[0] == metrics[1]
