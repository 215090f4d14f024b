"""A hook of MkDocs: the site also has every page as Markdown, and an index of them for language models, `llms.txt`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def on_post_build(config: Any, **_: Any) -> None:
    """Add the files to a built site."""
    docs, site = Path(config["docs_dir"]), Path(config["site_dir"])
    for page in docs.rglob("*.md"):
        copy = site / page.relative_to(docs)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(page, copy)
    index = llms_txt(config["site_name"], config["site_description"], config["nav"])
    (site / "llms.txt").write_text(index, encoding="utf-8")


def llms_txt(name: str, about: str, nav: list[Any]) -> str:
    """Return the index (llmstxt.org): a heading, a summary, and the pages of each section of the navigation."""
    lines = [f"# {name}", "", f"> {about}", ""]
    for section in nav:
        ((title, pages),) = section.items()
        lines += [f"## {title}", "", *(f"- [{page}]({path})" for page, path in _pages(pages)), ""]
    return "\n".join(lines)


def _pages(pages: list[Any]) -> Iterator[tuple[str, str]]:
    for page in pages:
        yield from page.items()
