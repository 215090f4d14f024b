"""Datasets as people keep them: domain/class/image, class/image, or a manifest.

DomainBed's five (PACS, VLCS, OfficeHome, TerraIncognita, DomainNet) are all domain/class/image; the folder of the
dataset, or a folder that holds only one of them, can be opened.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vl2v.data.dataset import (
    ONE_DOMAIN,
    SUFFIXES,
    UNLABELLED,
    DomainDataset,
    Excluded,
    image_files,
    one_form,
    printable,
)
from vl2v.data.manifest import Row, read_manifest, without_listed
from vl2v.errors import DataError
from vl2v.names import check_name

SAMPLE = Path("icondg")
LAYOUTS = ("auto", "domains", "classes", "manifest")
DOMAINBED = ("pacs", "vlcs", "officehome", "terraincognita", "domainnet")
_SPLIT_NAMES = frozenset(
    (
        *("train", "training", "trn", "trainval", "trainset", "trainingsdaten", "entrenamiento"),
        *("val", "valid", "validate", "validation", "valset", "dev", "holdout", "heldout", "fold", "folds"),
        *("test", "testing", "tst", "testset", "testdaten", "prueba", "eval", "evaluation", "query", "gallery"),
    )
)
_BESIDE_SPLITS = frozenset(("unlabeled", "unlabelled", "extra", "all", "rest", "predict", "submission"))
_OF_SPLITS = frozenset(
    ("set", "data", "dataset", "image", "images", "img", "imgs", "split", "splits", "files", "bounding", "box", "crops")
)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_CONTROLS = re.compile(r"[\a\b\f\n\r\t\v]")  # what is left of a path of Windows in double quotes
_CONTAINERS = frozenset((".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".parquet", ".csv"))


def open_dataset(
    path: Path | str,
    *,
    layout: str = "auto",
    exclude: Path | None = None,
    unlabelled: Path | Sequence[Path] | None = None,
    unseen: Sequence[str] = (),
    classes: Sequence[str] = (),
    root: Path | None = None,
) -> DomainDataset:
    """Return the images of a folder or a manifest, in ImageFolder's order.

    Args:
        path: a folder, "icondg" (the sample that comes in the package, unless there is a folder of that name),
            "hf:NAME[@SPLIT]" (a dataset of the Hugging Face hub), or a CSV or Parquet file with the columns path,
            class, domain (or what COLUMNS has for them) and maybe split and sha256 (of the file's bytes, in
            hexadecimal; the file isn't read before it is needed then).
        layout: "domains" (domain/class/image), "classes" (class/image), "manifest", or "auto": what most images
            are at. Images in deeper folders are set aside by "auto"; else they are of the class they are under.
        exclude: a text or CSV file with one relative path a line, for example DomainNet's list of duplicates.
        unlabelled: folders of images without labels, or CSV or Parquet files that list them in a column path;
            together a domain of their own. Such a folder in `path` is no domain there.
        unseen: domains that stay domains, with their labels, where their folders are among `unlabelled`.
        classes: names of the classes where no image has a label: all of `path` is unlabelled then, too.
        root: the folder that a manifest's paths are relative to; by default its own.

    Raises:
        DataError: nothing there that can be used; the message says what was expected.

    Examples:
        >>> dataset = open_dataset("images")
        >>> len(dataset), dataset.domains, dataset.classes
        (108, ('chalk', 'ink', 'paint'), ('ball', 'box', 'cone'))
    """
    if str(path).startswith("hf:"):
        from vl2v.data.objects import hub_dataset

        path = hub_dataset(str(path))
    path = Path(path)
    if layout not in LAYOUTS:
        raise DataError(f"layout {layout!r}: choose one of {', '.join(LAYOUTS)}")
    if path == SAMPLE and not path.exists():
        from vl2v.data.archives import icondg

        path = icondg()
    if not path.exists():
        if _ADDRESS.match(str(path)):
            raise DataError(f"{path}: an address; download the images, and give their folder or manifest")
        raise DataError(f"{_shown(path)}: no such folder or manifest{_meant(path)}")
    if path.is_file() != (layout == "manifest") and layout != "auto":
        raise DataError(f"{path}: layout {layout} needs {'a .csv or .parquet file' if path.is_dir() else 'a folder'}")
    is_file = path.is_file()
    folders = [unlabelled] if isinstance(unlabelled, Path) else list(unlabelled or ())
    if classes:
        dataset = _with_unlabelled(_without_images(path.parent if is_file else path, classes), [path, *folders])
        return dataset if exclude is None else without_listed(dataset, exclude)
    dataset = (
        _from_rows(root or path.parent, *read_manifest(path, root or path.parent, ONE_DOMAIN))
        if is_file
        else _from_folder(path, layout, [folder for folder in folders if not _is_one_of(folder, path, unseen)])
    )
    if exclude is not None:
        dataset = without_listed(dataset, exclude)
    return _with_unlabelled(dataset, folders) if folders else dataset


def _shown(path: Path) -> str:
    return repr(str(path))[1:-1] if _CONTROLS.search(str(path)) else printable(str(path))


def _meant(path: Path) -> str:
    """Return what a path that isn't there may have been meant to be."""
    if _CONTROLS.search(str(path)):
        return " (a backslash in it was read as an escape: write the path in single quotes, or with /)"
    try:
        there = {entry.name.casefold(): entry.name for entry in path.parent.iterdir()}
    except OSError:
        return f"; there is no folder {path.parent} either" if path.parent.name and not path.parent.exists() else ""
    near = difflib.get_close_matches(path.name.casefold(), there, n=1, cutoff=0.75)
    return f"; did you mean {path.parent / there[near[0]]}?" if near else ""


def _is_one_of(folder: Path, path: Path, names: Sequence[str]) -> bool:
    return any(os.path.realpath(folder) == os.path.realpath(_benchmark_folder(path) / name) for name in names)


def _from_folder(path: Path, layout: str, besides: Sequence[Path]) -> DomainDataset:
    root = _benchmark_folder(path)
    files, excluded = image_files(root, besides)
    auto = layout == "auto"
    if auto:
        layout = _likely_layout(path, files)
    depth = 3 if layout == "domains" else 2
    fits = [len(parts) == depth or (len(parts) > depth and not auto) for parts in files]
    rows: list[Row] = [
        ("/".join(parts), one_form(parts[depth - 2]), one_form(parts[0]) if depth == 3 else ONE_DOMAIN, None, "")
        for parts, fit in zip(files, fits, strict=True)
        if fit
    ]
    shape = "domain/class/image" if depth == 3 else "class/image"
    excluded += [
        Excluded("/".join(parts), f"not at {shape}") for parts, fit in zip(files, fits, strict=True) if not fit
    ]
    if not rows:
        raise _nothing_in(path, excluded)
    if auto:
        _check_splits(path, rows)
    return _from_rows(root, rows, excluded)


def _likely_layout(path: Path, files: Sequence[tuple[str, ...]]) -> str:
    """Return where most images are.

    Raises:
        DataError: most are too deep: what the outer folders mean isn't clear, and a guess would be wrong labels.
    """
    depths = Counter(len(parts) for parts in files)
    deep = sum(count for depth, count in depths.items() if depth > 3)
    if deep > depths[2] + depths[3]:
        first = min(
            (parts for parts in files if len(parts) > 3), key=lambda parts: ("train" not in parts[0].lower(), parts)
        )
        raise DataError(
            f"{path}: {deep} images are deeper than domain/class/image, first {'/'.join(first)}; "
            f"open {path / first[0]}, or write a CSV manifest"
        )
    return "domains" if depths[3] and depths[3] >= depths[2] else "classes"


def _nothing_in(path: Path, excluded: Sequence[Excluded]) -> DataError:
    """Return what to say of a folder without images where they should be."""
    holds = sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in _CONTAINERS)
    table = bool(holds) and Path(holds[0]).suffix.lower() in (".csv", ".parquet")
    why = f"it holds {holds[0]}: {'give that file if it is the manifest' if table else 'unpack it'}" if holds else ""
    if excluded:
        (reason, count), *_ = Counter(gone.reason for gone in excluded).most_common(1)
        first = next(gone.path for gone in excluded if gone.reason == reason)
        links = "copy the files that the links point to into the folder (cp -rL)" if "a link" in reason else why
        why = f"{count} set aside: {reason}, first {first}" + (f"; {links}" if links else "")
    return DataError(
        f"{path}: no images at domain/class/image or class/image ({', '.join(sorted(SUFFIXES))})"
        + (f"; {why}" if why else "")
        + "; open the folder that holds them, or write a CSV manifest, which takes any layout"
    )


