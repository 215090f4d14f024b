"""Datasets that are objects in memory, written once as files and a manifest, which all of vl2v opens."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from vl2v.data.dataset import ONE_DOMAIN
from vl2v.data.manifest import COLUMNS, column_of
from vl2v.errors import DataError, need_extra
from vl2v.io import replacing, write_text

MANIFEST = "manifest.csv"
_AS_PNG = ("RGB", "L", "RGBA", "LA", "P", "1", "I;16")
_AS_TIFF = ("I", "I;16B", "F")  # what PNG doesn't hold; decoding scales or refuses it, as it does anyone's file

Item = tuple[bytes, str, str]
"""(an image file's bytes, class, domain); class "" is none."""


def write_dataset(data: Any, folder: Path | str, *, domain: Callable[[int], str] | None = None) -> Path:
    """Write a dataset that is an object as files and a manifest, and return the manifest.

    Files that are there already stay, so that a second call with the same images writes the manifest only.

    Args:
        data: a torchvision ImageFolder, any map-style dataset of (image, label), a Hugging Face datasets.Dataset with
            columns for image, label and maybe domain, or a pandas frame of paths, labels and maybe domains.
        folder: new, or of an earlier call.
        domain: gives the domain of an image by its index; by default the column, or one domain for all.

    Raises:
        DataError: not such an object, or an image of it can't be read.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> from vl2v.data import open_dataset, write_dataset
        >>> images = [(Image.new("RGB", (8, 8), (90 * n, 0, 0)), n % 2) for n in range(4)]
        >>> folder = tempfile.mkdtemp()
        >>> dataset = open_dataset(write_dataset(images, folder, domain=lambda index: ("ink", "oil")[index // 2]))
        >>> dataset.classes, dataset.domains, len(dataset)
        (('0', '1'), ('ink', 'oil'), 4)
    """
    folder = Path(folder)
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("path", "class", "domain"))
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for index, (content, label, own) in enumerate(_items(data)):
        name = f"images/{index:06d}-{hashlib.sha256(content).hexdigest()[:16]}{_suffix(content)}"
        if not (folder / name).is_file():
            with replacing(folder / name, DataError, durable=False) as temporary:
                temporary.write_bytes(content)
        rows.writerow((name, label, domain(index) if domain else own))
    write_text(folder / MANIFEST, table.getvalue())
    return folder / MANIFEST


def hub_dataset(address: str) -> Path:
    """Return the manifest of a dataset of the Hugging Face hub (or a local one that `datasets` reads), downloaded once.

    Args:
        address: "hf:NAME", or "hf:NAME@SPLIT"; the split is "train" by default.

    Raises:
        MissingExtra: `datasets` isn't installed.
        DataError: it can't be had, or isn't a dataset of labelled images.
    """
    name, _, split = address.removeprefix("hf:").partition("@")
    split = split or "train"
    key = hashlib.sha256(f"{name}@{split}".encode()).hexdigest()[:16]
    import platformdirs

    folder = Path(platformdirs.user_cache_dir("vl2v", appauthor=False)) / "datasets" / key
    if (folder / MANIFEST).is_file():
        return folder / MANIFEST
    load_dataset = need_extra("datasets", "datasets").load_dataset
    try:
        data = load_dataset(name, split=split)
    except Exception as error:  # whatever the hub, the network and the dataset's own files raise
        raise DataError(f"{address}: can't be loaded ({' '.join(str(error).split()):.200})") from None
    return write_dataset(data, folder)


def _items(data: Any) -> Iterator[Item]:
    if hasattr(data, "samples") and hasattr(data, "classes"):
        return _of_folder(data)
    if hasattr(data, "features") and hasattr(data, "column_names"):
        return _of_columns(data)
    if hasattr(data, "columns") and hasattr(data, "to_dict"):
        return _of_frame(data)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, str | bytes | dict):
        return _of_pairs(data)
    raise DataError(
        f"{type(data).__name__}: not a dataset; give a folder, a manifest, a torchvision or Hugging Face dataset, "
        "a pandas frame, or a sequence of (image, label)"
    )


def _of_folder(data: Any) -> Iterator[Item]:
    """Yield the files of a torchvision ImageFolder as they are; its transform isn't applied."""
    for path, label in data.samples:
        yield _read(Path(path)), str(data.classes[label]), ONE_DOMAIN


def _of_columns(data: Any) -> Iterator[Item]:
    """Yield the rows of a Hugging Face dataset; images that are stored as files keep their bytes."""
    names, features = data.column_names, data.features
    kinds = {name: type(features[name]).__name__ for name in names}
    images = [name for name in names if kinds[name] == "Image"]
    labels = [name for name in names if kinds[name] == "ClassLabel"]
    image = images[0] if images else _column(names, "path")
    label = labels[0] if labels else _column(names, "class")
    column = column_of(names, "domain")
    if images:
        data = data.cast_column(image, type(features[image])(decode=False))
    for row in data:
        words = []
        for name in (label, column):
            value = row[name] if name else None
            if name and kinds[name] == "ClassLabel":
                value = None if value in (None, -1) else features[name].int2str(value)
            words.append(_word(value))
        yield _content(row[image]), words[0], words[1] or ONE_DOMAIN


def _of_frame(data: Any) -> Iterator[Item]:
    """Yield the rows of a pandas frame; its paths are relative to the working folder."""
    names = [str(name) for name in data.columns]
    path, label = _column(names, "path"), _column(names, "class")
    column = column_of(names, "domain")
    for row in data.to_dict("records"):
        domain = _word(row[column]) if column else ""
        yield _content(row[path]), _word(row[label]), domain or ONE_DOMAIN


def _of_pairs(data: Any) -> Iterator[Item]:
    classes = getattr(data, "classes", None)
    for index in range(len(data)):
        image, label = data[index][:2]
        numbered = classes is not None and not isinstance(label, str)
        yield _content(image), str(classes[int(label)] if numbered and classes else label), ONE_DOMAIN


def _word(value: Any) -> str:
    """Return a class or domain as it is written in a manifest; "" if it is missing."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # in a column of whole numbers with a gap, all become decimals
    return str(value)


def _column(names: list[str], wanted: str) -> str:
    found = column_of(names, wanted)
    if found is None:
        raise DataError(f"no {wanted} column among {', '.join(names)}; name one {' or '.join(COLUMNS[wanted][:3])}")
    return found


def _content(image: Any) -> bytes:
    """Return an image as a file: bytes as they are, a path's file, a Hugging Face image, pixels as PNG."""
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return _read(Path(image))
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        known = image.mode in (*_AS_PNG, *_AS_TIFF)
        (image if known else image.convert("RGB")).save(buffer, "TIFF" if image.mode in _AS_TIFF else "PNG")
        return buffer.getvalue()
    raise DataError(f"{type(image).__name__}: not an image; give a PIL image, a path or a file's bytes (no transform)")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from None


def _suffix(content: bytes) -> str:
    starts = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp", b"GIF8": ".gif", b"BM": ".bmp"}
    return next((suffix for start, suffix in starts.items() if content.startswith(start)), ".tiff")
