"""Images with a class and a domain: their splits, exactly as DomainBed makes them, and which files of a folder count.

Nothing here knows of pixels.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vl2v.errors import DataError, did_you_mean

UNLABELLED = "unlabelled"
ONE_DOMAIN = "all"  # of images without domains


@dataclass(frozen=True)
class Excluded:
    """A file that was set aside, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class DomainDataset:
    """Images, each with a class and a domain.

    Attributes:
        root: the folder that `paths` are relative to.
        classes: names, sorted.
        domains: names, sorted; unlabelled images are a last domain of their own.
        paths: [n], in ImageFolder's order: by domain, class and file name.
        labels: [n] class indices, -1 without a label.
        domain_ids: [n] domain indices.
        splits: [n] "train", "val", "test" or None, where a manifest has them; else None.
        sha256: [n, 32] of the files' bytes, where a manifest has them (zeros where it hasn't); else None.
        notes: remarks on it, a line each.
    """

    root: Path
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    domain_ids: NDArray[np.int64]
    splits: tuple[str | None, ...] | None = None
    sha256: NDArray[np.uint8] | None = None
    excluded: tuple[Excluded, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def labelled_domains(self) -> list[str]:
        """The domains that have images with labels, in order."""
        return [self.domains[i] for i in np.unique(self.domain_ids[self.labels >= 0])]

    def file(self, index: int) -> Path:
        """Return where an image is."""
        return self.root / self.paths[index]

    def read(self, index: int) -> bytes:
        """Return an image file's own bytes.

        Raises:
            OSError: it can't be read, or is a link to outside the dataset's folder.
        """
        if self.sha256 is not None and self.sha256[index].any():  # nobody has checked where it leads
            inside = os.path.realpath(self.root) + os.sep
            if not os.path.realpath(self.file(index)).startswith(inside):
                raise PermissionError(errno.EPERM, "a path outside the dataset's folder")
        return self.file(index).read_bytes()

    def domain_index(self, name: str) -> int:
        """Return a domain's index.

        Raises:
            DataError: there is no such domain.
        """
        name = unicodedata.normalize("NFC", name)
        if name in self.domains:
            return self.domains.index(name)
        lost = [gone for gone in self.excluded if gone.path == name or gone.path.startswith(f"{name}/")]
        if lost:
            raise DataError(
                f"{self.root}: domain {name!r} has no usable images ({lost[0].path}: {lost[0].reason}); "
                "add some, or delete the folder"
            )
        if len(self.domains) == 1:
            raise DataError(
                f"{self.root}: no domain {name!r}; all its images form one, {self.domains[0]!r}: sort them into "
                "domain/class/image, or write a manifest with a domain column"
            )
        hint = did_you_mean(name, self.domains, f"its domains are {', '.join(self.domains)}")
        raise DataError(f"{self.root}: no domain {name!r}; {hint}")

    def indices(self, domain: str) -> NDArray[np.int64]:
        """Return the images of a domain."""
        return np.flatnonzero(self.domain_ids == self.domain_index(domain))

    def labelled(self, domain: str) -> NDArray[np.int64]:
        """Return the images of a domain that have a label."""
        return np.flatnonzero((self.domain_ids == self.domain_index(domain)) & (self.labels >= 0))

    def subset(self, indices: Iterable[int] | NDArray[np.int64]) -> DomainDataset:
        """Return the dataset of some of the images; classes and domains keep their indices."""
        chosen = np.fromiter(indices, np.int64)
        return replace(
            self,
            paths=tuple(self.paths[i] for i in chosen),
            labels=self.labels[chosen],
            domain_ids=self.domain_ids[chosen],
            splits=None if self.splits is None else tuple(self.splits[i] for i in chosen),
            sha256=None if self.sha256 is None else self.sha256[chosen],
        )

    def of_classes(self, names: Sequence[str]) -> DomainDataset:
        """Return the dataset with these classes only, in this order; no image is of another."""
        number = np.array([names.index(name) if name in names else -1 for name in self.classes] + [-1], np.int64)
        return replace(self, classes=tuple(names), labels=number[self.labels])  # -1, no label, stays -1

    def without(self, reasons: Mapping[int, str]) -> DomainDataset:
        """Return the dataset with some images (index -> why) set aside."""
        rest = self.subset([i for i in range(len(self)) if i not in reasons])
        gone = tuple(Excluded(self.paths[i], why) for i, why in sorted(reasons.items()))
        return replace(rest, excluded=self.excluded + gone)

    def noting(self, *notes: str) -> DomainDataset:
        """Return the dataset with another remark."""
        return replace(self, notes=self.notes + notes)


Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Dataset indices, sorted.

    Attributes:
        train: the source domains' images to learn from.
        val: the source domains' images to choose by.
        target: the unseen domains' images with labels.
        unlabelled: images without labels, the unseen domains' not among them.
    """

    train: Indices
    val: Indices
    target: Indices
    unlabelled: Indices


def seed_hash(*parts: object) -> int:
    """Return DomainBed's seed of anything: the MD5 of its tuple's text, modulo 2^31."""
    return int(hashlib.md5(str(parts).encode(), usedforsecurity=False).hexdigest(), 16) % 2**31


def domainbed_split(count: int, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Return (training, validation) indices in a domain of `count` images: the first share of a shuffle validates."""
    order = list(range(count))
    np.random.RandomState(seed).shuffle(order)
    held_out = int(count * fraction)
    return np.array(order[held_out:], np.int64), np.array(order[:held_out], np.int64)


def in_split(dataset: DomainDataset, domain: str, fraction: float, trial_seed: int) -> Indices:
    """Return the images of a target that DomainBed measures: all but the share that its oracle selects by."""
    images = dataset.labelled(domain)
    seed = seed_hash(trial_seed, dataset.domain_index(domain))
    return np.sort(images[domainbed_split(len(images), fraction, seed)[0]])


def leave_out(dataset: DomainDataset, target: Sequence[str], *, fraction: float = 0.2, trial_seed: int = 0) -> Split:
    """Split the source domains into training and validation; the target domains stay apart whole.

    A manifest's split column decides for the images that have one ("test" images of source domains are used for
    nothing); the others of a domain are split as DomainBed does.

    Raises:
        DataError: an unknown target, no source domain left, only one class, a source domain too small to split.
    """
    unseen = {dataset.domain_index(name) for name in target}
    if UNLABELLED in target:
        raise DataError(f"target {UNLABELLED!r}: images without labels can't be a target")
    if len(dataset.classes) < 2:
        raise DataError(f"{dataset.root}: only one class ({', '.join(dataset.classes)}); a classifier needs two")
    train, val = [], []
    labelled = dataset.labels >= 0
    present = set(np.unique(dataset.domain_ids[labelled]).tolist())
    for name in target:
        if dataset.domain_index(name) not in present:
            raise DataError(f"{dataset.root}: target {name} has no images with labels; choose another")
    for domain in sorted(present - unseen):
        images = np.flatnonzero((dataset.domain_ids == domain) & labelled)
        more, held_out = _split_domain(dataset, images, fraction, seed_hash(trial_seed, domain))
        if not len(more) or not len(held_out):
            wanting = "training" if len(held_out) else "validation"
            usable = "1 usable image and none of it" if len(images) == 1 else f"{len(images)} usable images and none"
            raise DataError(
                f"{dataset.root}: domain {dataset.domains[domain]} has {usable} for {wanting}; "
                "add images, or fix the manifest's split column"
            )
        train.append(more)
        val.append(held_out)
    if not train:
        raise DataError(f"{dataset.root}: every domain is a target, so none is left to train on; keep one as a source")
    learnt = set(dataset.labels[np.concatenate(train)].tolist())
    if len(learnt) < 2:
        raise DataError(f"{dataset.root}: only one class in the source domains; a classifier needs two")
    kept_apart = np.isin(dataset.domain_ids, list(unseen))
    return Split(
        np.sort(np.concatenate(train)),
        np.sort(np.concatenate(val)),
        np.flatnonzero(kept_apart & labelled),
        np.flatnonzero(~kept_apart & ~labelled),  # a target's images teach nothing, without labels either
    )


def hold_out(dataset: DomainDataset, groups: Sequence[Indices], *, fraction: float = 0.2, trial_seed: int = 0) -> Split:
    """Split images none of which has a label: a share of each group, drawn as DomainBed does, validates.

    Args:
        groups: the images of each folder; a further one changes nothing in those before it.

    Raises:
        DataError: too few images.
    """
    train, val = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    before = held = 0
    for number, group in enumerate(groups):
        order = group[np.concatenate(domainbed_split(len(group), 0, seed_hash(trial_seed, number)))]
        before += len(group)
        count = int(before * fraction) - held  # small folders have a part, too
        held += count
        train.append(order[count:])
        val.append(order[:count])
    if not held or held == before:
        raise DataError(f"{dataset.root}: {len(dataset)} usable images, too few to hold some out; add more")
    nothing = np.zeros(0, np.int64)
    return Split(nothing, np.sort(np.concatenate(val)), nothing, np.sort(np.concatenate(train)))


def _split_domain(dataset: DomainDataset, images: Indices, fraction: float, seed: int) -> tuple[Indices, Indices]:
    said = np.array([dataset.splits[i] if dataset.splits else None for i in images], dtype=object)
    free = images[said == None]  # noqa: E711
    train, val = domainbed_split(len(free), fraction if not (said == "val").any() else 0.0, seed)
    return (np.concatenate([free[train], images[said == "train"]]), np.concatenate([free[val], images[said == "val"]]))


SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".png", ".apng", ".webp", ".bmp"))
SUFFIXES |= {".dib", ".gif", ".tif", ".tiff"}
PASSED_OVER = "thumbnails and other files of a system's own"
_SYSTEM_FOLDERS = re.compile(
    r"__macosx|@eadir|@__thumb|@tmp|@(recently-snapshot|recycle|sharebin|sharesnap)|#recycle|[#~]snapshots?"
    r"|\$recycle\.bin|system volume information|found\.\d{3}|lost\+found|network trash folder|temporary items"
    r"|__pycache__",
    re.IGNORECASE,
)
"""Of macOS, Windows, Synology, QNAP, NetApp, ext4 and Python; what begins with a dot is hidden anyway."""
_SYSTEM_FILES = re.compile(
    r"(eh)?thumbs(_vista)?\.db(:.*)?|desktop\.ini|icon\r|picasa\.ini|zbthumbnail\.info|.*:zone\.identifier",
    re.IGNORECASE,
)
_IN_CLOUD = re.compile(r"\..+\.icloud")
NO_SUFFIX = "a file without a suffix"
_OUTSIDE = "a link to outside the dataset's folder"
_NOWHERE = "a link to nothing"
_NOT_UTF8 = "its name is not UTF-8"


