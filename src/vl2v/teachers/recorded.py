"""Answers that were recorded before: embeddings in .npy files and tables of what each row is.

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

from vl2v.errors import TeacherError, need_extra
from vl2v.teachers.protocol import ANSWER_VERSION, EncodedImage, Vectors


@dataclass(frozen=True)
class _Table:
    """Vectors, and the row of each thing by every name that it goes by."""

    vectors: NDArray[Any]
    rows: Mapping[str, int]


class RecordedTeacher:
    """A teacher that can only repeat what was recorded.

    A picture is found by the SHA-256 of its file where the recording has it, else by its path, or by a path of the
    recording that ends in it.
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
                f"recorded:{folder}: picture embeddings have {images.vectors.shape[1]} numbers, text embeddings "
                f"{texts.vectors.shape[1]}; they are of different models"
            )
        self.name = f"recorded:{about.get('name', folder.name)}"
        self.dim = int(images.vectors.shape[1])
        scale = about.get("logit_scale")
        self.logit_scale = float(scale) if scale else None
        self.fingerprint = _digest(files)
        self._folder = folder
        self._images = images
        self._texts = texts
        self._suffixes = _unique_suffixes(images.rows)

    def embed_images(self, images: Sequence[EncodedImage]) -> Vectors:
        """Return I(x) [n, d], unit rows.

        Raises:
            TeacherError: pictures that the recording doesn't have.
        """
        rows = [self._row(image) for image in images]
        missing = [image.name for image, row in zip(images, rows, strict=True) if row is None]
        if missing:
            raise TeacherError(
                f"recorded:{self._folder}: no answer for {len(missing)} of {len(images)} pictures, first "
                f"{', '.join(missing[:3])}; record them too, or leave them out with data.exclude"
            )
        return _unit(self._images.vectors[[row for row in rows if row is not None]])

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Return the texts' embeddings [n, d], unit rows.

        Raises:
            TeacherError: texts that the recording doesn't have.
        """
        missing = [text for text in texts if text not in self._texts.rows]
        if missing:
            known = ", ".join(repr(text) for text in list(self._texts.rows)[:8])
            raise TeacherError(
                f"recorded:{self._folder}: no answer for the text {missing[0]!r} (and {len(missing) - 1} more); it "
                f"has {len(self._texts.rows)} texts: {known}...; choose prompts.templates among them "
                "(prompts.articles=false writes 'a elephant')"
            )
        return _unit(self._texts.vectors[[self._texts.rows[text] for text in texts]])

    def _row(self, image: EncodedImage) -> int | None:
        digest = hashlib.sha256(image.data).hexdigest()
        for name in (digest, image.name):
            if name in self._images.rows:
                return self._images.rows[name]
        return self._suffixes.get(image.name)


def open_recorded(rest: str, **options: Any) -> RecordedTeacher:
    """Open a folder of recorded answers.

    Raises:
        TeacherError: options were given (there is nothing to compute), or the folder can't be read.
    """
    if options:
        raise TeacherError(f"recorded:{rest}: takes no {', '.join(options)}; its answers are as they were recorded")
    return RecordedTeacher(Path(rest).expanduser())


_Recording = tuple[dict[str, Any], _Table, _Table, list[Path]]


def _ours(folder: Path) -> _Recording:
    names = ("image_embeddings.npy", "images.csv", "text_embeddings.npy", "texts.csv")
    for name in names:
        if not (folder / name).is_file():
            raise TeacherError(
                f"{folder / name}: missing; a recording has {', '.join(names)}, or clip-retrieval's img_emb/"
            )
    info = folder / "vendor.json"
    about = json.loads(info.read_text(encoding="utf-8")) if info.is_file() else {}
    pictures = _read_csv(folder / "images.csv", "path")
    hashed = all(row.get("sha256") for row in pictures)
    images = {row["sha256" if hashed else "path"]: i for i, row in enumerate(pictures)}
    texts = {row["text"]: i for i, row in enumerate(_read_csv(folder / "texts.csv", "text"))}
    return (
        about,
        _Table(_vectors([folder / names[0]], len(pictures)), images),
        _Table(_vectors([folder / names[2]], len(texts)), texts),
        [folder / name for name in names],
    )


def _clip_retrieval(folder: Path) -> _Recording:
    parquet = need_extra("pyarrow.parquet", "parquet")
    tables = sorted((folder / "metadata").glob("*.parquet"), key=_number)
    image_files = sorted((folder / "img_emb").glob("*.npy"), key=_number)
    text_files = sorted((folder / "text_emb").glob("*.npy"), key=_number)
    if not tables or not image_files or not text_files:
        raise TeacherError(
            f"{folder}: clip-retrieval's layout has img_emb/*.npy, text_emb/*.npy and metadata/*.parquet"
        )
    rows = [row for table in tables for row in parquet.read_table(table).to_pylist()]
    if "image_path" not in rows[0] or "caption" not in rows[0]:
        raise TeacherError(f"{tables[0]}: has no image_path and caption; it has {', '.join(rows[0])}")
    images = _Table(_vectors(image_files, len(rows)), {row["image_path"]: i for i, row in enumerate(rows)})
    captions = {row["caption"]: i for i, row in reversed(list(enumerate(rows)))}
    return {}, images, _Table(_vectors(text_files, len(rows)), captions), [*tables, *image_files, *text_files]


def _number(path: Path) -> tuple[int, str]:
    digits = "".join(c for c in path.stem if c.isdigit())
    return int(digits or 0), path.name


def _read_csv(path: Path, column: str) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or column not in rows[0]:
        raise TeacherError(f"{path}: no column {column!r}")
    return rows


def _vectors(files: Sequence[Path], count: int) -> NDArray[Any]:
    try:
        vectors = np.concatenate([np.load(file, mmap_mode="r", allow_pickle=False) for file in files])
    except (ValueError, OSError) as error:
        raise TeacherError(f"{files[0]}: not readable as an array ({error})") from None
    if vectors.ndim != 2 or len(vectors) != count:
        raise TeacherError(f"{files[0]}: shape {vectors.shape}, but its table has {count} rows")
    norms = np.linalg.norm(vectors.astype(np.float32), axis=1)
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        raise TeacherError(f"{files[0]}: {len(bad)} rows are NaN or zero, first row {bad[0]}; record them again")
    return vectors


def _unique_suffixes(rows: Mapping[str, int]) -> dict[str, int]:
    """Return the row of every tail of a path that only one recorded path has."""
    found: dict[str, int | None] = {}
    for name, row in rows.items():
        parts = name.split("/")
        for start in range(1, len(parts)):
            tail = "/".join(parts[start:])
            found[tail] = None if tail in found else row
    return {tail: row for tail, row in found.items() if row is not None}


def _unit(rows: NDArray[Any]) -> Vectors:
    vectors = rows.astype(np.float32)
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _digest(files: Sequence[Path]) -> str:
    sha = hashlib.sha256(f"recorded {ANSWER_VERSION}".encode())
    for file in files:
        with file.open("rb") as opened:
            sha.update(hashlib.file_digest(opened, "sha256").digest())
    return sha.hexdigest()[:32]
