"""docs/datasets.md says what the catalogue has, and its example runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from vl2v.data.catalogue import catalogue
from vl2v.data.corruptions import CORRUPTIONS
from vl2v.data.manifest import COLUMNS

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"
TEXT = PAGE.read_text(encoding="utf-8")


def table(header: str) -> list[list[str]]:
    """Return the cells of the rows below a header."""
    rows = TEXT.split(f"| {header} |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows]


def test_every_benchmark_stands_there_as_it_is_in_the_catalogue() -> None:
    rows = table("name | dataset | images | classes | domains | archives, about | how")
    found = {row[0]: row[2:] for row in rows}
    assert found.keys() == catalogue().keys()
    for name, (images, classes, _, size, how) in found.items():
        entry = catalogue()[name]
        assert images == (f"{entry.total:,}" if entry.total else "") and classes == str(entry.classes)
        assert size == f"{entry.bytes / 1e9:.1f} GB" and how == ("download" if entry.automatic else "by hand")


def test_what_is_not_confirmed_stands_there() -> None:
    rows = {name: what.split(", ") for name, what in table("dataset | not confirmed")}
    assert rows == {name: list(entry.unverified) for name, entry in catalogue().items() if entry.unverified}
    published = any(file.sha256 for entry in catalogue().values() for file in entry.files)
    assert ("No source publishes one" in " ".join(TEXT.split())) == (not published)


def test_columns_and_corruptions_stand_there() -> None:
    for name, others in table("column | or"):
        assert [name, *re.findall(r"\w+", others)] == list(COLUMNS[name])
    timed = [
        row[0].removesuffix(" (extra)")
        for row in table(
            "corruption | 224 px: times decoding | images a second | 64 px: times decoding | images a second"
        )
    ]
    assert timed == list(CORRUPTIONS)


def test_the_example_of_a_manifest_runs(shapes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wildlife"
    (folder / "train").mkdir(parents=True)
    for number, file in enumerate(sorted(shapes.rglob("*.png"))[:5]):
        shutil.copy(file, folder / "train" / f"{number}.png")
    (folder / "categories.csv").write_text("y,category_id,name\n0,3,empty\n1,9,puma concolor\n")
    splits = ("train", "id_val", "id_test", "val", "test")
    lines = [f"{n},{n % 3},{n}.png,{n % 2},{split}" for n, split in enumerate(splits)]
    (folder / "metadata.csv").write_text("\n".join(["n,location_remapped,filename,y,split", *lines]) + "\n")
    (example,) = re.findall(r"<!-- runnable -->\n```python\n(.*?)^```$", TEXT, re.M | re.S)
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "('camera 0', 'camera 1', 'camera 2') ('empty', 'puma concolor') 5"
