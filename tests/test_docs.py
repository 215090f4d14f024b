"""What the documentation says is so: its example runs, its references are current, its links lead somewhere."""

from __future__ import annotations

import ast
import functools
import re
import runpy
import shlex
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import typer.main

import vl2v.deploy.runtime
import vl2v.export
import vl2v.runs
from sample_icons import few_icons
from vl2v.cli.app import app
from vl2v.config import setting_names
from vl2v.data.archives import icondg
from vl2v.methods import METHODS
from vl2v.runs.settings import resolve
from vl2v.teachers.paid.adapters import ADAPTERS
from vl2v.teachers.paid.limits import Limits

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
TINY_VLM = ROOT / "src" / "vl2v" / "assets" / "tiny-vlm" / "open_clip_model.safetensors"


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [text for kind, text in found if kind == language]


@pytest.mark.skipif(not TINY_VLM.is_file(), reason="the tiny VLM isn't built")
def test_the_quickstarts_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(
        r"<!-- runnable -->\n```python\n(.*?)^```$", (DOCS / "quickstart.md").read_text(), re.M | re.S
    )
    monkeypatch.chdir(tmp_path)
    with few_icons(tmp_path / "home", 2):
        exec(compile(example, "quickstart.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("images: 432") and lines[1].startswith("texts: 54 queries")  # 4 styles, 54 classes
    assert any(line.startswith("student outline unseen ") for line in lines)
    assert lines[-1] == "55"  # with the guitar


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_programs_that_a_page_names_are_there(page: Path) -> None:
    named = set(re.findall(r"\b(?:benchmarks|tools)/\w+\.py\b", page.read_text(encoding="utf-8")))
    assert not [name for name in sorted(named) if not (ROOT / name).is_file()]


@pytest.mark.parametrize("target", ["cli.md", "settings.md"])
def test_references_are_current(target: str) -> None:
    pages = runpy.run_path(str(ROOT / "tools" / "cli_reference.py"))["pages"]()
    said = "run python tools/cli_reference.py"
    assert {path.name: text for path, text in pages.items()}[target] == (DOCS / target).read_text("utf-8"), said


def test_the_tables_of_findings_are_those_of_the_csv() -> None:
    made = runpy.run_path(str(ROOT / "tools" / "findings.py"))
    for file in made["PAGES"]:
        assert made["page"](file) == file.read_text(encoding="utf-8"), "run python tools/findings.py"


def test_the_readmes_settings_are_settings() -> None:
    (example,) = blocks(ROOT / "README.md", "python")
    names: dict[str, object] = {}
    exec(re.search(r"^settings = .*$", example, re.M).group(), names)  # type: ignore[union-attr]
    assert resolve(names["settings"]).method == "adip-plus"  # type: ignore[arg-type]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_can_be_read(page: Path) -> None:
    for text in blocks(page, "python"):
        compile(text, page.name, "exec")


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_settings_in_the_text_exist(page: Path) -> None:
    own = (name for task in METHODS.values() for name in setting_names(task.Settings, "loss."))
    known = {*setting_names(), *own}
    sections = {name.split(".")[0] for name in known if "." in name}
    for section, key in re.findall(r"[`\s]([a-z]+)\.([a-z_]+)(?=[`=])", page.read_text(encoding="utf-8")):
        if section in sections and key not in ("json", "safetensors", "onnx", "tflite", "pte", "mlpackage"):  # files
            assert f"{section}.{key}" in known
    for text in blocks(page, "toml"):
        for section, table in tomllib.loads(text).items():
            if section in ADAPTERS:  # a table of prices and limits
                given = {key for key in table if key != "models"} | {
                    key for model in table.get("models", {}).values() for key in model
                }
                assert given <= set(Limits.model_fields)
            else:
                assert section == "project" or {f"{section}.{key}" for key in table} <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_text_exist(page: Path) -> None:
    root = typer.main.get_command(app)
    for line in "".join(blocks(page, "")).replace("\\\n", " ").splitlines():
        if not line.startswith("vl2v "):
            continue
        words, command = shlex.split(line, comments=True)[1:], root
        while hasattr(command, "commands") and not (command.invoke_without_command and words[0].startswith(("-", "["))):
            command = command.commands[words.pop(0)]
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= options, line
        if "--method" in words:
            method = words[words.index("--method") + 1]
            assert method in METHODS or method.endswith(".py:TextOnly"), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor and target.suffix == ".md" and "." not in anchor:
            assert anchor in headings(target), f"{page.name}: {link}"


def test_the_count_of_icondg_is_right() -> None:
    classes = {folder.name for folder in icondg().glob("*/*/")}
    styles = {folder.name for folder in icondg().glob("*/")}
    text = (DOCS / "data.md").read_text(encoding="utf-8")
    assert f"{len(classes)} everyday things in five drawing styles ({', '.join(sorted(styles))})" in " ".join(
        text.split()
    )


def messages() -> list[str]:
    """Return the messages of the page on troubleshooting."""
    return re.findall(r"^\| ``(.+?)`` \|", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.M)


@functools.cache
def texts() -> dict[str, int]:
    """Return every line of text in the source as a pattern, with the number of letters that are fixed in it."""
    found = {}
    for file in (ROOT / "src" / "vl2v").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr | ast.Constant):
                parts = node.values if isinstance(node, ast.JoinedStr) else [node]
                fixed = [str(part.value) if isinstance(part, ast.Constant) else None for part in parts]
                pattern = "".join(".*" if part is None else re.escape(part) for part in fixed)
                if "\n" not in pattern:
                    found[pattern] = sum(len(part) for part in fixed if part)
    return found


@pytest.mark.parametrize("package", [vl2v, vl2v.deploy.runtime], ids=lambda package: package.__name__)
def test_public_names_are_in_the_reference(package: ModuleType) -> None:
    listed = set(re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.M))
    public = [getattr(package, name) for name in getattr(package, "__all__", ["load", "Exported"])]
    named = {f"{one.__module__}.{one.__name__}" for one in public if callable(one) and not isinstance(one, ModuleType)}
    assert {name for name in named if name.startswith("vl2v.")} <= listed


def test_there_are_messages() -> None:
    assert len(messages()) > 30


@pytest.mark.parametrize("message", messages())
def test_messages_are_printed_by_the_program(message: str) -> None:
    """At least a quarter of a message is one text of the program; what is filled in makes up the rest."""
    assert any(fixed * 4 >= len(message) and re.fullmatch(pattern, message) for pattern, fixed in texts().items())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_line_is_longer_than_120_characters(page: Path) -> None:
    """Tables and code apart, which can't be broken."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    long = [line for line in text.split("\n") if len(line) > 120 and not line.lstrip().startswith("|")]
    assert [line for line in long if len(re.sub(r"`[^`]+`", "", line)) > 20] == []


def headings(page: Path) -> set[str]:
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\s-]", "", name).strip().lower().replace(" ", "-") for name in found}
