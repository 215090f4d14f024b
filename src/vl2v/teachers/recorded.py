"""Recorded embeddings: vectors in .npy files and tables of what each row is.

Two layouts are read. Ours: `image_embeddings.npy` with `images.csv` (path, and sha256 of the file where known),
`text_embeddings.npy` with `texts.csv` (text), `vendor.json` (name, logit_scale). And clip-retrieval's:
`img_emb/*.npy` and `text_emb/*.npy` with `metadata/*.parquet` (image_path, caption).
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vl2v.data.dataset import one_form
from vl2v.errors import TeacherError, need_extra
from vl2v.teachers.prompts import unit
from vl2v.teachers.protocol import EMBEDDING_VERSION, EncodedImage, Vectors
from vl2v.tree import text_of

BLOCK = 65_536  # rows checked at a time


@dataclass(frozen=True)
class _Table:
    """Vectors, and the row of each thing by the one name that it goes by: a text, a SHA-256 or a path."""

    vectors: NDArray[Any]
    rows: Mapping[str, int]


class RecordedTeacher:
    """A teacher that can only repeat what was recorded.

    An image is found by the SHA-256 of its file where the recording has it, else by its path, or by the only path of
    the recording that ends in it. A path alone stands for one content only, never for an augmented view of it.
    Names and texts are compared in one Unicode form.
    """

    def __init__(self, folder: Path) -> None:
        """Open a folder.

        Raises:
            TeacherError: a file is missing, the tables don't fit, or vectors are NaN or zero.
        """
        if not folder.is_dir():
            raise TeacherError(f"recorded:{folder}: no such folder")
        about, images, texts, files = _clip_retrieval(folder) if (folder / "img_emb").is_dir() else _ours(folder)
        if images.vectors.shape[1] != texts.vectors.shape[1]:
            raise TeacherError(
                f"recorded:{folder}: image embeddings have {images.vectors.shape[1]} numbers, text embeddings "
                f"{texts.vectors.shape[1]}; they are of different models"
            )
        self.name = f"recorded:{about.get('name', folder.name)}"
        self.dim = int(images.vectors.shape[1])
        scale = about.get("logit_scale")
        self.logit_scale = None if scale is None else float(scale)
        self.fingerprint = _digest(files)
        self._folder = folder
        self._images = images
        self._texts = texts
        self._suffixes = _suffixes(images.rows)
        self._contents: dict[int, str] = {}  # of the rows that were found by path

    def embed_images(self, images: Sequence[EncodedImage]) -> Vectors:
        """Return I(x) [n, d], unit rows.

        Raises:
            TeacherError: images that the recording doesn't have.
        """
        rows = [self._row(image) for image in images]
        missing = [image.name for image, row in zip(images, rows, strict=True) if row is None]
        if missing:
            several = sum(self._suffixes.get(one_form(name), 0) is None for name in missing)
            raise TeacherError(
                f"recorded:{self._folder}: no embedding of {len(missing)} of {len(images)} images, first "
                f"{', '.join(missing[:3])}"
                + (f" ({several} of them fit more than one recorded path)" if several else "")
                + "; record them too, or leave them out with data.exclude"
            )
        return unit(self._images.vectors[[row for row in rows if row is not None]].astype(np.float32))

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Return the texts' embeddings [n, d], unit rows.

        Raises:
            TeacherError: texts that the recording doesn't have.
        """
        texts = [one_form(text) for text in texts]
        missing = [text for text in texts if text not in self._texts.rows]
        if missing:
            more = f" (and {len(missing) - 3} more)" if len(missing) > 3 else ""
            there = list(self._texts.rows)
            raise TeacherError(
                f"recorded:{self._folder}: no embedding of {len(missing)} of {len(texts)} texts: "
                f"{', '.join(map(repr, missing[:3]))}{more}; it has {len(there)} texts: "
                f"{', '.join(map(repr, there[:8]))}{', ...' if len(there) > 8 else ''}; choose prompts.templates among "
                "them (prompts.articles=false writes 'a elephant')"
            )
        return unit(self._texts.vectors[[self._texts.rows[text] for text in texts]].astype(np.float32))

    def _row(self, image: EncodedImage) -> int | None:
        digest = hashlib.sha256(image.data).hexdigest()
        if digest in self._images.rows:
            return self._images.rows[digest]
        name = one_form(image.name)
        row = self._images.rows.get(name, self._suffixes.get(name))
        if row is not None and self._contents.setdefault(row, digest) != digest:
            raise TeacherError(
                f"recorded:{self._folder}: queried with two contents of {image.name}, but it was recorded by its path "
                "alone; use teacher.views=0, or record augmented views by their sha256"
            )
        return row


def open_recorded(rest: str, **options: Any) -> RecordedTeacher:
    """Open a folder of recorded embeddings.

    Raises:
        TeacherError: options were given (there is nothing to compute), or the folder can't be read.
    """
    if options:
        raise TeacherError(f"recorded:{rest}: takes no {', '.join(options)}; its embeddings are as they were recorded")
    return RecordedTeacher(Path(rest))


_Recording = tuple[dict[str, Any], _Table, _Table, list[Path]]


