"""Write docs/cli.md from the commands themselves.

python tools/cli_reference.py
"""

from __future__ import annotations

from pathlib import Path

import click
import typer.main

from vl2v.cli.app import app

TARGET = Path(__file__).parents[1] / "docs" / "cli.md"


def reference() -> str:
    """Return every command with its arguments and options, as Markdown."""
    lines = ["# Command line", "", "Written by `python tools/cli_reference.py`.", ""]
    for words, command in commands(typer.main.get_command(app), "vl2v"):
        lines += [f"## {words}", "", (command.help or "").strip(), ""]
        rows = [(name(parameter), (getattr(parameter, "help", None) or "")) for parameter in command.params]
        rows = [row for row in rows if row[0] != "--help"]
        if rows:
            lines += ["| | |", "|---|---|", *(f"| `{what}` | {text} |" for what, text in rows), ""]
    return "\n".join(lines)


def commands(command: click.Command, words: str) -> list[tuple[str, click.Command]]:
    """Return all commands that do something, with the words that call them."""
    if not hasattr(command, "commands"):
        return [(words, command)]
    return [found for name, sub in command.commands.items() for found in commands(sub, f"{words} {name}")]


def name(parameter: click.Parameter) -> str:
    """Return how a parameter is written."""
    return parameter.opts[0] if parameter.opts[0].startswith("-") else (parameter.name or "").upper()


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
