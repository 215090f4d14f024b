"""`vl2v bench-device`: what each form of a student takes, each in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import vl2v
from vl2v.cli.app import app
from vl2v.errors import ConfigError, StudentError
from vl2v.export.device import Device, bench_device
from vl2v.export.measure import Way, side_by_side, workers


@pytest.fixture(scope="module")
def device(run: vl2v.Run, store: Path) -> Device:
    return bench_device(run, against="tiny", store=store, threads=1, turns=1, seconds=0.01)


def test_every_form_is_measured_against_eager_fp32(device: Device) -> None:
    lines = {line.name: line for line in device.lines}
    assert {"eager fp32", "eager bf16", "ONNX fp32", "OpenVINO fp32"} < lines.keys()
    assert device.lines[0].name.startswith("teacher, ")
    for line in device.lines:
        assert [speed.batch for speed in line.speeds] == [1, 32] and line.peak is not None
        assert all(0 < speed.p50 <= speed.p95 for speed in line.speeds)
    assert [speed.gain for speed in lines["eager fp32"].speeds] == [1, 1]
    onnx, eager = lines["ONNX fp32"].peak, lines["eager fp32"].peak
    assert onnx is not None and eager is not None and onnx < eager / 2  # its process has no torch in it


def test_what_was_measured_is_kept_in_the_run_folder(device: Device, tmp_path: Path) -> None:
    device.save(tmp_path)
    assert [line["name"] for line in json.loads((tmp_path / "device.json").read_text())["lines"]] == [
        line.name for line in device.lines
    ]
    assert "| ONNX fp32 |" in (tmp_path / "device.md").read_text()
    with Image.open(tmp_path / "device.png") as plot:
        assert plot.width > plot.height > 100


def test_a_gain_is_the_median_of_turns_each_within_itself() -> None:
    noise = iter([1, 1, 10, 10, 2, 2])  # the machine is ten times as slow in the second turn

    def caller(share: float) -> list[float]:
        return [share * next(noise)]

    found = side_by_side({"one": lambda *_: caller(1.0), "other": lambda *_: caller(0.5)}, "one", 1, turns=3)
    assert found["other"].gain == 2 and found["one"].gain == 1


def test_a_black_box_cannot_be_measured(run: vl2v.Run) -> None:
    result = CliRunner().invoke(app, ["bench-device", str(run.folder), "--against", "teacher"])
    assert isinstance(result.exception, ConfigError) and "a black box can't be measured" in str(result.exception)


def test_what_a_process_cannot_open_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(StudentError, match=r"nothing: .*none\.onnx: no such export"),
        workers([Way("nothing", tmp_path / "none.onnx", 32)], 1),
    ):
        pass