def one_form(name: str) -> str:
    """Return a name in the one Unicode form (NFC) that names are compared in; macOS writes another (NFD)."""
    return unicodedata.normalize("NFC", name)


def printable(name: str) -> str:
    """Return a path with its bytes that are no UTF-8 written out."""
    return name.encode("utf-8", "backslashreplace").decode()


def image_files(root: Path, besides: Sequence[Path] = ()) -> tuple[list[tuple[str, ...]], list[Excluded]]:
    """Return the images' paths as parts, and what was set aside; the folders `besides` are not entered.

    Hidden files, and notes beside a dataset's folders, are passed over without a word; placeholders of images that
    macOS moved into iCloud are not.
    """
    inside = os.path.realpath(root) + os.sep
    elsewhere = set(map(os.path.realpath, besides))
    found: list[tuple[str, ...]] = []
    excluded: list[Excluded] = []

    def unreadable(error: OSError) -> None:
        excluded.append(Excluded(printable(os.path.relpath(error.filename, root)), f"can't be read ({error.strerror})"))

    for folder, folders, names in os.walk(root, followlinks=True, onerror=unreadable):
        parts = Path(folder).relative_to(root).parts
        excluded += [
            Excluded(printable("/".join((*parts, name))), "in iCloud only")
            for name in sorted(names)
            if _IN_CLOUD.fullmatch(name) and Path(name.removesuffix(".icloud")).suffix.lower() in SUFFIXES
        ]
        names = [name for name in names if not name.startswith(".")]
        folders[:] = [name for name in folders if not name.startswith(".")]
        own = [name for name in names if _SYSTEM_FILES.fullmatch(name)]
        if parts and all(map(_SYSTEM_FOLDERS.fullmatch, folders)) and len(own) == len(names):
            excluded.append(Excluded("/".join(parts), "an empty folder"))  # but for what is hidden or the system's own
        excluded += [Excluded("/".join((*parts, name)), PASSED_OVER) for name in sorted(own) if parts]
        entered = []
        for name in sorted(folders):
            if _SYSTEM_FOLDERS.fullmatch(name):
                excluded += _passed_over(root, (*parts, name))
                continue
            if os.path.realpath(os.path.join(folder, name)) in elsewhere:
                continue
            reason = _bad_folder(root, (*parts, name), inside)
            if reason is None:
                entered.append(name)
            else:
                excluded.append(Excluded(printable("/".join((*parts, name))), reason))
        folders[:] = entered
        for name in sorted(names):
            if name in own or (not parts and Path(name).suffix.lower() not in SUFFIXES):
                continue  # notes and licences beside the folders
            reason = _bad_file(os.path.join(folder, name), inside)
            if reason is None:
                found.append((*parts, name))
            else:
                excluded.append(Excluded(printable("/".join((*parts, name))), reason))
    return found, excluded


def _passed_over(root: Path, parts: tuple[str, ...]) -> list[Excluded]:
    below = Path(*parts)
    files = [Path(folder, name) for folder, _, names in os.walk(root / below) for name in names]
    images = sorted(file.relative_to(root).as_posix() for file in files if file.suffix.lower() in SUFFIXES)
    return [Excluded(printable(image), PASSED_OVER) for image in images]


def _bad_folder(root: Path, parts: tuple[str, ...], inside: str) -> str | None:
    if printable(parts[-1]) != parts[-1]:
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
    if printable(path) != path:
        return _NOT_UTF8
    if os.path.islink(path) and not os.path.exists(path):
        return _NOWHERE
    if os.path.islink(path) and not os.path.realpath(path).startswith(inside):
        return _OUTSIDE
    if suffix.lower() not in SUFFIXES:
        return f"not an image ({suffix})" if suffix else NO_SUFFIX
    return None if os.path.isfile(path) else "not a file"  # a pipe would be waited for
