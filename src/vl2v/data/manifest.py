"""Manifests: one image a line, with its class and domain, in a CSV or Parquet file; and lists of files to leave out."""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from sys import intern
from typing import Any
from urllib.parse import unquote, urlsplit

from vl2v.data.dataset import SUFFIXES, DomainDataset, Excluded, one_form, printable
from vl2v.errors import DataError, need_extra
from vl2v.tree import encoding_of, text_of

SPLITS = ("train", "val", "test")
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "id_val"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "id_test"), "test"),
}
COLUMNS = {
    "path": ("path", "filename", "image_path", "file", "filepath", "img_path", "image_name", "image"),
    "class": ("class", "category", "label", "y", "class_name", "label_name", "choice", "target"),
    "domain": ("domain", "group", "location_remapped", "location", "center", "region"),
}
"""A manifest's columns, each with the names that WILDS and others give it; the first that is there counts.

Case, blanks and underscores in a name don't matter: "File Name" is filename.
"""
WILDS_SPLITS = {"id_val": "val", "id_test": "test"}
MISSING = frozenset(("", "nan", "NaN", "-nan", "null", "NULL", "<NA>", "NaT", "#N/A", "N/A", "n/a"))
"""What says that there is no value, as pandas, databases and spreadsheets write it; so do null and NaN themselves."""

Row = tuple[str, str, str, str | None, str]
"""(path, class, domain, split, sha256 in hexadecimal); class and sha256 "" are none."""

_IMAGE = re.compile(rf"({'|'.join(map(re.escape, sorted(SUFFIXES, reverse=True)))})(\s|$)", re.IGNORECASE)
_HEX = frozenset("0123456789abcdef")
_HEAD = 4096
_WHOLE = re.compile(r"^(-?\d+)\.0+$")
_KINDS = (
    (re.compile(rb"PK\x03\x04.*\bxl/", re.DOTALL), "a spreadsheet", "save it as CSV (UTF-8)"),
    (re.compile(rb"PK\x03\x04|PK\x05\x06|\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd"),
     "an archive", "unpack it, and give the folder"),
    (re.compile(rb".{257}ustar", re.DOTALL), "an archive", "unpack it, and give the folder"),
    (re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8|BM.{4}\0{4}|RIFF.{4}WEBP|II\*\0|MM\0\*|.{4}ftyp", re.DOTALL),
     "one image", "give the folder that holds the domains or classes"),
    (re.compile(rb"\s*[{\[]"), "JSON", "write a CSV manifest: path,class,domain"),
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer", "fetch the file itself (git lfs pull)"),
    (re.compile(rb"\s*<"), "HTML or XML", "write a CSV manifest: path,class,domain"),
)  # fmt: skip
"""How files begin that are given for a manifest and are none: what they are, and what to do."""


def read_manifest(
    path: Path, root: Path, one_domain: str, *, labelled: bool = True
) -> tuple[list[Row], list[Excluded], tuple[str, ...]]:
    """Return a manifest's rows, those that are set aside (paths that lead out of the folder, or nowhere), and notes.

    Args:
        root: the folder that its paths are relative to.
        one_domain: of all images where the manifest has no column for it.
        labelled: whether the images' classes and domains matter; else only their paths do.

    Raises:
        DataError: not a manifest, or none of its images can be used.
    """
    inside = os.path.realpath(root) + os.sep
    rows: dict[str, Row] = {}
    excluded: list[Excluded] = []
    domains = False
    for listed in _manifest_rows(path, labelled=labelled):
        if not labelled:
            listed = (listed[0], "", "", None, "")
        name = _relative(listed[0], root)
        if listed[4]:
            reason = _bad_name(name)
        else:
            name = _as_on_disk(root, name)
            reason = _bad_path(root, name, inside)
        row = (name, listed[1], listed[2] or one_domain, *listed[3:])
        domains |= bool(listed[2])
        key = one_form(name)
        if reason is None and key in rows:
            if rows[key][1:] != row[1:]:
                raise DataError(f"{path}: {name} is listed as {_said(rows[key])} and as {_said(row)}; keep one")
            reason = "listed twice"
        if reason is None:
            rows[key] = row
        else:
            excluded.append(Excluded(printable(name), reason))
    if not rows:
        raise DataError(
            f"{path}: none of its {len(excluded)} images can be used ({excluded[0].path}: {excluded[0].reason}); "
            f"the paths are relative to {root}{_meant(root, excluded[0].path)}"
        )
    note = (
        f"no domain column in {path.name}: all images form one domain, {one_domain!r}; add one to keep a domain unseen"
    )
    return list(rows.values()), excluded, () if domains or not labelled else (note,)


def _relative(path: str, root: Path) -> str:
    """Return a path as relative to the folder, if it is absolute and leads there."""
    if not os.path.isabs(path):
        return path
    for folder in (os.path.abspath(root), os.path.realpath(root)):
        if path.startswith(folder + os.sep):
            return os.path.relpath(path, folder)
    return path


