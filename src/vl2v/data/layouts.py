"""Datasets as people keep them: domain/class/image, class/image, or a manifest.

DomainBed's five (PACS, VLCS, OfficeHome, TerraIncognita, DomainNet) are all domain/class/image; the folder of the
dataset, or a folder that holds only one of them, can be opened.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from vl2v.data.dataset import UNLABELLED, DomainDataset, Excluded
from vl2v.errors import DataError, need_extra

LAYOUTS = ("auto", "domains", "classes", "manifest")
DOMAINBED = ("pacs", "vlcs", "office_home", "terra_incognita", "domain_net")
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"))
ONE_DOMAIN = "all"

Row = tuple[str, str, str, str | None]
"""(path, class, domain, split); class "" is none."""


def open_dataset(
    path: Path | str, *, layout: str = "auto", exclude: Path | None = None, unlabelled: Path | None = None
) -> DomainDataset:
    """Return the pictures of a folder or a manifest, in ImageFolder's order.

    Args:
        path: a folder, or a CSV or Parquet file with the columns path, class, domain and maybe split.
        layout: "domains" (domain/class/image), "classes" (class/image), "manifest", or "auto".
        exclude: a text or CSV file with one relative path a line, for example DomainNet's list of duplicates.
        unlabelled: a folder of pictures without labels, a domain of its own.

    Raises:
        DataError: nothing there that can be used; the message says what was expected.
    """
    path = Path(path)
    if layout not in LAYOUTS:
        raise DataError(f"layout {layout!r}: there are {', '.join(LAYOUTS)}")
    if not path.exists():
        raise DataError(f"{path}: no such folder or manifest")
    if path.is_file():
        dataset = _from_rows(path.parent, _manifest_rows(path))
    elif layout == "manifest":
        raise DataError(f"{path}: a folder; layout manifest wants a .csv or .parquet file")
    else:
        dataset = _from_folder(path, layout)
    if exclude is not None:
        dataset = _without_listed(dataset, exclude)
    if unlabelled is not None:
        dataset = _with_unlabelled(dataset, unlabelled)
    return dataset


def _from_folder(path: Path, layout: str) -> DomainDataset:
    root = _benchmark_folder(path) or path
    files, excluded = _files(root)
    depths = {len(parts) for parts in files}
    if layout == "auto":
        layout = "domains" if 3 in depths else "classes"
    depth = 3 if layout == "domains" else 2
    rows = [("/".join(p), p[-2], p[0] if depth == 3 else ONE_DOMAIN, None) for p in files if len(p) == depth]
    excluded += [Excluded("/".join(p), f"not at {_shape(depth)}") for p in files if len(p) != depth]
    if not rows:
        raise DataError(
            f"{path}: no pictures at domain/class/image or class/image ({', '.join(sorted(SUFFIXES))}); "
            "`vl2v data inspect` tells what is there, a CSV manifest takes any layout"
        )
    return replace(_from_rows(root, rows), excluded=tuple(excluded))


def _shape(depth: int) -> str:
    return "domain/class/image" if depth == 3 else "class/image"


def _benchmark_folder(path: Path) -> Path | None:
    """Return the one folder of a DomainBed dataset in a folder of datasets."""
    found = [entry for entry in path.iterdir() if entry.is_dir() and entry.name.lower() in DOMAINBED]
    return found[0] if len(found) == 1 else None


def _files(root: Path) -> tuple[list[tuple[str, ...]], list[Excluded]]:
    """Return the pictures' paths as parts, in order, and what was set aside."""
    inside = os.path.realpath(root) + os.sep
    found: list[tuple[str, ...]] = []
    excluded: list[Excluded] = []
    for folder, folders, names in os.walk(root, followlinks=True):
        here = Path(folder).relative_to(root)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in list(folders):
            reason = _bad_folder_link(os.path.join(folder, name), folder, inside)
            if reason:
                folders.remove(name)
                excluded.append(Excluded((here / name).as_posix(), reason))
        for name in sorted(names):
            relative = (here / name).as_posix()
            link = os.path.join(folder, name)
            if name.startswith(".") or len(here.parts) == 0:
                continue  # hidden files; notes and licences beside the folders
            if os.path.islink(link) and not os.path.realpath(link).startswith(inside):
                excluded.append(Excluded(relative, "a link out of the dataset's folder"))
            elif Path(name).suffix.lower() not in SUFFIXES:
                excluded.append(Excluded(relative, f"not a picture ({Path(name).suffix or 'no suffix'})"))
            else:
                found.append((*here.parts, name))
    return found, excluded


