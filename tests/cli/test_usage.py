"""What every command has in common: usage errors, exit codes, progress, verbosity, paths, settings for editors."""

from __future__ import annotations

import errno
import json
import os
import re
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jsonschema
import pytest

from typed import Said, typed
from vl2v import cli as shown
from vl2v.cli import at_home, note, progress_bars, run_log
from vl2v.methods import METHODS

Typed = Callable[..., Said]
HIDDEN = ("\x1b[2J", "\r", "\x9b", "\u202e")


@pytest.fixture
def vl2v(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Typed:
    monkeypatch.setattr(shown, "LEVEL", 0)
    return partial(typed, capfd)


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize(
    "words",
    [("--fo{}",), ("distil{}",), ("data", "in{}spect"), ("distill", "--se{}ed"), ("distill", "--minutes", "a{}"),
     ("data", "inspect", "--layout", "a{}", "."), ("export", "x", "--format", "a{}")],
)  # fmt: skip
def test_usage_errors_write_out_what_can_not_be_seen(vl2v: Typed, words: tuple[str, ...], hidden: str) -> None:
    done = vl2v(*(word.format(hidden) for word in words))
    assert done.returncode == 2 and done.stdout == "" and done.stderr.strip()
    assert not [letter for letter in done.stderr if letter != "\n" and not letter.isprintable()]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("distil",), "distill"),
        (("data", "inspct", "x"), "inspect"),
        (("distill", "--tagret", "a"), "--target"),
        (("distill", "--data", "x", "--method", "adpi"), "did you mean adip?"),
        (("distill", "--data", "x", "--set", "teacher.veiws=3"), "did you mean teacher.views?"),
    ],
)
def test_what_is_misspelt_is_suggested(vl2v: Typed, words: tuple[str, ...], hint: str, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run") if "--data" in words else ()
    done = vl2v(*words, *out)
    assert done.returncode == 2 and hint in done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[teacher]\nveiws = 3\n", "teacher.veiws: unknown setting, did you mean teacher.views?"),
        ("seed = 'abc'\n", "seed = 'abc': must be a whole number"),
        ("[train]\nsteps = 20\n", "train.steps = 20: must be 'set' or 'auto'; did you mean stages.STAGE.steps?"),
        ("[data]\nholdout = 2\n", "data.holdout = 2: must be less than 1"),
        ("[stages.distill]\nstpes = 3\n", "stages.distill.stpes: unknown setting, did you mean stages.distill.s"),
        ("[teacher]\nselect = 'some'\n", "teacher.select = 'some': must be a whole number, or must be 'known'"),
        (
            "[data]\nclasses = 'no.txt'\n",
            "data.classes = 'no.txt': the file of class names can't be read ([Errno 2] No",
        ),
        ("", "data: missing; give the images with --data"),
    ],
)
def test_a_mistake_in_a_file_of_settings_names_the_file(vl2v: Typed, text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(text)
    done = vl2v("embed", "--config", tmp_path / "run.toml")
    where = f"{tmp_path / 'run.toml'}: " if text else ""
    assert done.returncode == 2 and f"error: {where}{words}" in done.stderr


NEWCOMER = {  # tried one after the other, in a folder with images, an empty one and a text file
    "distill --data shapes --out full --teacher tiny": "full: not empty, and not a run folder; choose another --out",
    "distill --data shapes --out new --minutes -3": "--minutes -3: must be more than 0",
    "distill --data shapes/ink --target ball --out new": "no domain 'ball'; all its images form one, 'all': sort them",
    "embed --data shapes --store note.txt": "can't be saved (File exists); free some space, make the folder writable",
    "bill --store nowhere": "nowhere: there is no embedding store here",
    "bill --csv --json": "choose one of --csv and --json",
    "serve nowhere": "nowhere: no such export or run folder",
    "monitor nowhere --run shapes": "shapes: no export in it",
    "recommend --data shapes/ink": "three or more labelled domains are needed",
    "teacher check --data shapes --images 0": "--images 0: must be 1 or more",
    "vendor serve --teacher tiny --keys none.toml": "none.toml: no such file; `vl2v vendor keys add` makes it",
}


@pytest.mark.parametrize("words", NEWCOMER)
def test_a_newcomers_mistake_is_a_line_with_what_to_do(
    vl2v: Typed, words: str, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    for file in ("full/x.txt", "note.txt"):
        (tmp_path / file).write_text("a note")
    (tmp_path / "shapes").symlink_to(shapes)
    done = vl2v(*words.split())
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert NEWCOMER[words] in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free some space"), (errno.EACCES, "check its permissions"), (errno.EIO, "check that it is there")],
)
def test_a_disk_that_fails_anywhere_is_a_line(
    vl2v: Typed, number: int, remedy: str, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "/mnt/disk/\x1bfile")

    monkeypatch.setattr("vl2v.runs.datasets.inspect_data", failing)
    done = vl2v("data", "inspect", shapes)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: /mnt/disk/\\x1bfile: {os.strerror(number)}; {remedy}")


def test_a_home_folder_in_an_option_is_the_home_folder(
    vl2v: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert at_home("--out=~/x") == f"--out={tmp_path / 'x'}"
    for word in ("--out=x~", "~", "a=~/x", "--name", "--set=data.path=~/x"):
        assert at_home(word) == word
    done = vl2v("store", "ls", "--store=~/nothing")
    assert done.returncode == 2 and str(tmp_path / "nothing") in done.stderr


def test_what_is_no_terminal_gets_no_bars(
    vl2v: Typed, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "first"))
    done = vl2v("data", "inspect", shapes, "--json")
    assert (done.returncode, done.stderr) == (0, "") and json.loads(done.stdout)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "second"))
    result = vl2v("-v", "data", "inspect", shapes)
    assert result.returncode == 0 and "reading images 108/108" in result.stderr and "\u2501" not in result.stderr