def _as_on_disk(root: Path, path: str) -> str:
    """Return a path as the disk has it: its accents may be written in another form, its slashes as Windows does."""
    if "\0" in path or printable(path) != path or os.path.lexists(root / path):
        return path
    paths = (path, path.replace("\\", "/"))
    forms = [os.path.normpath(unicodedata.normalize(form, one)) for one in paths for form in ("NFC", "NFD")]
    return next((form for form in forms if os.path.lexists(root / form)), path)


def _meant(root: Path, path: str) -> str:
    """Return which file a path that leads nowhere may mean: of another folder or suffix, or of another computer."""
    parts = re.split(r"[/\\=]", path)
    ends = ["/".join(parts[start:]) for start in range(1, len(parts))]
    suffixes = sorted({form for suffix in SUFFIXES for form in (suffix, suffix.upper())})
    others = [one + suffix for one in (path, os.path.splitext(path)[0]) for suffix in ("", *suffixes)]
    below = [f"{entry.name}/{path}" for entry in os.scandir(root) if entry.is_dir()]
    near = next((one for one in (*ends, *others, *sorted(below)) if one != path and os.path.isfile(root / one)), None)
    return f", which holds {near}; correct the paths" if near else ""


def _said(row: Row) -> str:
    return "/".join(filter(None, (row[2], row[1] or "(no class)", row[3])))


def _bad_name(path: str) -> str | None:
    if "\0" in path or not path.isprintable():
        return "no such file"
    return "a path outside the dataset's folder" if os.path.isabs(path) or path.startswith("..") else None


def _bad_path(root: Path, path: str, inside: str) -> str | None:
    if "\0" in path or printable(path) != path:
        return "no such file"
    if "://" in path:
        return "an address, not a file"
    real = os.path.realpath(root / path)
    if not real.startswith(inside):
        return "a path outside the dataset's folder"
    return None if os.path.isfile(real) else "no such file"


def _manifest_rows(path: Path, *, labelled: bool) -> Iterator[Row]:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    parquet = path.suffix.lower() in (".parquet", ".pq") or head.startswith(b"PAR1")
    if not parquet:
        _check_kind(path, head)
    rows = iter(_read_parquet(path) if parquet else _read_csv(path))
    _, heads = next(rows, ("", {}))
    columns = _columns(heads)
    for name in ("path", "class") if labelled else ("path",):
        if heads and columns[name] not in heads:
            if any(_IMAGE.search(str(head)) for head in heads):
                apart = "" if len(heads) > 1 else ", and a comma between path and class"
                raise DataError(
                    f"{path}: its first line names an image, not the columns; "
                    f"put a line path,class,domain above it{apart}"
                )
            raise DataError(
                f"{path}: no {name} column among {', '.join(map(str, heads)):.200}; the columns are path, class, "
                f"domain[, split], or {', '.join(COLUMNS[name][1:])} for {name}"
            )
    empty = True
    for where, row in rows:
        empty = False
        values = {name: _text(row.get(column), f"{path}: {where}: {column}") for name, column in columns.items()}
        for name in ("path", "class", "domain"):
            if columns[name] in heads and (columns[name] not in row or (name != "class" and not values[name])):
                raise DataError(f"{path}: {where} has no {name}; the columns are path, class, domain[, split]")
        if broken := next((name for name, value in values.items() if "\n" in value or "\r" in value), None):
            raise DataError(f'{path}: {where}: a {broken} continues over several lines; is a " missing?')
        split = _SPLIT_WORDS.get(values["split"].lower())
        if split is None and values["split"]:
            raise DataError(f"{path}: {where}: split {values['split']!r}; it is {', '.join(SPLITS)} or empty")
        sha256 = values["sha256"].lower()
        if sha256 and (len(sha256) != 64 or not _HEX.issuperset(sha256)):
            raise DataError(f"{path}: {where}: sha256 {sha256!r}; it must be 64 hexadecimal digits, or empty")
        # of whole numbers with a gap among them programs write decimals: 3.0
        name, domain = (intern(one_form(_WHOLE.sub(r"\1", values[key]))) for key in ("class", "domain"))
        name_of_file = values["path"]
        if name_of_file.lower().startswith("file://"):
            name_of_file = unquote(urlsplit(name_of_file).path)
        yield name_of_file if "://" in name_of_file else os.path.normpath(name_of_file), name, domain, split, sha256
    if empty:
        raise DataError(f"{path}: an empty manifest; it needs one line per image: path,class,domain[,split]")


def _check_kind(path: Path, head: bytes) -> None:
    for start, what, remedy in _KINDS:
        if start.match(head):
            raise DataError(f"{path}: {what}, not a manifest or a folder; {remedy}")


def _text(value: Any, where: str) -> str:
    """Return a cell as text without blanks around it, "" where there is none."""
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise DataError(f"{where}: bytes that aren't UTF-8 text; store the column as text") from None
    if isinstance(value, list | dict):
        raise DataError(f"{where}: {value!r:.60}; it must be a single text or number")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # in a column of whole numbers with a gap, all become decimals
    text = str(value).strip()
    return "" if text in MISSING else text


