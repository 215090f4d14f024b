"""Write docs/cli.md from the commands themselves, and docs/settings.md from the configuration.

python tools/cli_reference.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer.main
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from vl2v.cli.app import app
from vl2v.config import RunConfig, StageConfig
from vl2v.methods import METHODS

DOCS = Path(__file__).parents[1] / "docs"
WRITTEN = "<!-- Written by `python tools/cli_reference.py`; edit the program, not this page. -->"

# What the settings are for; what one does is said where it is defined.
SECTIONS = {
    "": "The run as a whole.",
    "data": "Which images, and which domains are left out of training. See [Data](data.md).",
    "prompts": "How class names become texts. See [Texts](teachers.md#texts).",
    "teacher": "Which teacher, and its queries. See [Teachers](teachers.md) and [Views](concepts.md#views).",
    "student": "The network that is trained and shipped.",
    "train": "The loop that all methods share.",
    "published": "Oddities of the authors' code. See [As published](methods.md#as-published).",
}


def pages() -> dict[Path, str]:
    """Return the generated pages by file."""
    return {DOCS / "cli.md": cli_page(), DOCS / "settings.md": settings_page()}


def cli_page() -> str:
    """Return every command with its arguments and options, as Markdown."""
    lines = ["# Command line", "", WRITTEN, ""]
    lines += ["A mistake in the command, or in the data, ends a command with one line that says what to do, and"]
    lines += ["exit code 2. `vl2v --version` prints the version; every command has `--help`.", ""]
    for words, command in commands(typer.main.get_command(app), "vl2v"):
        lines += [f"## {words}", "", *_usage(words, command), (command.help or "").strip(), ""]
        lines += table(("option", "what"), [(name(p), getattr(p, "help", None) or "") for p in _parameters(command)])
    return "\n".join(lines)


def commands(command: Any, words: str) -> list[tuple[str, Any]]:
    """Return all commands that do something, with the words that call them."""
    if not hasattr(command, "commands"):
        return [(words, command)]
    below = [found for key, sub in command.commands.items() for found in commands(sub, f"{words} {key}")]
    return [(words, command), *below] if command.invoke_without_command and words != "vl2v" else below


def name(parameter: Any) -> str:
    """Return how a parameter is written, and its default, or that it has to be given."""
    if _is_argument(parameter):
        return f"`{_argument(parameter)}`"
    written = ", ".join(f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts))
    default = parameter.default
    if parameter.required:
        return f"{written} (required)"
    return written if default is None or default is False or default == [] else f"{written} (default `{default}`)"


def settings_page() -> str:
    """Return every setting with its default, and the stages of every method, as Markdown."""
    lines = ["# Settings", "", WRITTEN, ""]
    lines += [
        "A TOML file given with `--config` has the part before the dot as its table. `--set key=value` changes one;"
    ]
    lines += ["options such as `--teacher` stand for the setting of their name. `vl2v config` prints all of them.", ""]
    for section, about in SECTIONS.items():
        model = RunConfig if not section else RunConfig.model_fields[section].annotation
        assert isinstance(model, type)
        lines += [f"## {section or 'Run'}", "", about, ""]
        lines += table(("setting", "default", "what"), settings(model, section))
    lines += ["## stages", "", "One table for each stage of the method, for example `[stages.distill]`.", ""]
    lines += table(("setting", "default", "what"), settings(StageConfig, "stages.STAGE"))
    lines += ["What is not in this table is as in the one above:", ""]
    rows = [
        (f"`{method}`", f"`{stage}`", ", ".join(f"{key} {value}" for key, value in given.items()))
        for method, task in METHODS.items()
        for stage, given in task.stage_defaults.items()
    ]
    lines += table(("method", "stage", "defaults"), rows)
    lines += ["## Settings of methods", "", "Each method has its own; one that it doesn't have is refused.", ""]
    own = [(f"`{method}`", *row) for method, task in METHODS.items() for row in settings(task.Settings, "loss")]
    return "\n".join([*lines, *table(("method", "setting", "default", "what"), own)])


def settings(model: type[BaseModel], section: str) -> Iterator[tuple[str, str, str]]:
    """Yield each setting of a section: its key, its default, what it does."""
    for field, info in model.model_fields.items():
        if field in ("stages", "loss") or (
            isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
        ):
            continue
        key = f"{section}.{info.alias or field}".removeprefix(".")
        choices = " or ".join(f"`{choice}`" for choice in get_args(info.annotation) if isinstance(choice, str))
        yield f"`{key}`", _shown(info.default), "; ".join(filter(None, (choices, info.description)))


def table(head: tuple[str, ...], rows: Any) -> list[str]:
    """Return a Markdown table, or nothing where there are no rows."""
    rows = list(rows)
    if not rows:
        return []
    lines = [" | ".join(head), "|".join("---" for _ in head), *(" | ".join(row) for row in rows)]
    return [*(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines), ""]


def _usage(words: str, command: Any) -> list[str]:
    arguments = [_argument(p) + ("..." if p.nargs == -1 else "") for p in command.params if _is_argument(p)]
    return ["```", " ".join([words, *arguments, "[OPTIONS]"]), "```", ""]


def _is_argument(parameter: Any) -> bool:
    return str(parameter.param_type_name) == "argument"


def _argument(parameter: Any) -> str:
    """Return an argument's name, in brackets if it may be left out."""
    written = str(parameter.name.upper())
    return written if parameter.required else f"[{written}]"


def _parameters(command: Any) -> list[Any]:
    return [parameter for parameter in command.params if "--help" not in parameter.opts]


def _shown(default: object) -> str:
    """Return a default as TOML; nothing where there is none."""
    if default is PydanticUndefined:
        return "to be given"
    if default is None:
        return ""
    return f"`{json.dumps(default)}`"


if __name__ == "__main__":
    for target, text in pages().items():
        target.write_text(text, encoding="utf-8")
