from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
import timm

from vl2v.config import Section, validate
from vl2v.errors import ConfigError, StudentError, VL2VError
from vl2v.runs.settings import resolve
from vl2v.students.backbone import pretrained_backbone
from vl2v.teachers import open_teacher
from vl2v.tree import assignments, merge, read_toml, toml_key

DATA = {"data": {"path": "x"}}


def test_toml_out_is_toml_in() -> None:
    config = resolve({**DATA, "method": "kd", "seed": 3})
    assert validate(tomllib.loads(config.to_toml())) == config


def test_set_lays_values_on_top_with_their_types() -> None:
    tree = assignments(
        ["stages.distill.lr=1e-3", "data.target=['a', 'b']", "teacher.spec=hf:some/repo", "loss.lambda=1"]
    )
    assert tree["stages"]["distill"]["lr"] == 1e-3
    assert tree["data"]["target"] == ["a", "b"]
    assert tree["teacher"]["spec"] == "hf:some/repo"
    assert resolve(merge(DATA, tree)).loss["lambda"] == 1.0


@pytest.mark.parametrize("name", ["cup", "wine glass", "boîte.à outils", 'a "b"', "label"])
def test_a_class_called_anything_can_be_set(name: str) -> None:
    tree = assignments([f"prompts.overrides.{toml_key(name)}='a cup'"])
    assert tree == {"prompts": {"overrides": {name: "a cup"}}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": {"veiws": 3}}, "teacher.veiws: unknown setting, did you mean teacher.views"),
        ({"loss": {"lambda": 2}}, "loss.lambda = 2: must be less than or equal to 1"),
        ({"stages": {"distil": {"lr": 1}}}, "stages.distil: adip-plus has only align, distill"),
        ({"method": "magic"}, "method 'magic': unknown"),
        ({"stages": {"distill": {"steps": 0}}}, "stages.distill.steps = 0"),
        ({"train": {"steps": 20}}, "must be 'set' or 'auto'; did you mean stages.distill.steps?"),
        ({"method": "erm", "train": {"steps": 20}}, "must be 'set' or 'auto'; did you mean stages.finetune.steps?"),
        ({"train": {"lr": 1e-3}}, "train.lr: unknown setting, did you mean stages.distill.lr?"),
        ({"batch_per_domain": 8}, "batch_per_domain: unknown setting, did you mean stages.distill.batch_per_domain?"),
        ({"distill": {"steps": 20}}, "distill: unknown setting, did you mean stages.distill?"),
        ({"student": {"fit": "pad"}}, "student.fit: unknown setting, did you mean data.fit?"),
        ({"data": {"fit": "own"}}, "data.fit = 'own': must be 'stretch', 'crop' or 'pad'; did you mean teacher.fit?"),
        ({"image_size": 64}, "image_size: unknown setting, did you mean student.image_size?"),
        ({"train": {"steps": "few"}}, "train.steps = 'few': must be 'set' or 'auto'$"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(").replace("?", r"\?")):
        resolve({**DATA, **settings})


SECTIONS = [one for one in Section.__subclasses__() if one.__module__ == Section.__module__]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_is_described(section: type[Section]) -> None:
    values = {name: field for name, field in section.model_fields.items() if not is_table(field.annotation)}
    assert all(field.description for field in values.values())


def is_table(annotation: Any) -> bool:
    """Tell whether a setting is a section, or a table of sections."""
    return any(isinstance(one, type) and issubclass(one, Section) for one in (annotation, *get_args(annotation)))


def test_data_path_is_the_one_setting_without_a_default() -> None:
    with pytest.raises(ConfigError, match=r"data: missing"):
        resolve({})


def test_the_paper_preset_is_the_published_recipe() -> None:
    config = resolve(DATA, "paper")
    for stage in config.stages.values():
        assert (stage.steps, stage.lr, stage.optimizer, stage.schedule) == (5001, 5e-5, "adam", "constant")
        assert (stage.batch_per_domain, stage.eval_every) == (32, 200)
    assert config.teacher.online and config.teacher.statistics == config.student.statistics == "imagenet"
    assert config.train.swad and all(config.published.model_dump().values())
    assert config.train.precision == config.teacher.precision == "fp32"
    assert config.published.swad_restarts[:3] == [3000, 4000, 5000]
    assert not any(resolve(DATA).published.model_dump().values())


@pytest.mark.parametrize(
    ("student", "tag", "apart"),
    [
        ("resnet50", "tv_in1k", False),
        ("vit_base_patch16_224", "augreg_in21k_ft_in1k", True),
        ("vit_small_patch16_224", "augreg_in21k_ft_in1k", False),
        ("deit_small_distilled_patch16_224", "fb_in1k", False),
    ],
)
def test_the_paper_preset_starts_from_the_authors_weights(student: str, tag: str, apart: bool) -> None:
    config = resolve(merge(DATA, {"student": {"name": student}}), "paper")
    assert config.student.name == f"{student}.{tag}" and timm.is_model_pretrained(config.student.name)
    assert config.published.swad_overlapping == (["align"] if apart else True)
    assert resolve(merge(DATA, {"student": {"name": student}})).student.name == student
    assert resolve(merge(DATA, {"student": {"name": config.student.name}}), "paper") == config


def test_settings_win_over_the_preset() -> None:
    config = resolve(merge(DATA, {"stages": {"distill": {"steps": 7}}}), "paper")
    assert config.stages["distill"].steps == 7 and config.stages["align"].steps == 5001


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_toml_may_be_saved_by_any_editor(encoding: str, tmp_path: Path) -> None:
    text = '[data]\r\npath = "caf\u00e9/\u65e5\u672c"\r\n'
    mark = "\ufeff" if encoding[-3:] in ("-le", "-be") else ""
    (tmp_path / "run.toml").write_bytes((mark + text).encode(encoding))
    assert read_toml(tmp_path / "run.toml") == {"data": {"path": "caf\u00e9/\u65e5\u672c"}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name = 'caf\u00e9'".encode("latin-1"), "neither UTF-8 nor UTF-16; save it as UTF-8"),
        (b"\xff\xfea", "neither UTF-8 nor UTF-16; save it as UTF-8"),
        (b"\n\n\nseed 1", "not a TOML file: .*line 4"),
        (b'[data]\npath = "C:\\images"', "not a TOML file: .*; write paths of Windows in single quotes, or with /"),
        (b'{"data": {"path": "p"}}', "not a TOML file: .*; it is JSON: write it as TOML"),
        (b"data:\n  path: p\n", "not a TOML file: .*; it looks like YAML: write NAME = VALUE"),
        (b"[data]\npath = p\n", "not a TOML file: .*; texts need quotes"),
        (
            "[data]\npath = \u201cp\u201d\n".encode(),
            "not a TOML file: .*; it has typographic quotes: write straight ones",
        ),
        (b"\r\n\r\nseed 1\r\n", "not a TOML file: .*line 3"),
    ],
)
def test_a_file_that_is_no_toml(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_toml(tmp_path / "run.toml")


def test_a_folder_is_no_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't be read .*; give a TOML file"):
        read_toml(tmp_path)


def test_every_path_may_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    data = validate({"data": {"path": "~/p", "exclude": "~/list.txt", "unlabelled": "~/more"}}).data
    assert (data.path, data.exclude, data.unlabelled) == (tmp_path / "p", tmp_path / "list.txt", tmp_path / "more")
    assert validate({"data": {"path": "~nobody-of-that-name/a~b"}}).data.path == Path("~nobody-of-that-name/a~b")
    with pytest.raises(StudentError, match=f"{tmp_path}/weights.pth"):
        pretrained_backbone("resnet18", "~/weights.pth")
    for spec in ("recorded:~/t", "hf:~/t", "open_clip:local-dir:~/t"):
        with pytest.raises(VL2VError, match=f"{tmp_path}/t"):
            open_teacher(spec)


def test_the_default_method_is_the_presets() -> None:
    assert resolve(DATA).method == "adip-plus"
    assert resolve(DATA, "paper").method == "adip"