def _columns(heads: Iterable[str]) -> dict[str, str]:
    """Return path, class, domain, split and sha256 -> the column that has it, maybe under another name."""
    heads = list(heads)
    return {key: column_of(heads, key) or key for key in (*COLUMNS, "split", "sha256")}


def column_of(heads: Iterable[str], key: str) -> str | None:
    """Return the column that has path, class, domain or the like, maybe under another name; None: there is none."""
    plain = {_plain(str(head)): head for head in reversed(list(heads))}
    return next((plain[name] for name in map(_plain, COLUMNS.get(key, (key,))) if name in plain), None)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.lower())


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, str | None]]]:
    """Yield (which line, its cells by column), the columns alone first; the first line tells the separator."""
    try:
        with path.open("rb") as opened:
            encoding = encoding_of(opened.read(2))
        with path.open(encoding=encoding, newline="") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(",;\t|", key=first.count)
            table = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
            heads = next(table, [])
            names = [head.strip().lower() for head in heads if head.strip()]
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise DataError(f"{path}: two columns are named {twice!r}; rename one")
            yield "line 1", dict.fromkeys(heads)
            last = table.line_num
            for cells in table:
                begin, last = last + 1, table.line_num
                if not any(cell.strip() for cell in cells):
                    continue
                lines = [line for cell in cells for line in cell.splitlines()[1:]]
                if any(line.count(delimiter) >= len(heads) - 1 > 0 for line in lines):
                    raise DataError(f'{path}: line {begin}: a cell continues over several rows; is a " missing?')
                if any(cell.strip() for cell in cells[len(heads) :]):
                    raise DataError(
                        f"{path}: line {begin} has {len(cells)} cells, the first line {len(heads)}; "
                        f'put a text with a "{delimiter}" in it into quotes'
                    )
                yield f"line {begin}", dict(zip(heads, cells, strict=False))
    except csv.Error as error:
        raise DataError(f"{path}: can't be read as CSV ({error}); is a \" missing?") from None
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path}: can't be read as CSV ({error}); save it as UTF-8") from None


def _read_parquet(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    need_extra("pyarrow", "parquet")
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        rows: list[dict[str, Any]] = [dict.fromkeys(table.column_names), *table.to_pylist()]
    except (OSError, pyarrow.ArrowException) as error:
        why = " ".join(str(error).split())
        raise DataError(f"{path}: can't be read as Parquet ({why}); write it again") from None
    return ((f"row {number}", row) for number, row in enumerate(rows))


def without_listed(dataset: DomainDataset, path: Path) -> DomainDataset:
    """Leave out the files of a list, one a line; a line that names none is a remark of the dataset.

    Paths may be relative to the dataset's folder, or begin with its own name, with "./" or be absolute; with slashes
    or as Windows writes them; in quotes; with more columns behind them.

    Raises:
        DataError: the list can't be read, or is of another dataset. That its files are gone already is well.
    """
    try:
        lines = text_of(path.read_bytes()).splitlines()
    except OSError as error:
        raise DataError(f"{path}: the list of files to leave out can't be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(
            f"{path}: the list of files to leave out is neither UTF-8 nor UTF-16; save it as UTF-8"
        ) from None
    numbers = {one_form(name): i for i, name in enumerate(dataset.paths)}
    left_out: dict[int, str] = {}
    unknown: list[str] = []
    folders = {os.path.dirname(name) for name in numbers}
    of_ours = False
    for line in filter(None, map(str.strip, lines)):
        names = [one_form(name) for name in _names(line, dataset.root)]
        found = [numbers[name] for name in names if name in numbers]
        left_out |= dict.fromkeys(found, f"listed in {path.name}")
        of_ours |= bool(found) or any(os.path.dirname(name) in folders - {""} for name in names)
        if not found and column_of([line.strip("\"'")], "path") is None:
            unknown.append(line)
    if not of_ours:
        raise DataError(
            f"{path}: none of its {len(lines)} lines names an image of {dataset.root}; "
            f"they should look like {dataset.paths[0]}"
        )
    left = dataset.without(left_out)
    if not len(left):
        raise DataError(f"{path}: lists every image of {dataset.root}; nothing is left")
    if not unknown:
        return left
    remark = f"{path.name}: {len(unknown)} of {len(lines)} lines name no image of the dataset, first {unknown[0]}"
    return left.noting(f"{remark}; correct them, unless the files are gone already")


def _names(line: str, root: Path) -> Iterator[str]:
    """Yield what a line of a list may mean, relative to the folder."""
    first = next(csv.reader(io.StringIO(line), skipinitialspace=True), [""])[0]
    for name in (line, first, line.split("\t")[0], line.rpartition(" ")[0]):
        plain = name.strip().strip("\"'").strip()
        for path in (plain, plain.replace("\\", "/")):
            if path:
                yield os.path.normpath(_relative(path, root)).removeprefix(root.resolve().name + "/")
                yield os.path.normpath(_relative(path, root))
