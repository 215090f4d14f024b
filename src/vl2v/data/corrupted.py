"""A dataset's images corrupted and written as another dataset, whose domains are the corruptions."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vl2v.data.corruptions import check, corrupt
from vl2v.data.dataset import DomainDataset
from vl2v.data.decoding import ImageError, decode
from vl2v.errors import ConfigError, DataError
from vl2v.io import write_bytes, write_text
from vl2v.session import Progress, derive, silent

CLEAN = "clean"
QUALITY = 85  # as ImageNet-C was saved
_NOTES = "corruptions.json"
_CHUNK = 256


@dataclass(frozen=True)
class Written:
    """What was done.

    Attributes:
        domains: the dataset's, `clean` first.
    """

    domains: tuple[str, ...]
    images: int
    unreadable: int


def corrupt_dataset(
    dataset: DomainDataset,
    out: Path,
    *,
    kinds: Sequence[str],
    severities: Sequence[int],
    domains: Sequence[str] = (),
    images: int | None = None,
    size: int = 224,
    seed: int = 0,
    workers: int = 2,
    progress: Progress = silent,
) -> Written:
    """Write `{kind}-{severity}/class/image.jpg` below a folder, and the same images uncorrupted as `clean`.

    Every image is first shrunk until its shorter side has `size` pixels (smaller ones stay), then corrupted, then
    saved as JPEG of quality 85, as ImageNet-C is. Killed, it resumes where it was; more kinds and severities can be
    added to the folder later.

    Args:
        dataset: whose images; those without a label are left out.
        out: a new folder, or one that was written from the same images with the same size and seed.
        severities: 1 to 5.
        domains: of which the images are taken; by default all.
        images: at most so many of each domain, drawn by the seed; by default all.
        size: pixels of the shorter side.
        seed: of all that is random; with an image's bytes it decides how the image is corrupted.
        progress: called with the files that are written.

    Raises:
        ConfigError: an unknown kind or severity, or a size or number below 1.
        DataError: an unknown domain, another folder than described, or nothing that could be read.
    """
    for kind in kinds:
        for severity in severities:
            check(kind, severity)
    if size < 1 or (images is not None and images < 1):
        raise ConfigError("--size and --images must be 1 or more")
    chosen = _choose(dataset, domains, images, seed)
    _note(dataset, chosen, out, size, seed)
    wanted = [(CLEAN, 0), *((kind, severity) for kind in kinds for severity in severities)]
    unreadable = done = 0
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for start in range(0, len(chosen), _CHUNK):
            chunk = chosen[start : start + _CHUNK].tolist()
            for good in pool.map(lambda index: _write(dataset, index, out, wanted, size, seed), chunk):
                done += len(wanted)
                unreadable += not good
                progress("corrupting", done, len(chosen) * len(wanted), "")
    if unreadable == len(chosen):
        raise DataError(
            f"{dataset.root}: none of the {len(chosen)} chosen images can be read; `vl2v data inspect` says why"
        )
    return Written(tuple(_domain(*one) for one in wanted), len(chosen) - unreadable, unreadable)


def _domain(kind: str, severity: int) -> str:
    return f"{kind}-{severity}" if severity else kind


def _choose(dataset: DomainDataset, domains: Sequence[str], images: int | None, seed: int) -> NDArray[np.int64]:
    """Return indices, sorted."""
    chosen = []
    for domain in domains or dataset.domains:
        indices = dataset.labelled(domain)
        if images is not None:
            rng = np.random.default_rng(derive(seed, "corrupted pictures", domain))
            indices = rng.permutation(indices)[:images]
        chosen.append(indices)
    found: NDArray[np.int64] = np.sort(np.concatenate(chosen))
    if not len(found):
        raise DataError(f"{dataset.root}: no images with labels in {', '.join(domains or dataset.domains)}")
    for name in {dataset.classes[label] for label in dataset.labels[found]}:
        if name.startswith(".") or not {"/", "\\", "\0"}.isdisjoint(name):
            raise DataError(f"{dataset.root}: class {name!r} can't be a folder; rename it")
    return found


def _note(dataset: DomainDataset, chosen: NDArray[np.int64], out: Path, size: int, seed: int) -> None:
    """Write down what the folder is made of, or see that it is made of the same."""
    names = "\n".join(f"{i} {dataset.paths[i]} {dataset.labels[i]}" for i in chosen.tolist())
    made_of = {
        "images": len(chosen),
        "of": hashlib.sha256(names.encode()).hexdigest(),
        "size": size,
        "seed": seed,
        "jpeg_quality": QUALITY,
    }
    notes = out / _NOTES
    try:
        if notes.exists():
            before = json.loads(notes.read_text(encoding="utf-8"))
            if {"images" if k == "pictures" else k: v for k, v in before.items()} != made_of:  # the former name
                raise DataError(f"{out}: made from other images, or with another size or seed; choose another folder")
            return
        if out.exists() and any(out.iterdir()):
            raise DataError(f"{out}: holds something else; choose a new folder")
    except (OSError, ValueError) as error:
        raise DataError(f"{out}: can't be read ({error}); give another folder") from None
    write_text(notes, json.dumps(made_of, indent=2) + "\n", DataError)


def _write(
    dataset: DomainDataset, index: int, out: Path, wanted: Sequence[tuple[str, int]], size: int, seed: int
) -> bool:
    """Write one image's corruptions that aren't there yet; return whether it could be read."""
    name = f"{index:06d}-{Path(dataset.paths[index]).stem[:80]}.jpg"
    kind_of = dataset.classes[dataset.labels[index]]
    missing = [one for one in wanted if not (out / _domain(*one) / kind_of / name).exists()]
    if not missing:
        return True
    try:
        data = dataset.read(index)
        image = _shrunk(decode(data), size)
    except (OSError, ImageError):
        return False
    own = derive(seed, hashlib.sha256(data).hexdigest())
    for kind, severity in missing:
        changed = corrupt(image, kind, severity, own) if severity else image
        file = io.BytesIO()
        changed.save(file, "JPEG", quality=QUALITY)
        write_bytes(out / _domain(kind, severity) / kind_of / name, file.getvalue(), DataError, durable=False)
    return True


def _shrunk(image: Image.Image, size: int) -> Image.Image:
    short = min(image.size)
    if short <= size:
        return image
    width, height = (max(1, round(side * size / short)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)
