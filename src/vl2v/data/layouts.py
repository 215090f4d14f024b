"""Datasets as people keep them: domain/class/image, class/image, or a manifest.

DomainBed's five (PACS, VLCS, OfficeHome, TerraIncognita, DomainNet) are all domain/class/image; the folder of the
dataset, or a folder that holds only one of them, can be opened.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from sys import intern

import numpy as np
from numpy.typing import NDArray

from vl2v.data.dataset import UNLABELLED, DomainDataset, Excluded
from vl2v.data.samples import icondg
from vl2v.errors import DataError, need_extra
from vl2v.prediction import check_name

SAMPLE = Path("icondg")
LAYOUTS = ("auto", "domains", "classes", "manifest")
DOMAINBED = ("pacs", "vlcs", "officehome", "terraincognita", "domainnet")
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"))
SPLITS = ("train", "val", "test")
ONE_DOMAIN = "all"
COLUMNS = {
    "path": ("path", "filename", "image_path", "file"),
    "class": ("class", "category", "label", "y"),
    "domain": ("domain", "group", "location_remapped", "location", "center", "region"),
}
"""A manifest's columns, each with the names that WILDS and others give it; the first that is there counts."""
WILDS_SPLITS = {"id_val": "val", "id_test": "test"}

Row = tuple[str, str, str, str | None, str]
"""(path, class, domain, split, sha256 in hexadecimal); class and sha256 "" are none."""

_HEX = frozenset("0123456789abcdef")
_OUTSIDE = "a link out of the dataset's folder"
_NOT_UTF8 = "its name is not UTF-8"


def open_dataset(
    path: Path | str,
    *,
    layout: str = "auto",
    exclude: Path | None = None,
    unlabelled: Path | None = None,
    root: Path | None = None,
) -> DomainDataset:
    """Return the pictures of a folder or a manifest, in ImageFolder's order.

    Args:
        path: a folder, "icondg" (the sample that comes in the package, unless there is a folder of that name), or a
            CSV or Parquet file with the columns path, class, domain (or what COLUMNS has for them)
            and maybe split and sha256 (of the file's bytes, in hexadecimal; the file isn't looked at before it is
            read then).
        layout: "domains" (domain/class/image), "classes" (class/image), "manifest", or "auto": what most pictures
            are at. Pictures in deeper folders are set aside by "auto"; else they are of the class they are under.
        exclude: a text or CSV file with one relative path a line, for example DomainNet's list of duplicates.
        unlabelled: a folder of pictures without labels, a domain of its own.
        root: the folder that a manifest's paths are relative to; by default its own.

    Raises:
        DataError: nothing there that can be used; the message says what was expected.
    """
    path = Path(path)
    if layout not in LAYOUTS:
        raise DataError(f"layout {layout!r}: there are {', '.join(LAYOUTS)}")
    if path == SAMPLE and not path.exists():
        path = icondg()
    if not path.exists():
        raise DataError(f"{path}: no such folder or manifest")
    if path.is_file() != (layout == "manifest") and layout != "auto":
        raise DataError(f"{path}: layout {layout} wants {'a .csv or .parquet file' if path.is_dir() else 'a folder'}")
    is_file = path.is_file()
    dataset = _from_manifest(path, root or path.parent) if is_file else _from_folder(path, layout, unlabelled)
    if exclude is not None:
        dataset = _without_listed(dataset, exclude)
    if unlabelled is not None:
        dataset = _with_unlabelled(dataset, unlabelled)
    return dataset