def split_like(names: Iterable[str]) -> list[str]:
    """Return the names that are those of a training, validation or test split."""
    return [name for name in names if _is_split(name)]


def _is_split(name: str) -> bool:
    """Whether a name is a split's, whatever surrounds it: train2017, test_images, Training Set."""
    words = [word for word in re.findall(r"[^\W\d_]+", name.lower()) if word not in _OF_SPLITS]
    return (bool(words) or "split" in name.lower()) and all(word in _SPLIT_NAMES for word in words)


def _check_splits(path: Path, rows: Sequence[Row]) -> None:
    """Refuse splits that would be taken for domains or classes.

    Raises:
        DataError: all domains, or all classes, are called like splits, or a training split and another one are there.
    """
    for what, names in (("domains", {row[2] for row in rows}), ("classes", {row[1] for row in rows})):
        splits = split_like(names)
        training = [name for name in splits if "train" in name.lower()]
        others = [name for name in names if name not in splits and name.lower() not in _BESIDE_SPLITS]
        if len(names) > 1 and splits and (not others or (training and len(splits) > 1)):
            alike = sorted(names - set(others))
            raise DataError(
                f"{path}: {', '.join(alike)} look like splits of the data, not like {what}; open one of them "
                f"({path / min(training or names)}), write a CSV manifest with a split column, "
                f"or set data.layout (--layout) if they are {what}"
            )


