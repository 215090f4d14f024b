"""Public benchmarks by name: got, unpacked, laid out, and counted against what is published."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from vl2v.data.archives import unpack
from vl2v.data.dataset import DomainDataset
from vl2v.data.download import Lock, fetch, sha256_of
from vl2v.data.layouts import open_dataset
from vl2v.data.manifest import WILDS_SPLITS
from vl2v.errors import DataError
from vl2v.io import locked
from vl2v.session import Progress, silent

LOCK = "vl2v-data.lock.json"
MANIFEST = "manifest.csv"
_LIST_BYTES = 50 * 1024**2


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Archive(_Table):
    """One file of a benchmark; `bytes` is about how large it is."""

    name: str
    urls: tuple[str, ...] = ()
    bytes: int = Field(ge=1)
    sha256: str | None = None


class Benchmark(_Table):
    """What there is to know of a benchmark; see datasets.toml for the meaning of each key."""

    name: str
    title: str
    about: str
    page: str
    licence: str
    arrange: str
    folder: str
    files: tuple[Archive, ...]
    strip: str = ""
    by_hand: str = ""
    omit: str | None = None
    total: int | None = None
    classes: int | None = None
    images: dict[str, int] = {}
    unverified: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Return about how much there is to download."""
        return sum(file.bytes for file in self.files)

    @property
    def automatic(self) -> bool:
        """Return whether its source lets a program download it."""
        return all(file.urls for file in self.files)


@cache
def catalogue() -> dict[str, Benchmark]:
    """Return every benchmark by its name."""
    text = resources.files("vl2v.data").joinpath("datasets.toml").read_text(encoding="utf-8")
    return {name: Benchmark(name=name, **table) for name, table in tomllib.loads(text).items()}


def benchmark(name: str) -> Benchmark:
    """Return a benchmark; case, hyphens and underscores don't matter.

    Raises:
        DataError: there is none of that name.
    """
    if plain(name) not in catalogue():
        raise DataError(f"no dataset is called {name!r}; choose one of {', '.join(catalogue())}")
    return catalogue()[plain(name)]


def plain(name: str) -> str:
    """Return a dataset's name without what doesn't matter in it."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def obtain(
    wanted: Benchmark, out: Path, *, files: Sequence[Path] = (), progress: Progress = silent
) -> tuple[Path, list[str]]:
    """Download what is missing of a benchmark, unpack it, lay it out and count it.

    Killed, it resumes where it was. The dataset's folder appears whole or not at all; that the licence was accepted
    is the caller's to see to.

    Args:
        out: the folder of datasets; beside them stands a lock file with the hash of every archive.
        progress: called with the megabytes that are downloaded and unpacked.

    Returns:
        What `open_dataset` opens, and notes for the person: hashes, and counts that differ from unconfirmed ones.

    Raises:
        DataError: a file that must be got by hand, another checksum than known, a hostile or damaged archive, or
            counts that differ from the published ones (the folder then stands all the same).
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: can't be made ({error.strerror}); give a folder that can be written") from None
    folder = out / wanted.folder
    notes: list[str] = []
    with locked(out / f".{wanted.name}.lock"):
        if not folder.exists():
            archives = _archives(wanted, out, files, progress, notes)
            _lay_out(wanted, out, archives, progress)
            for archive in archives.values():
                if archive.parent == _downloads(wanted, out):
                    archive.unlink()
            shutil.rmtree(_downloads(wanted, out), ignore_errors=True)
        path = folder / MANIFEST if (folder / MANIFEST).exists() else folder
        notes += check(wanted, open_dataset(path, layout="manifest" if path != folder else "domains"))
    return path, notes


def check(wanted: Benchmark, dataset: DomainDataset) -> list[str]:
    """Compare a dataset's counts with the published ones; return where it differs from those nobody has confirmed.

    Raises:
        DataError: it differs from confirmed ones.
    """
    found = Counter(dataset.domains[i] for i in dataset.domain_ids)
    wrong = defaultdict(list)
    if wanted.total not in (None, len(dataset)):
        wrong["total"].append(f"{len(dataset):,} images, not {wanted.total:,}")
    if wanted.classes not in (None, len(dataset.classes)):
        wrong["classes"].append(f"{len(dataset.classes)} classes, not {wanted.classes}")
    if wanted.images:
        for domain in sorted({*found, *wanted.images}):
            if found[domain] != wanted.images.get(domain, 0):
                wrong["images"].append(f"{found[domain]:,} images in {domain}, not {wanted.images.get(domain, 0):,}")
    surely = [line for key, lines in wrong.items() if key not in wanted.unverified for line in lines]
    if surely:
        raise DataError(
            f"{dataset.root}: differs from the published {wanted.title}: {'; '.join(surely)}; it stays where it is: "
            "use it as it is, or delete it and download the archive again"
        )
    return [f"{line} (of which we aren't sure)" for lines in wrong.values() for line in lines]