def _from_folder(path: Path, layout: str, besides: Path | None) -> DomainDataset:
    root = _benchmark_folder(path)
    files, excluded = _files(root, besides)
    auto = layout == "auto"
    if auto:
        layout = _likely_layout(path, files)
    depth = 3 if layout == "domains" else 2
    fits = [len(parts) == depth or (len(parts) > depth and not auto) for parts in files]
    rows = [
        ("/".join(parts), parts[depth - 2], parts[0] if depth == 3 else ONE_DOMAIN, None, "")
        for parts, fit in zip(files, fits, strict=True)
        if fit
    ]
    shape = "domain/class/image" if depth == 3 else "class/image"
    excluded += [
        Excluded("/".join(parts), f"not at {shape}") for parts, fit in zip(files, fits, strict=True) if not fit
    ]
    if not rows:
        raise DataError(
            f"{path}: no pictures at domain/class/image or class/image ({', '.join(sorted(SUFFIXES))}); "
            "open the folder that holds them, or write a CSV manifest, which takes any layout"
        )
    return _from_rows(root, rows, excluded)


def _likely_layout(path: Path, files: Sequence[tuple[str, ...]]) -> str:
    """Return where most pictures are.

    Raises:
        DataError: most are too deep: what the outer folders mean can't be told, and a guess would be wrong labels.
    """
    depths = Counter(len(parts) for parts in files)
    deep = sum(count for depth, count in depths.items() if depth > 3)
    if deep > depths[2] + depths[3]:
        first = next(parts for parts in files if len(parts) > 3)
        raise DataError(
            f"{path}: {deep} pictures are deeper than domain/class/image, first {'/'.join(first)}; "
            f"open {path / first[0]}, or write a CSV manifest"
        )
    return "domains" if depths[3] and depths[3] >= depths[2] else "classes"


def _benchmark_folder(path: Path) -> Path:
    """Return the one folder of a DomainBed dataset in a folder of datasets; else the folder itself."""
    try:
        folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
    except OSError as error:
        raise DataError(f"{path}: the folder can't be read ({error.strerror})") from None
    found = [entry for entry in folders if entry.name.lower().replace("_", "").replace("-", "") in DOMAINBED]
    return found[0] if len(found) == 1 else path


def _files(root: Path, besides: Path | None = None) -> tuple[list[tuple[str, ...]], list[Excluded]]:
    """Return the pictures' paths as parts, and what was set aside; the folder `besides` is not entered."""
    inside = os.path.realpath(root) + os.sep
    elsewhere = None if besides is None else os.path.realpath(besides)
    found: list[tuple[str, ...]] = []
    excluded: list[Excluded] = []

    def unreadable(error: OSError) -> None:
        excluded.append(
            Excluded(_printable(os.path.relpath(error.filename, root)), f"can't be read ({error.strerror})")
        )

    for folder, folders, names in os.walk(root, followlinks=True, onerror=unreadable):
        parts = Path(folder).relative_to(root).parts
        if parts and not folders and not names:
            excluded.append(Excluded("/".join(parts), "an empty folder"))
        entered = []
        for name in sorted(folders):
            if name.startswith(".") or os.path.realpath(os.path.join(folder, name)) == elsewhere:
                continue
            reason = _bad_folder(root, (*parts, name), inside)
            if reason is None:
                entered.append(name)
            else:
                excluded.append(Excluded(_printable("/".join((*parts, name))), reason))
        folders[:] = entered
        for name in sorted(names):
            if name.startswith(".") or (not parts and Path(name).suffix.lower() not in SUFFIXES):
                continue  # hidden files; notes and licences beside the folders
            reason = _bad_file(os.path.join(folder, name), inside)
            if reason is None:
                found.append((*parts, name))
            else:
                excluded.append(Excluded(_printable("/".join((*parts, name))), reason))
    return found, excluded


def _bad_folder(root: Path, parts: tuple[str, ...], inside: str) -> str | None:
    if _printable(parts[-1]) != parts[-1]:
        return _NOT_UTF8
    if not os.path.islink(root.joinpath(*parts)):
        return None
    real = os.path.realpath(root.joinpath(*parts)) + os.sep
    if not real.startswith(inside):
        return _OUTSIDE
    above = (os.path.realpath(root.joinpath(*parts[:count])) + os.sep for count in range(len(parts)))
    return "a link to a folder that it is in" if any(folder.startswith(real) for folder in above) else None