def _benchmark_folder(path: Path) -> Path:
    """Return the one folder of a DomainBed dataset in a folder of datasets; else the folder itself.

    A folder that has a benchmark's name, but holds class/image, is a domain.
    """
    try:
        folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
    except OSError as error:
        raise DataError(f"{path}: the folder can't be read ({error.strerror})") from None
    found = [entry for entry in folders if entry.name.lower().replace("_", "").replace("-", "") in DOMAINBED]
    return found[0] if len(found) == 1 and _has_domains(found[0]) else path


def _has_domains(folder: Path) -> bool:
    """Whether a folder's first images are at domain/class/image."""
    for inside, folders, names in os.walk(folder, followlinks=True):
        depth = len(Path(inside).relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if depth < 3 else []
        if depth and any(Path(name).suffix.lower() in SUFFIXES for name in names if not name.startswith(".")):
            return depth == 2
    return False


def _from_rows(
    root: Path, rows: Iterable[Row], excluded: Sequence[Excluded], notes: tuple[str, ...] = ()
) -> DomainDataset:
    """Return the dataset of rows, sorted as DomainBed's ImageFolder does: by domain, class, folder and file name.

    Raises:
        DataError: a class or a domain whose name can't be seen as it is.
    """
    chosen = sorted(rows, key=lambda row: (row[2], row[1], *os.path.split(one_form(row[0]))))
    classes = tuple(sorted({row[1] for row in chosen if row[1]}))
    domains = tuple(sorted({row[2] for row in chosen}))
    for name in (*classes, *domains):
        check_name(name)
    label = {name: i for i, name in enumerate(classes)} | {"": -1}
    domain_id = {name: i for i, name in enumerate(domains)}
    return DomainDataset(
        root=root,
        classes=classes,
        domains=domains,
        paths=tuple(row[0] for row in chosen),
        labels=np.array([label[row[1]] for row in chosen], np.int64),
        domain_ids=np.array([domain_id[row[2]] for row in chosen], np.int64),
        splits=tuple(row[3] for row in chosen) if any(row[3] for row in chosen) else None,
        sha256=_hashes(chosen) if any(row[4] for row in chosen) else None,
        excluded=tuple(excluded),
        notes=notes,
    )


def _hashes(rows: Sequence[Row]) -> NDArray[np.uint8]:
    raw = b"".join(bytes.fromhex(row[4]) if row[4] else bytes(32) for row in rows)
    return np.frombuffer(raw, np.uint8).reshape(len(rows), 32)


def _without_images(root: Path, classes: Sequence[str]) -> DomainDataset:
    """Return a dataset that has classes only.

    Raises:
        DataError: fewer than two, one twice, or one whose name can't be seen as it is.
    """
    names = sorted(check_name(one_form(name)) for name in classes)
    twice = [name for name, other in itertools.pairwise(names) if name == other]
    if twice or len(names) < 2:
        raise DataError(
            f"classes {', '.join(names)}: {f'{twice[0]!r} is there twice' if twice else 'a classifier needs two'}"
        )
    nothing = np.zeros(0, np.int64)
    return DomainDataset(root, tuple(names), (), (), nothing, nothing)


def _with_unlabelled(dataset: DomainDataset, folders: Sequence[Path]) -> DomainDataset:
    """Add the images of folders, at any depth, and of manifests as a last domain without labels."""
    if UNLABELLED in dataset.domains:
        raise DataError(f"{dataset.root}: has a domain {UNLABELLED!r} already; rename it")
    dataset = replace(dataset, domains=(*dataset.domains, UNLABELLED))
    for folder in folders:
        if folder.is_file():
            rows, excluded, _ = read_manifest(folder, folder.parent, UNLABELLED, labelled=False)
            dataset = _with_files(dataset, folder.parent, [tuple(row[0].split(os.sep)) for row in rows], excluded)
            continue
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder of unlabelled images, and no such CSV or Parquet file")
        files, excluded = image_files(folder)
        if not files:
            raise DataError(f"{folder}: no images in it ({', '.join(sorted(SUFFIXES))})")
        dataset = _with_files(dataset, folder, files, excluded)
    return dataset


def _with_files(
    dataset: DomainDataset, folder: Path, files: Sequence[tuple[str, ...]], excluded: Sequence[Excluded]
) -> DomainDataset:
    """Add a folder's images to the last domain, but those that are in it already, by another folder's name."""
    # from real folder to real folder: ".." beyond a link leads elsewhere
    below = os.path.relpath(os.path.realpath(folder), os.path.realpath(dataset.root))
    above = "" if below == "." else f"{below}/"
    there = {dataset.paths[i] for i in np.flatnonzero(dataset.domain_ids == len(dataset.domains) - 1)}
    paths = [above + "/".join(parts) for parts in sorted(files, key=lambda parts: tuple(map(one_form, parts)))]
    paths = [path for path in paths if path not in there]
    count = len(paths)
    return replace(
        dataset,
        paths=(*dataset.paths, *paths),
        labels=np.concatenate([dataset.labels, np.full(count, -1)]),
        domain_ids=np.concatenate([dataset.domain_ids, np.full(count, len(dataset.domains) - 1)]),
        splits=None if dataset.splits is None else (*dataset.splits, *([None] * count)),
        sha256=None if dataset.sha256 is None else np.concatenate([dataset.sha256, np.zeros((count, 32), np.uint8)]),
        excluded=dataset.excluded + tuple(replace(gone, path=f"{above}{gone.path}") for gone in excluded),
    )
