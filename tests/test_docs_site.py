"""The site has every page as Markdown, and an index of them."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_every_page_is_there_as_markdown_and_in_the_index(tmp_path: Path) -> None:
    hook = runpy.run_path(str(ROOT / "tools" / "docs_markdown.py"))["on_post_build"]
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert config["hooks"] == ["tools/docs_markdown.py"]
    hook({**config, "docs_dir": str(ROOT / "docs"), "site_dir": str(tmp_path)})
    pages = {file.relative_to(ROOT / "docs").as_posix() for file in (ROOT / "docs").rglob("*.md")}
    assert {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.md")} == pages
    index = (tmp_path / "llms.txt").read_text(encoding="utf-8")
    assert index.startswith("# vl2v\n\n> ")
    linked = re.findall(r"\]\(([^)]+)\)", index)
    assert set(linked) == pages and len(linked) == len(pages)