def _bad_file(path: str, inside: str) -> str | None:
    suffix = os.path.splitext(path)[1]
    if _printable(path) != path:
        return _NOT_UTF8
    if os.path.islink(path) and not os.path.realpath(path).startswith(inside):
        return _OUTSIDE
    if suffix.lower() not in SUFFIXES:
        return f"not a picture ({suffix or 'no suffix'})"
    return None if os.path.isfile(path) else "not a file"  # a pipe would be waited for; a link may be broken


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _from_manifest(path: Path, root: Path) -> DomainDataset:
    """Return the dataset of a manifest; paths that lead out of the folder, or nowhere, are set aside."""
    inside = os.path.realpath(root) + os.sep
    rows: dict[str, Row] = {}
    excluded: list[Excluded] = []
    for row in _manifest_rows(path):
        reason = _bad_name(row[0]) if row[4] else _bad_path(root, row[0], inside)
        if reason is None and row[0] in rows:
            if rows[row[0]] != row:
                raise DataError(f"{path}: {row[0]} is listed as {_said(rows[row[0]])} and as {_said(row)}; keep one")
            reason = "listed twice"
        if reason is None:
            rows[row[0]] = row
        else:
            excluded.append(Excluded(_printable(row[0]), reason))
    if not rows:
        raise DataError(
            f"{path}: none of its {len(excluded)} pictures can be used ({excluded[0].path}: {excluded[0].reason}); "
            f"the paths are relative to {root}"
        )
    return _from_rows(root, rows.values(), excluded)


def _said(row: Row) -> str:
    return "/".join(filter(None, (row[2], row[1] or "(no class)", row[3])))


def _bad_name(path: str) -> str | None:
    if "\0" in path or not path.isprintable():
        return "no such file"
    return "a path out of the dataset's folder" if os.path.isabs(path) or path.startswith("..") else None


def _bad_path(root: Path, path: str, inside: str) -> str | None:
    if "\0" in path or _printable(path) != path:
        return "no such file"
    real = os.path.realpath(root / path)
    if not real.startswith(inside):
        return "a path out of the dataset's folder"
    return None if os.path.isfile(real) else "no such file"


def _manifest_rows(path: Path) -> Iterator[Row]:
    table = _read_parquet(path) if path.suffix.lower() in (".parquet", ".pq") else _read_csv(path)
    number = 1
    columns: dict[str, str] = {}
    for number, row in enumerate(table, start=2):
        if number == 2:
            columns = _columns(row)
        for key, name in columns.items():
            row[key] = row.get(name)
        missing = [key for key in ("path", "class", "domain") if row.get(key) is None]
        missing += [key for key in ("path", "domain") if row.get(key) == ""]
        if missing:
            raise DataError(f"{path}: line {number} has no {missing[0]}; the columns are path, class, domain[, split]")
        file, name, domain = (str(row[key]) for key in ("path", "class", "domain"))
        split = row.get("split") or None
        split = WILDS_SPLITS.get(split, split) if split else None
        if split not in (None, *SPLITS):
            raise DataError(f"{path}: line {number}: split {split!r}; it is {', '.join(SPLITS)} or empty")
        sha256 = str(row.get("sha256") or "").lower()
        if sha256 and (len(sha256) != 64 or not _HEX.issuperset(sha256)):
            raise DataError(f"{path}: line {number}: sha256 {sha256!r}; it has 64 hexadecimal digits, or is empty")
        yield os.path.normpath(file), intern(name), intern(domain), split, sha256
    if number == 1:
        raise DataError(f"{path}: an empty manifest; a line a picture: path,class,domain[,split]")


def _columns(row: dict[str, str | None]) -> dict[str, str]:
    """Return path, class and domain -> the column that has it under another name."""
    found = {key: next((name for name in names if name in row), key) for key, names in COLUMNS.items()}
    return {key: name for key, name in found.items() if key != name}