def test_remarks_are_printed_once_and_quiet_prints_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for level, expected in ((0, "copied 3\nnote: x\n"), (-1, ""), (1, "copied 3\na 1/9\na 9/9 end\nnote: x\n")):
        monkeypatch.setattr(shown, "LEVEL", level)
        with progress_bars() as progress:
            progress("copied 3", 1, 1, "")
            for done in range(1, 10):
                progress("a", done, 9, "end" if done == 9 else "")
        note("x")
        assert capsys.readouterr() == ("", expected)


@pytest.mark.parametrize("words", [(), ("data",), ("store",), ("vendor", "keys")])
def test_lists_of_commands_have_whole_sentences(vl2v: Typed, words: tuple[str, ...]) -> None:
    listed = vl2v(*words, "--help").stdout.partition("Commands:")[2]
    assert "..." not in listed
    sentences = re.split(r"^  (?=\w)", listed.rstrip(), flags=re.MULTILINE)[1:]
    assert len(sentences) > 2 and all(sentence.rstrip().endswith(".") for sentence in sentences)


def test_methods_are_listed_by_what_they_need(vl2v: Typed) -> None:
    lines = vl2v("methods").stdout.splitlines()
    assert sorted(line.split()[0] for line in lines if line.startswith("  ")) == sorted(METHODS)
    assert lines[-1] == "default: adip-plus"
    assert max(map(len, lines)) <= 80
    after = lines[lines.index("a teacher whose weights are at hand:") + 1 : -1]
    assert [line.split()[0] for line in after] == [name for name, task in METHODS.items() if task.tower]


def test_verbose_output_that_is_no_terminal_says_how_far_a_task_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shown, "LEVEL", 1)
    monkeypatch.setattr(shown, "EVERY", -1)  # seconds: the next line is always due
    with progress_bars() as progress:
        for done in range(4):
            progress("a", done, 3, "")
    assert capsys.readouterr().err == "a 0/3\na 1/3\na 2/3\na 3/3\n"


def test_verbose_and_quiet_exclude_each_other(vl2v: Typed) -> None:
    assert vl2v("-v", "-q", "methods").returncode == 2


def test_a_run_folder_has_a_log(tmp_path: Path) -> None:
    heard = []
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(ValueError, match="broke"), run_log(folder, lambda *event: heard.append(event)) as progress:
        progress("reading", 0, 2, "")
        assert not (folder / "log.txt").exists()
        (folder / "config.toml").touch()
        for done in (1, 2):
            progress("training", done, 2, f"loss {done}")
        raise ValueError("broke at https://me:secret@host/")
    lines = [line.split(" ", 2)[2] for line in (folder / "log.txt").read_text().splitlines()]
    assert lines[1:4] == ["reading 0/2", "training 1/2 loss 1", "training 2/2 loss 2"]
    assert lines[4].startswith("stopped: ValueError: broke at https://***@host") and len(lines) == 5
    assert len(heard) == 3


@pytest.mark.parametrize("method", ["adip", "kd", "adip-plus"])
def test_the_schema_takes_the_settings_and_nothing_else(vl2v: Typed, method: str) -> None:
    schema = json.loads(vl2v("config", "--schema", "--method", method).stdout)
    settings = tomllib.loads(vl2v("config", "--method", method).stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(settings, schema)
    wrong = ({"teacher": {"veiws": 1}}, {"loss": {"nonsense": 1}}, {"stages": {"distill": {"steps": 0, "lr": 1e-3}}})
    for part in wrong:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**settings, **part}, schema)
    assert set(schema["$defs"]) >= {"DataConfig", "TeacherConfig"} and method in METHODS
