"""A method takes the settings that it has, and says which of those that were given can't apply."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import vl2v
from little import quick_settings
from vl2v.errors import ConfigError
from vl2v.methods import METHODS, find_method, load_method
from vl2v.runs.settings import from_earlier, resolve
from vl2v.tree import merge, nested, read_toml

DATA: dict[str, Any] = {"data": {"path": "images"}}
DOCS = Path(__file__).parents[2] / "docs" / "methods.md"


def given(method: str, **settings: Any) -> dict[str, Any]:
    return merge(DATA, {"method": method}, nested({name.replace("__", "."): value for name, value in settings.items()}))


@pytest.mark.parametrize(
    ("method", "name", "value", "reason"),
    [
        ("erm", "teacher.views", 4, "doesn't query the teacher about images"),
        ("erm", "teacher.select", 5, "doesn't query"),
        ("lp", "teacher.online", True, "doesn't query"),
        ("erm-text", "data.unlabelled", "more", "doesn't query"),
        ("clipood", "teacher.views", 1, "doesn't query"),
        ("erm", "loss.margin", 3, "method erm has no such setting; it has no settings of its own"),
        ("kd", "loss.lambda", 0.1, "it has kd_weight, temperature"),
        ("adip", "loss.class_weight", 0.1, "it has lambda"),
        ("sd", "student.name", "resnet18", "trains the teacher's own image tower"),
        ("wise-ft", "student.image_size", 64, "trains the teacher's own image tower"),
        ("adip", "teacher.strategy", "random", "only with teacher.select"),
        ("adip", "teacher.view_seed", 1, "only with teacher.views"),
        ("adip", "teacher.statistics", "imagenet", "only with teacher.online"),
    ],
)
def test_a_setting_that_cannot_apply_is_named_with_the_reason(method: str, name: str, value: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(name) + ".*" + re.escape(reason)):
        resolve(merge(DATA, {"method": method}, nested({name: value})))


def test_every_setting_that_cannot_apply_is_named_at_once() -> None:
    tree = given("erm", teacher__views=4, teacher__select=5, loss__margin=3, loss__sam_rho=9)
    with pytest.raises(ConfigError, match=r"teacher\.views.*teacher\.select.*loss\.margin.*loss\.sam_rho"):
        resolve(tree)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("preset", ["default", "paper"])
def test_the_settings_that_a_method_prints_can_be_given_to_it(method: str, preset: str) -> None:
    config = resolve(merge(DATA, {"method": method}), preset)
    assert resolve(config.model_dump(by_alias=True)) == config


def test_values_of_own_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"loss\.lambda = 2"):
        resolve(given("adip", loss__lambda=2))
    with pytest.raises(ConfigError, match=r"loss\.interpolate = -1"):
        resolve(given("wise-ft", loss__interpolate=-1))


def test_settings_of_an_earlier_run_are_those_that_its_method_has() -> None:
    written = read_toml(Path(__file__).parents[1] / "formats" / "v1" / "run" / "config.toml")
    written["loss"]["lambda"] = 0.3
    assert from_earlier(written)["loss"] == {"lambda": 0.3}
    assert from_earlier({**written, "method": "vl2v"})["method"] == "adip-plus"
    assert resolve(from_earlier(written)).loss == {"lambda": 0.3}


def test_a_method_of_ones_own_trains_from_a_file(shapes: Path, recording: Path, tmp_path: Path) -> None:
    """The very example of docs/methods.md."""
    (source,) = re.findall(r'```python\n("""my_methods.py.*?)```', DOCS.read_text(), re.DOTALL)
    file = tmp_path / "my_methods.py"
    file.write_text(source)
    settings = quick_settings(shapes, recording, "fd") | {"method": f"{file}:TextOnly", "loss": {"weight": 0.5}}
    run = vl2v.distill(settings, tmp_path / "run", store=tmp_path / "store")
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(row["loss"] == pytest.approx(-0.5 * row["cosine"], abs=1e-6) for row in rows)
    with pytest.raises(ConfigError, match=r"loss\.lambda: method .*TextOnly has no such setting; it has weight"):
        resolve(merge(settings, {"loss": {"lambda": 1}}))
    METHODS.pop(load_method(settings["method"]))
    with pytest.raises(ConfigError, match="its file isn't loaded"):
        find_method(run.config.method)  # a run folder's name doesn't run code


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.py:X", "no such file"), ("{file}:Nothing", "has no Nothing"), ("{file}:Path", "not a method")],
)
def test_a_file_that_has_no_method_is_refused(name: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from pathlib import Path\n")
    with pytest.raises(ConfigError, match=message):
        load_method(name.format(file=file))