def _read_csv(path: Path) -> Iterator[dict[str, str | None]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file that can be read ({error}); save it as UTF-8") from None


def _read_parquet(path: Path) -> Iterable[dict[str, str | None]]:
    need_extra("pyarrow", "parquet")
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[dict[str, str | None]] = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        why = " ".join(str(error).split())
        raise DataError(f"{path}: not a Parquet file that can be read ({why}); write it anew") from None
    return rows


def _from_rows(root: Path, rows: Iterable[Row], excluded: Sequence[Excluded]) -> DomainDataset:
    """Return the dataset of rows, sorted as DomainBed's ImageFolder does: by domain, class, folder and file name.

    Raises:
        DataError: a class or a domain whose name can't be seen as it is.
    """
    kept = sorted(rows, key=lambda row: (row[2], row[1], *os.path.split(row[0])))
    classes = tuple(sorted({row[1] for row in kept if row[1]}))
    domains = tuple(sorted({row[2] for row in kept}))
    for name in (*classes, *domains):
        check_name(name)
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
        sha256=_hashes(kept) if any(row[4] for row in kept) else None,
        excluded=tuple(excluded),
    )


def _hashes(rows: Sequence[Row]) -> NDArray[np.uint8]:
    raw = b"".join(bytes.fromhex(row[4]) if row[4] else bytes(32) for row in rows)
    return np.frombuffer(raw, np.uint8).reshape(len(rows), 32)


def _without_listed(dataset: DomainDataset, path: Path) -> DomainDataset:
    """Leave out the files of a list; lines may begin with the dataset's own folder name.

    Raises:
        DataError: the list can't be read, or is of another dataset. That its files are gone already is well.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the list of files to leave out can't be read ({error})") from None
    prefix = dataset.root.resolve().name + "/"
    listed = {
        name.removeprefix(prefix) for line in lines for name in (line.strip(), line.split(",")[0].strip().strip('"'))
    } - {""}
    reasons = {i: f"listed in {path.name}" for i, name in enumerate(dataset.paths) if name in listed}
    folders = {os.path.dirname(name) for name in dataset.paths}
    if not reasons and not any(os.path.dirname(name) in folders for name in listed):
        raise DataError(
            f"{path}: none of its {len(lines)} lines names a picture of {dataset.root}; "
            f"they should look like {dataset.paths[0]}"
        )
    left = dataset.without(reasons)
    if not len(left):
        raise DataError(f"{path}: lists every picture of {dataset.root}; nothing is left")
    return left


def _with_unlabelled(dataset: DomainDataset, folder: Path) -> DomainDataset:
    """Add a folder's pictures, of any depth, as a last domain without labels."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of unlabelled pictures")
    if UNLABELLED in dataset.domains:
        raise DataError(f"{dataset.root}: has a domain {UNLABELLED!r} already; rename it")
    files, excluded = _files(folder)
    if not files:
        raise DataError(f"{folder}: no pictures in it ({', '.join(sorted(SUFFIXES))})")
    # from real folder to real folder: ".." beyond a link leads elsewhere
    below = os.path.relpath(os.path.realpath(folder), os.path.realpath(dataset.root))
    count = len(files)
    return replace(
        dataset,
        domains=(*dataset.domains, UNLABELLED),
        paths=dataset.paths + tuple("/".join((below, *parts)) for parts in sorted(files)),
        labels=np.concatenate([dataset.labels, np.full(count, -1)]),
        domain_ids=np.concatenate([dataset.domain_ids, np.full(count, len(dataset.domains))]),
        splits=None if dataset.splits is None else (*dataset.splits, *([None] * count)),
        sha256=None if dataset.sha256 is None else np.concatenate([dataset.sha256, np.zeros((count, 32), np.uint8)]),
        excluded=dataset.excluded + tuple(replace(gone, path=f"{below}/{gone.path}") for gone in excluded),
    )