def _ours(folder: Path) -> _Recording:
    names = ("image_embeddings.npy", "images.csv", "text_embeddings.npy", "texts.csv")
    for name in names:
        if not (folder / name).is_file():
            raise TeacherError(
                f"{folder / name}: missing; a recording has {', '.join(names)}, or clip-retrieval's img_emb/"
            )
    images, texts = _read_csv(folder / "images.csv", "sha256", "path"), _read_csv(folder / "texts.csv", "text")
    image_names = [row.get("sha256", "").strip().lower() or row.get("path", "") for row in images]
    if not all(image_names):
        row = image_names.index("") + 2
        raise TeacherError(f"{folder / 'images.csv'}: line {row}: neither a sha256 nor a path")
    return (
        _about(folder / "vendor.json"),
        _table([folder / names[0]], image_names, folder / names[1]),
        _table([folder / names[2]], [row["text"] for row in texts], folder / names[3]),
        [folder / name for name in names],
    )


def _about(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        about = json.loads(text_of(file.read_bytes()))
    except ValueError as error:
        raise TeacherError(f"{file}: not readable as JSON ({error})") from None
    if not isinstance(about, dict):
        raise TeacherError(f"{file}: not a table of name and logit_scale")
    scale = about.get("logit_scale")
    if scale is not None and not (isinstance(scale, int | float) and 0 < scale < float("inf")):
        raise TeacherError(f"{file}: logit_scale {scale!r} isn't a positive number; leave it out if it isn't known")
    return about


def _clip_retrieval(folder: Path) -> _Recording:
    parquet = need_extra("pyarrow.parquet", "parquet")
    tables = sorted((folder / "metadata").glob("*.parquet"), key=_number)
    image_files = sorted((folder / "img_emb").glob("*.npy"), key=_number)
    text_files = sorted((folder / "text_emb").glob("*.npy"), key=_number)
    if not tables or not image_files or not text_files:
        raise TeacherError(
            f"{folder}: clip-retrieval's layout has img_emb/*.npy, text_emb/*.npy and metadata/*.parquet"
        )
    paths: list[str | None] = []
    captions: list[str | None] = []
    for table in tables:
        columns = parquet.read_schema(table).names
        if "image_path" not in columns or "caption" not in columns:
            raise TeacherError(f"{table}: has no image_path and caption; it has {', '.join(columns)}")
        read = parquet.read_table(table, columns=["image_path", "caption"])
        paths += read["image_path"].to_pylist()
        captions += read["caption"].to_pylist()
    images, texts = _table(image_files, paths, tables[0]), _table(text_files, captions, tables[0])
    return {}, images, texts, [*tables, *image_files, *text_files]


def _number(path: Path) -> tuple[int, str]:
    digits = "".join(c for c in path.stem if c.isdigit())
    return int(digits or 0), path.name


def _read_csv(path: Path, *columns: str) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, restval=""))
    except (UnicodeDecodeError, csv.Error) as error:
        raise TeacherError(f"{path}: not readable as CSV in UTF-8 ({error})") from None
    if not rows or rows[0].keys().isdisjoint(columns):
        raise TeacherError(f"{path}: no rows, or no column {' or '.join(map(repr, columns))}")
    return rows


def _table(files: Sequence[Path], names: Sequence[str | None], listed: Path) -> _Table:
    """Return the vectors of the files with their names; one name has one embedding.

    Raises:
        TeacherError: the counts differ, a vector is NaN or zero, or two vectors have the same name.
    """
    vectors = _vectors(files, len(names))
    rows: dict[str, int] = {}
    for row, name in enumerate(one_form(name) if name else name for name in names):
        if name and rows.setdefault(name, row) != row and not np.array_equal(vectors[rows[name]], vectors[row]):
            raise TeacherError(f"{listed}: {name!r} has two different embeddings (rows {rows[name]}, {row})")
    return _Table(vectors, rows)


def _vectors(files: Sequence[Path], count: int) -> NDArray[Any]:
    parts = [_load(file) for file in files]
    widths = {part.shape[1] for part in parts}
    if len(widths) > 1:
        raise TeacherError(f"{files[0].parent}: files of different dimensions: {', '.join(map(str, sorted(widths)))}")
    vectors = np.concatenate(parts) if len(parts) > 1 else parts[0]
    if len(vectors) != count:
        raise TeacherError(f"{files[0]}: {len(vectors)} rows of embeddings, but its table has {count}")
    blocks = (vectors[start : start + BLOCK].astype(np.float32) for start in range(0, count, BLOCK))
    norms = np.concatenate([np.linalg.norm(block, axis=1) for block in blocks])
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        raise TeacherError(f"{files[0]}: {len(bad)} rows are NaN or zero, first row {bad[0]}; record them again")
    return vectors


def _load(file: Path) -> NDArray[Any]:
    try:
        vectors: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise TeacherError(f"{file}: not readable as an array ({error})") from None
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        raise TeacherError(f"{file}: not an array [n, d] of floating point numbers")
    return vectors


def _suffixes(rows: Mapping[str, int]) -> dict[str, int | None]:
    """Return the row of every tail of a path; None where several recorded paths have it."""
    found: dict[str, int | None] = {}
    for name, row in rows.items():
        parts = name.replace("\\", "/").split("/")
        for start in range(1, len(parts)):
            tail = "/".join(parts[start:])
            found[tail] = None if tail in found else row
    return found


def _digest(files: Sequence[Path]) -> str:
    sha = hashlib.sha256(f"recorded {EMBEDDING_VERSION}".encode())
    for file in files:
        with file.open("rb") as opened:
            sha.update(hashlib.file_digest(opened, "sha256").digest())
    return sha.hexdigest()[:32]