def _downloads(wanted: Benchmark, out: Path) -> Path:
    return out / f".{wanted.name}-downloads"


def _archives(
    wanted: Benchmark, out: Path, files: Sequence[Path], progress: Progress, notes: list[str]
) -> dict[str, Path]:
    """Return where each archive is, after every one is there and its hash is what it should be."""
    given = _given(wanted, files)
    missing = [file for file in wanted.files if file.name not in given and not file.urls]
    if missing:
        names = " ".join(f"--from {file.name}" for file in missing)
        raise DataError(
            f"{wanted.title} can't be downloaded by a program: {wanted.by_hand}; "
            f"then: vl2v data download {wanted.name} --accept-licence --out {out} {names}"
        )
    lock = Lock(out / LOCK)
    found = {}
    for file in wanted.files:
        expected = file.sha256 or lock.sha256(wanted.name, file.name)
        here = given.get(file.name)
        found[file.name], sha256 = (here, sha256_of(here)) if here else _downloaded(wanted, file, out, progress)
        if expected not in (None, sha256):
            whose = "the published one is" if file.sha256 else f"at its first download it was, says {out / LOCK},"
            raise DataError(
                f"{found[file.name]}: SHA-256 is {sha256}, but {whose} {expected}; download it again, or, if its "
                "source has changed it, delete it and its entry in the lock file"
            )
        if expected is None:
            notes.append(
                f"{file.name}: SHA-256 {sha256}; nobody publishes it, so it is recorded to compare later ones with"
            )
        lock.add(wanted.name, file.name, sha256, found[file.name].stat().st_size)
    return found


def _given(wanted: Benchmark, files: Sequence[Path]) -> dict[str, Path]:
    """Return the archives that are here, by the name that they have at their source."""
    for file in files:
        if not file.is_file():
            raise DataError(f"{file}: no such file")
    if len(wanted.files) == 1 and len(files) == 1:
        return {wanted.files[0].name: files[0]}  # whatever the browser called it
    names = {file.name for file in wanted.files}
    for file in files:
        if file.name not in names:
            raise DataError(f"{file}: {wanted.title} has no such file; it has {', '.join(sorted(names))}")
    return {file.name: file for file in files}


def _downloaded(wanted: Benchmark, file: Archive, out: Path, progress: Progress) -> tuple[Path, str]:
    """Return where an archive is, after it was downloaded if need be, and its SHA-256."""
    target = _downloads(wanted, out) / file.name
    target.parent.mkdir(exist_ok=True)
    if target.exists():
        return target, sha256_of(target)
    try:
        return target, fetch(file.urls, target, sha256=file.sha256, most=2 * file.bytes + 1024**2, progress=progress)
    except DataError as error:
        by_hand = f"; by hand: {wanted.by_hand}, then --from {file.name}" if wanted.by_hand else ""
        raise DataError(f"{error}{by_hand}") from None


def _lay_out(wanted: Benchmark, out: Path, archives: dict[str, Path], progress: Progress) -> None:
    """Unpack beside the dataset's folder, then move it there in one step."""
    scratch = out / f".{wanted.name}-unpacking"
    whole = scratch / wanted.folder
    try:
        if scratch.exists():  # of a process that was killed
            shutil.rmtree(scratch)
        whole.mkdir(parents=True)
        _ARRANGE[wanted.arrange](wanted, archives, whole, progress)
        os.replace(whole, out / wanted.folder)
    except OSError as error:
        raise DataError(
            f"{out}: can't be written ({error.strerror or error}); free some space, and run it again"
        ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _folders(wanted: Benchmark, archives: dict[str, Path], whole: Path, progress: Progress) -> None:
    """domain/class/image already, below the folder `strip`."""
    omitted = _omitted(wanted, whole.parent)
    above = f"{wanted.strip}/" if wanted.strip else ""

    def targets_of(name: str) -> list[str]:
        below = name.removeprefix(above)
        return [below] if name.startswith(above) and below not in omitted else []

    for archive in archives.values():
        if not unpack(archive, whole, targets_of=targets_of, progress=progress):
            raise DataError(f"{archive}: nothing below {wanted.strip or 'it'}; it isn't {wanted.title}'s archive")


def _omitted(wanted: Benchmark, scratch: Path) -> set[str]:
    if wanted.omit is None:
        return set()
    fetch([wanted.omit], scratch / "omit.txt", most=_LIST_BYTES)
    return {line.strip() for line in (scratch / "omit.txt").read_text(encoding="utf-8").splitlines()} - {""}


TERRA_PLACES = ("38", "43", "46", "100")
TERRA_CLASSES = ("bird", "bobcat", "cat", "coyote", "dog", "empty", "opossum", "rabbit", "raccoon", "squirrel")


def _terra(wanted: Benchmark, archives: dict[str, Path], whole: Path, progress: Progress) -> None:
    """DomainBed's choice of four locations and ten classes from Caltech Camera Traps; the rest isn't unpacked."""
    labels, images = archives.values()
    scratch = whole.parent / "annotations"
    scratch.mkdir()
    unpack(labels, scratch)
    targets: dict[str, set[str]] = defaultdict(set)
    for file in sorted(scratch.rglob("*.json")):
        for name, target in _terra_places(file):
            targets[name].add(target)
    unpack(images, whole, targets_of=lambda name: sorted(targets.get(name.rsplit("/", 1)[-1], ())), progress=progress)


def _terra_places(file: Path) -> Iterator[tuple[str, str]]:
    """Yield (image, where it goes); one with several animals goes to several classes, as in DomainBed."""
    try:
        labels = json.loads(file.read_text(encoding="utf-8"))
        classes = {row["id"]: row["name"] for row in labels["categories"]}
        images = {row["id"]: (str(row["location"]), row["file_name"]) for row in labels["images"]}
        for row in labels["annotations"]:
            where, name = images[row["image_id"]]
            kind = classes[row["category_id"]]
            if where in TERRA_PLACES and kind in TERRA_CLASSES:
                yield name, f"location_{where}/{kind}/{name}"
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file.name}: not annotations of Caltech Camera Traps ({error!r}); download them again"
        ) from None


