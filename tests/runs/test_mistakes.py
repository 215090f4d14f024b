"""Wrong labels are found by the embeddings that are cached already; nothing is queried for it."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest

import vl2v
from typed import typed
from vl2v.config import validate
from vl2v.data import open_dataset
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import StoreError
from vl2v.report.page import mistakes_page
from vl2v.runs.mistakes import find_mistakes

MOVED = ("ink/ball/03.png", "paint/box/05.png", "chalk/cone/07.png")


@pytest.fixture
def store(quick: dict[str, Any], tmp_path: Path) -> Path:
    """Return a store with a teacher's embeddings of all shapes and their class prompts."""
    vl2v.embed({**quick, "data": {**quick["data"], "target": []}}, store=tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def mislabelled(shapes: Path, tmp_path: Path) -> Path:
    """Return a copy of the shapes, three of them in another class's folder."""
    root = shutil.copytree(shapes, tmp_path / "shapes")
    for path in MOVED:
        domain, name, file = path.split("/")
        other = {"ball": "box", "box": "cone", "cone": "ball"}[name]
        shutil.move(root / path, root / domain / other / f"moved-{name}-{file}")
    return root


def counted(store: Path) -> int:
    with EmbeddingStore(store, read_only=True) as opened:
        return sum(query.count for query in opened.queries())


def test_labels_that_are_wrong_head_the_list(mislabelled: Path, store: Path, tmp_path: Path) -> None:
    before = counted(store)
    found = find_mistakes(validate({"data": {"path": mislabelled}}), store)
    heads = [(row[0], row[3]) for row in found.rows()[:3]]
    assert sorted(heads) == sorted(
        (f"{domain}/{other}/moved-{name}-{file}", name)
        for path, other in zip(MOVED, ("box", "cone", "ball"), strict=True)
        for domain, name, file in [path.split("/")]
    )
    assert found.checked == 108 and found.unknown == 0 and counted(store) == before
    page = mistakes_page(found)
    assert page.count("data:image/webp") >= 3 and "moved-ball-03.png" in page
    found.write_csv(tmp_path / "mistakes.csv")
    assert len(open_dataset(mislabelled, exclude=tmp_path / "mistakes.csv")) == 108 - len(found.suspects)


def test_the_command_writes_a_table_and_a_page(
    mislabelled: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "m.csv", tmp_path / "m.html"
    done = typed(capsys, "data", "mistakes", mislabelled, "--store", store, "--out", out, "--page", page)
    assert done.returncode == 0, done.stderr
    assert "of 108 labels are suspect" in done.stdout and "Labels to check in shapes" in page.read_text()
    with out.open(newline="") as file:
        assert {Path(row["path"]).name[:5] for row in list(csv.DictReader(file))[:3]} == {"moved"}


def test_what_is_not_embedded_is_said(mislabelled: Path, store: Path, tmp_path: Path) -> None:
    config = validate({"data": {"path": mislabelled}})
    with pytest.raises(StoreError, match="no embeddings in it; run `vl2v embed` first"):
        find_mistakes(config, tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"not all class prompts are embedded .*--config, --set"):
        find_mistakes(validate({"data": {"path": mislabelled}, "prompts": {"templates": ["one {class}"]}}), store)
    with pytest.raises(StoreError, match=r"no embedding by .* of any of these images"):
        find_mistakes(validate({"data": {"path": mislabelled}, "teacher": {"fit": "pad"}}), store)
