"""The commands as a person types them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import tomli_w
from PIL import Image

from little import quick_settings
from typed import Said, typed


def alone(*words: str | Path, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    return subprocess.run([python, "-m", "vl2v", *map(str, words)], capture_output=True, text=True)


@pytest.fixture
def vl2v(capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    return partial(typed, capfd)


@pytest.fixture(scope="module")
def config(shapes: Path, recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_text(tomli_w.dumps(quick_settings(shapes, recording)))
    return path


@pytest.fixture(scope="module")
def run(config: Path, quick_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    words = ("distill", "--config", config, "--out", folder / "a", "--store", folder / "store")
    done = alone(*words, python=quick_python)
    assert done.returncode == 0, done.stderr
    assert "paint *" in done.stdout and "worst domain" in done.stdout
    return folder / "a"


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['vl2v', '--help']\n"
    code += "try:\n from vl2v.cli import main; main()\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'timm', 'numpy', 'open_clip', 'pydantic', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_embed_shows_what_it_would_query_and_queries_once(vl2v, config: Path, tmp_path: Path) -> None:
    words = ("embed", "--config", config, "--store", tmp_path / "store")
    assert "72 queries, 0 cached, 72 pending" in vl2v(*words, "--dry-run").stdout
    assert "75 queries, 0 cached" in vl2v(*words).stdout
    assert "72 cached, 0 pending" in vl2v(*words, "--dry-run").stdout


def test_evaluate_prints_json(vl2v, run: Path) -> None:
    done = vl2v("evaluate", run, "--json", "--store", run.parent / "store")
    rows = json.loads(done.stdout)["rows"]
    assert {row["domain"]: row["role"] for row in rows}["paint"] == "unseen"


def test_predict_names_images_and_folders(vl2v, run: Path, shapes: Path, tmp_path: Path) -> None:
    done = vl2v("predict", run, shapes / "ink" / "ball", "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 12 and all(0 <= row["probability"] <= 1 for row in rows)
    (tmp_path / "x.png").write_bytes(b"")
    done = vl2v("predict", run, tmp_path / "x.png")
    assert done.returncode == 2 and "skipped: empty file" in done.stderr


def test_a_class_is_added_by_its_name(vl2v, run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    assert vl2v("classes", "add", copy, "star", "--store", run.parent / "store").returncode == 0
    assert vl2v("classes", "list", copy).stdout.split() == ["ball", "box", "cone", "star"]


def test_inspect_counts(vl2v, shapes: Path) -> None:
    done = vl2v("data", "inspect", shapes, "--json")
    assert json.loads(done.stdout)["rows"]["ink"] == {"ball": 12, "box": 12, "cone": 12}


def test_inspect_checks_how_a_teacher_reads_the_class_prompts(vl2v, tmp_path: Path) -> None:
    for number in range(40):
        file = (
            tmp_path
            / ("ink", "paint")[number % 2]
            / ("hot_dog", "hot dog", "taco", "bun")[number % 4]
            / f"{number}.png"
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (6 * number, 30, 0)).save(file)
    long = "a view of a long room full of old things that somebody looked at for a while, " * 6
    settings = (f'prompts.overrides.taco="{long} taco"', f'prompts.overrides.bun="{long} bun"')
    words = ("data", "inspect", tmp_path, "--json", *(word for pair in settings for word in ("--set", pair)))
    alone, read = (json.loads(vl2v(*words, *more).stdout)["findings"] for more in ((), ("--teacher", "tiny")))
    assert any("'hot dog' and 'hot_dog' have the same text" in line for line in alone)
    assert not any("tokens" in line for line in alone)
    assert sum("is cut at the" in line and "tokens that the teacher reads" in line for line in read) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("distill", "--data", "/nowhere"), "error: /nowhere: no such folder"),
        (("predict", "/nowhere", "x.png"), "error: /nowhere: not a run folder"),
        (("distill", "--data", "x", "--set", "nonsense"), "write it as key=value"),
        (("distill", "--data", "x", "--method", "magic"), "method 'magic': unknown"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(vl2v, words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "r", "--store", tmp_path / "s") if words[0] == "distill" else ()
    assert_one_line(vl2v(*words, *out), message)


def test_no_library_adds_lines_to_a_mistake(tmp_path: Path) -> None:
    words = ("distill", "--data", "/nowhere", "--out", tmp_path / "r", "--store", tmp_path / "s")
    assert_one_line(alone(*words), "error: /nowhere: no such folder")


def assert_one_line(said: Said | subprocess.CompletedProcess[str], message: str) -> None:
    assert said.returncode == 2
    assert message in said.stderr and "Traceback" not in said.stderr and len(said.stderr.strip().splitlines()) == 1
