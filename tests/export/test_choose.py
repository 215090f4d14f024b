"""An export by what it may take: the most accurate of those that do, or the nearest is named."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import vl2v
import vl2v.deploy.runtime
from vl2v.cli.app import app
from vl2v.errors import ConfigError
from vl2v.export.choose import Choice, Target, TargetMissed, best_of, choose_export


@pytest.fixture(scope="module", autouse=True)
def short_turns() -> Iterator[None]:
    """Let each candidate be timed in one short turn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vl2v.export.choose.TURNS", 1)
        patch.setattr("vl2v.export.choose.SECONDS", 0.02)
        yield


@pytest.fixture(scope="module")
def choice(run: vl2v.Run, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Choice:
    """Return what is chosen of both precisions and two sizes by a target that everything meets."""
    return choose_export([run], Target(10, 1e9), out=tmp_path_factory.mktemp("choice") / "s.onnx", store=store)


def test_the_most_accurate_that_meets_the_target_is_written(choice: Choice) -> None:
    sizes = {(one.image_size, one.int8) for one in choice.candidates}
    assert sizes == {(32, False), (32, True), (16, False), (16, True)}
    made = [one for one in choice.candidates if one.made is not None]
    assert len(made) > 1 and all(one.seconds > 0 for one in made)
    assert choice.best.made is not None
    assert choice.best.made.parity.mean == max(one.made.parity.mean for one in made if one.made is not None)
    assert vl2v.deploy.runtime.size_of(choice.path) == choice.best.made.bytes
    card = vl2v.deploy.runtime.load(choice.path).card
    assert card["image_size"] == choice.best.image_size
    assert card["precision"] == ("int8" if choice.best.int8 else "fp32")
    assert choice.curve.table().render("md").count("**chosen**") == 1


def test_a_tighter_target_leaves_the_smaller_ones(choice: Choice) -> None:
    sizes = {one.int8: one.made.bytes for one in choice.candidates if one.made is not None and one.image_size == 32}
    assert best_of(choice.candidates, Target(bytes=(sizes[False] + sizes[True]) / 2)).int8
    times = sorted(one.seconds for one in choice.candidates if one.made is not None)
    assert best_of(choice.candidates, Target(seconds=times[0])).seconds == times[0]


def test_a_target_that_nothing_meets_names_the_nearest(choice: Choice) -> None:
    smallest = min((one for one in choice.candidates if one.made), key=lambda one: one.made.bytes)  # type: ignore[union-attr]
    with pytest.raises(TargetMissed, match=f"nearest, {re.escape(smallest.name)}, takes") as missed:
        best_of(choice.candidates, Target(bytes=1000))
    curve = missed.value.curve
    assert curve.candidates == choice.candidates and "chosen" not in curve.table().render("md")


def test_what_was_measured_is_kept_whether_the_target_is_met_or_not(run: vl2v.Run, store: Path, tmp_path: Path) -> None:
    command = ["export", str(run.folder), "--image-size", "16", "--no-int8", "--store", str(store)]
    for size, code in (("9MB", 0), ("1KB", 1)):
        folder = tmp_path / size
        result = CliRunner().invoke(app, [*command, "--target-size", size, "--out", str(folder / "s.onnx")])
        assert result.exit_code == code and "accuracy %" in result.stdout
        (row,) = csv.DictReader((folder / "choice.csv").open())
        assert (row["px"], row["precision"]) == ("16", "fp32") and float(row["ms"]) > 0 and float(row["MB"]) > 0
        with Image.open(folder / "choice.png") as plot:
            assert plot.width > plot.height > 100
        if not code:  # another size is calibrated for itself
            exported = vl2v.deploy.runtime.load(folder / "s.onnx")
            assert exported.card["image_size"] == 16 and exported.card["threshold"] != run.classifier.threshold
            assert exported.probabilities(np.zeros((1, 16, 16, 3), np.uint8)).shape == (1, 3)
            assert "at 16 px in fp32" in result.stdout
    assert not (tmp_path / "1KB" / "s.onnx").exists()


def test_a_name_that_does_not_fit_is_refused_before_anything_is_exported(run: vl2v.Run, tmp_path: Path) -> None:
    began = []
    with pytest.raises(ConfigError, match=r"ends in \.onnx"):
        choose_export([run], Target(bytes=1e9), out=tmp_path / "s.xml", progress=lambda *what: began.append(what))
    assert not began and not list(tmp_path.iterdir())


def test_runs_on_other_images_are_not_compared(run: vl2v.Run, store: Path, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "other")
    config = tmp_path / "other" / "config.toml"
    config.write_text(config.read_text().replace('target = [\n    "paint",\n]', 'target = ["ink"]'))
    assert vl2v.Run(tmp_path / "other").config.data.target == ["ink"] != run.config.data.target
    with pytest.raises(ConfigError, match="other images, split or classes"):
        choose_export([run, vl2v.Run(tmp_path / "other")], Target(1), store=store)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--target-latency", "10"], "write a number and its unit, ms or s"),
        (["--target-size", "0MB"], "write a number and its unit"),
        (["--image-size", "16", "--image-size", "32"], "add --target-latency or --target-size to choose"),
        (["--target-size", "5MB", "--int8", "--format", "torchscript"], "torchscript has no int8 form"),
    ],
)
def test_what_makes_no_sense_is_said(run: vl2v.Run, options: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["export", str(run.folder), *options])
    assert isinstance(result.exception, ConfigError) and said in str(result.exception)
