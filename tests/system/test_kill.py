"""A run that is killed with -9 and started again ends with the weights of one that never was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w
import torch
from safetensors.torch import load_file

from little import quick_settings

SWAD = {"swad": True, "precision": "fp32", "accelerator": "cpu"}


def command(config: Path, out: Path, store: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "vl2v",
        "distill",
        "--config",
        str(config),
        "--out",
        str(out),
        "--store",
        str(store),
    ]


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


@pytest.fixture(scope="module")
def calm(config: Path) -> Path:
    """Return the folder of a run that nobody disturbed."""
    out = config.with_name("calm")
    assert subprocess.run(command(config, out, config.with_name("store")), capture_output=True).returncode == 0
    return out


@pytest.mark.parametrize("wait_for", ["00-00000010", "01-00000004", "01-00000008"])
def test_a_killed_run_ends_the_same(wait_for: str, config: Path, calm: Path, tmp_path: Path) -> None:
    killed, store = tmp_path / "killed", config.with_name("store")
    with subprocess.Popen(command(config, killed, store), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (killed / "checkpoints" / f"{wait_for}.safetensors").exists():
            assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
    assert not (killed / "student" / "student.json").exists(), "killed too late to show anything"
    again = subprocess.run(command(config, killed, store), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    one, other = student(calm), student(killed)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    metrics = [
        [line.split('"seconds"')[0] for line in (out / "metrics.jsonl").read_text().splitlines()]
        for out in (calm, killed)
    ]
    assert metrics[0] == metrics[1]