Row = tuple[str, str, str, str]
"""(path, class, domain, split)"""


def _wilds(rows: Callable[[Path], Iterator[Row]]) -> Callable[[Benchmark, dict[str, Path], Path, Progress], None]:
    """Return what unpacks a WILDS archive and writes a manifest beside WILDS' own tables."""

    def arrange(wanted: Benchmark, archives: dict[str, Path], whole: Path, progress: Progress) -> None:
        above = f"{wanted.folder}/"
        for archive in archives.values():
            unpack(archive, whole, targets_of=lambda name: [name.removeprefix(above)], progress=progress)
        with (whole / MANIFEST).open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(("path", "class", "domain", "split"))
            try:
                table.writerows(rows(whole))
            except (OSError, KeyError, ValueError, csv.Error) as error:
                raise DataError(
                    f"{wanted.title}: its tables aren't as expected ({error!r}); please report it"
                ) from None

    return arrange


def _table(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as opened:
        return list(csv.DictReader(opened))


def _iwildcam(folder: Path) -> Iterator[Row]:
    """Cameras of training, of validation and of test are three domains; 323 cameras would be too many."""
    names = {row["y"]: row["name"] for row in _table(folder / "categories.csv")}
    cameras = {"val": "validation cameras", "test": "test cameras"}
    for row in _table(folder / "metadata.csv"):
        split = row["split"]
        domain = cameras.get(split, "seen cameras")
        yield (
            f"train/{row['filename']}",
            names[row["y"]],
            domain,
            WILDS_SPLITS.get(split, split) if split not in cameras else "",
        )


def _camelyon17(folder: Path) -> Iterator[Row]:
    """A hospital is a domain; in WILDS hospital 1 validates and hospital 2 is the test."""
    for row in _table(folder / "metadata.csv"):
        slide = f"patient_{row['patient'].zfill(3)}_node_{row['node']}"
        name = f"patches/{slide}/patch_{slide}_x_{row['x_coord']}_y_{row['y_coord']}.png"
        seen = row["center"] in ("0", "3", "4")
        split = ("train", "val")[int(float(row["split"]))] if seen else ""
        yield name, ("normal tissue", "tumor tissue")[int(row["tumor"])], f"hospital {row['center']}", split


def _fmow(folder: Path) -> Iterator[Row]:
    """A region of the world is a domain; sequestered images are left out, and WILDS' other shift, time."""
    regions = {row["alpha-3"]: row["region"] for row in _table(folder / "country_code_mapping.csv")}
    for number, row in enumerate(_table(folder / "rgb_metadata.csv")):
        if row["split"] != "seq":
            region = regions.get(row["country_code"]) or "Other"
            kind = row["category"].replace("_", " ")
            yield f"images/rgb_img_{number}.png", kind, region, row["split"]


_ARRANGE: dict[str, Callable[[Benchmark, dict[str, Path], Path, Progress], None]] = {
    "folders": _folders,
    "terra": _terra,
    "iwildcam": _wilds(_iwildcam),
    "camelyon17": _wilds(_camelyon17),
    "fmow": _wilds(_fmow),
}