def _bad_folder_link(path: str, parent: str, inside: str) -> str | None:
    if not os.path.islink(path):
        return None
    real = os.path.realpath(path)
    if not real.startswith(inside):
        return "a link out of the dataset's folder"
    if (os.path.realpath(parent) + os.sep).startswith(real + os.sep):
        return "a link to a folder that it is in"
    return None


def _manifest_rows(path: Path) -> list[Row]:
    table = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    rows: list[Row] = []
    for number, row in enumerate(table, start=2):
        missing = [key for key in ("path", "class", "domain") if row.get(key) is None]
        if missing:
            raise DataError(f"{path}: line {number} has no {missing[0]}; the columns are path, class, domain[, split]")
        split = row.get("split") or None
        if split not in (None, "train", "val", "test"):
            raise DataError(f"{path}: line {number}: split {split!r}; it is train, val, test or empty")
        rows.append((row["path"] or "", row["class"] or "", row["domain"] or "", split))
    if not rows:
        raise DataError(f"{path}: an empty manifest")
    return rows


def _read_csv(path: Path) -> Iterator[dict[str, str | None]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file ({error})") from None


def _read_parquet(path: Path) -> Iterable[dict[str, str | None]]:
    need_extra("pyarrow", "parquet")
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[dict[str, str | None]] = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a Parquet file ({error})") from None
    return rows


def _from_rows(root: Path, rows: Iterable[Row]) -> DomainDataset:
    """Return the dataset of rows, sorted; paths that lead out of the folder, or nowhere, are set aside."""
    inside = os.path.realpath(root) + os.sep
    kept: list[Row] = []
    excluded: list[Excluded] = []
    for row in rows:
        real = os.path.realpath(root / row[0])
        if not real.startswith(inside):
            excluded.append(Excluded(row[0], "a path out of the dataset's folder"))
        elif not os.path.isfile(real):
            excluded.append(Excluded(row[0], "no such file"))
        else:
            kept.append(row)
    if not kept:
        raise DataError(f"{root}: none of its {len(excluded)} pictures is there, first {excluded[0].path}")
    kept.sort(key=lambda row: (row[2], row[1], row[0]))
    classes = tuple(sorted({row[1] for row in kept if row[1]}))
    domains = tuple(sorted({row[2] for row in kept}))
    label = {name: i for i, name in enumerate(classes)} | {"": -1}
    place = {name: i for i, name in enumerate(domains)}
    return DomainDataset(
        root=root,
        classes=classes,
        domains=domains,
        paths=tuple(row[0] for row in kept),
        labels=np.array([label[row[1]] for row in kept], np.int64),
        domain_ids=np.array([place[row[2]] for row in kept], np.int64),
        splits=tuple(row[3] for row in kept) if any(row[3] for row in kept) else None,
        excluded=tuple(excluded),
    )


def _without_listed(dataset: DomainDataset, path: Path) -> DomainDataset:
    """Leave out the files of a list; lines may begin with the dataset's own folder name."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the list of files to leave out can't be read ({error})") from None
    listed = {line.split(",")[0].strip().strip('"') for line in lines}
    prefix = dataset.root.name + "/"
    reasons = {
        i: f"listed in {path.name}" for i, name in enumerate(dataset.paths) if name in listed or prefix + name in listed
    }
    if not reasons:
        raise DataError(f"{path}: none of its {len(listed)} lines names a picture of {dataset.root}")
    return dataset.without(reasons)


def _with_unlabelled(dataset: DomainDataset, folder: Path) -> DomainDataset:
    """Add a folder's pictures, of any depth, as a last domain without labels."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of unlabelled pictures")
    if UNLABELLED in dataset.domains:
        raise DataError(f"{dataset.root}: has a domain {UNLABELLED!r} already; rename it")
    files, excluded = _files(folder)
    files = sorted([*files, *((p.name,) for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())])
    if not files:
        raise DataError(f"{folder}: no pictures in it")
    paths = tuple(os.path.relpath(folder.joinpath(*parts), dataset.root) for parts in files)
    count = len(paths)
    return replace(
        dataset,
        domains=(*dataset.domains, UNLABELLED),
        paths=dataset.paths + paths,
        labels=np.concatenate([dataset.labels, np.full(count, -1)]),
        domain_ids=np.concatenate([dataset.domain_ids, np.full(count, len(dataset.domains))]),
        splits=None if dataset.splits is None else (*dataset.splits, *([None] * count)),
        excluded=dataset.excluded + tuple(excluded),
    )
