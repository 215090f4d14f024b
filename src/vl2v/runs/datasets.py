"""The images a run learns from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vl2v.config import DataConfig, RunConfig
from vl2v.data.auditing import Audit, audit, set_aside
from vl2v.data.dataset import SUFFIXES, DomainDataset, Split, hold_out, leave_out
from vl2v.data.inspection import Inspection, inspect
from vl2v.data.layouts import open_dataset
from vl2v.data.manifest import read_manifest
from vl2v.errors import ConfigError, DataError
from vl2v.names import UNKNOWN, same_name
from vl2v.session import Progress, Session, silent
from vl2v.teachers.prompts import prompts_for, read_prompts, same_prompts


@dataclass(frozen=True)
class Sources:
    """The images a run learns from; the unseen domains' images are not among them.

    `split` and `audit` go by the indices of `dataset`.

    Attributes:
        dataset: with the classes that there is something to learn of.
        others: the other classes, which a student has by their texts alone: nothing is learnt from their names.
        unlabelled_domains: how many domains the images without labels count as in a batch; "auto": each of the folders
            is one, and what lies elsewhere one more.
        folders: where images without labels lie, as paths from the dataset's root.
    """

    dataset: DomainDataset
    audit: Audit
    split: Split
    others: tuple[str, ...] = ()
    unlabelled_domains: int | Literal["auto"] = "auto"
    folders: tuple[str, ...] = ()

    @property
    def with_others(self) -> DomainDataset:
        """The dataset with all classes."""
        return self.dataset.of_classes(sorted((*self.dataset.classes, *self.others)))

    def groups(self, unlabelled: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Return the training images of each domain, then those without labels that are given, domain by domain."""
        domains = self.dataset.domain_ids[self.split.train]
        groups = [self.split.train[domains == domain] for domain in np.unique(domains)]
        if not len(unlabelled):
            return groups
        if self.unlabelled_domains == "auto":
            return groups + by_folder(self.dataset, unlabelled, self.folders)
        return groups + [unlabelled] * self.unlabelled_domains

    @property
    def training(self) -> NDArray[np.int64]:
        """All training images, labelled or not, sorted."""
        return np.sort(np.concatenate([self.split.train, self.split.unlabelled]))

    @property
    def queried(self) -> NDArray[np.int64]:
        """The images that the teacher may be queried about, sorted: without any label the held-out ones, too."""
        return self.training if self.labelled else np.sort(np.concatenate([self.training, self.split.val]))

    def candidates(self, select_from: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the images that are queried in any case, and those that `teacher.select` chooses from.

        Raises:
            ConfigError: no image is without a label.
        """
        if select_from == "all":
            return self.queried[:0], self.queried
        if not len(self.split.unlabelled):
            raise ConfigError(
                f"teacher.select_from = {select_from!r}: {self.dataset.root} has no images without labels; name some "
                "with --unlabelled"
            )
        return self.split.train, self.split.unlabelled

    def with_validation(self) -> Sources:
        """Return the same, with the validation images among those to learn from, too."""
        name = "train" if self.labelled else "unlabelled"
        more = np.sort(np.concatenate([getattr(self.split, name), self.split.val]))
        return replace(self, split=replace(self.split, **{name: more}))

    @property
    def labelled(self) -> bool:
        """Whether there are images with labels to learn from; else the teacher's word stands for them."""
        return len(self.split.train) > 0

    @property
    def names(self) -> list[str]:
        """The source domains, in order."""
        return list(self.counts)

    @property
    def counts(self) -> dict[str, int]:
        """How many labelled training images each source domain has, in the order of `names`."""
        domains, counts = np.unique(self.dataset.domain_ids[self.split.train], return_counts=True)
        return {self.dataset.domains[i]: int(count) for i, count in zip(domains, counts, strict=True)}


def audit_cache(store: Path) -> Path:
    """Return the file in a store's folder that caches audits of images."""
    return store / "audit.sqlite"


def open_data(data: DataConfig) -> DomainDataset:
    """Open a dataset as its settings say, without the unlabelled images that lie elsewhere.

    Raises:
        DataError: it can't be read.
    """
    return open_dataset(data.path, layout=data.layout, exclude=data.exclude, classes=data.classes)


def _open_all(data: DataConfig) -> DomainDataset:
    """Open a dataset as its settings say, with the unlabelled images that lie elsewhere."""
    return open_dataset(
        data.path,
        layout=data.layout,
        exclude=data.exclude,
        unlabelled=data.unlabelled,
        unseen=data.target,
        classes=data.classes,
    )


class Images:
    """A dataset on its way through a run: listed once, and each file audited once.

    Args:
        data: its settings.
    """

    def __init__(self, data: DataConfig, session: Session) -> None:
        self.data, self.session = data, session
        self._audited: Audit | None = None  # of `listed`; of an image that wasn't audited yet, empty
        self._done = np.zeros(0, np.bool_)

    @cached_property
    def listed(self) -> DomainDataset:
        """Every image by name, no file opened; unlabelled ones that lie elsewhere, too."""
        return _open_all(self.data)

    @cached_property
    def sources(self) -> Sources:
        """The images to learn from; what can't be decoded is set aside.

        The unseen domains' files are not opened: what is in them can't change a weight.

        Raises:
            DataError: unknown or missing domains, one class only, a class called "unknown", and the like.
        """
        data, everything = self.data, _checked(self.listed)
        if data.classes:
            dataset, found = self._usable(np.arange(len(everything)))
            folders = _folders_of(data, dataset.root)
            groups = by_folder(dataset, np.arange(len(dataset)), folders)
            split = hold_out(dataset, groups, fraction=data.holdout, trial_seed=data.split_seed)
            return Sources(dataset, found, split, (), data.unlabelled_domains, folders)
        split = leave_out(everything, data.target, fraction=data.holdout, trial_seed=data.split_seed)
        images = np.sort(np.concatenate([split.train, split.val, split.unlabelled]))
        dataset, found = self._usable(images)
        split = leave_out(dataset, [], fraction=data.holdout, trial_seed=data.split_seed)
        there = {dataset.classes[label] for label in np.unique(dataset.labels) if label >= 0}
        names, others = (tuple(name for name in dataset.classes if (name in there) == own) for own in (True, False))
        folders = _folders_of(data, dataset.root)
        return Sources(dataset.of_classes(names), found, split, others, data.unlabelled_domains, folders)

    @cached_property
    def all(self) -> tuple[DomainDataset, Audit]:
        """All images that can be used, those of unseen domains, too, but no unlabelled ones that lie elsewhere.

        Raises:
            DataError: they can't be listed.
        """
        if self.data.unlabelled:
            return Images(self.data.model_copy(update={"unlabelled": None}), self.session).all
        return self._usable(np.arange(len(self.listed)))

    def _usable(self, images: NDArray[np.int64]) -> tuple[DomainDataset, Audit]:
        """Return some of the listed images, without those that can't be decoded."""
        return _decodable(self.listed.subset(images), self._audit(images))

    def _audit(self, images: NDArray[np.int64]) -> Audit:
        count = len(self.listed)
        if self._audited is None:
            self._audited, self._done = Audit((b"",) * count, {}, {}, (b"",) * count), np.zeros(count, np.bool_)
        missing = images[~self._done[images]]
        if len(missing):
            cache = audit_cache(self.session.store)
            found = audit(self.listed.subset(missing), cache=cache, progress=self.session.progress)
            self._audited = self._audited.with_parts(missing, found)
            self._done[missing] = True
        return self._audited.subset(images)


def named_unlabelled(data: DataConfig) -> list[Path]:
    """Return the folders, and the files that list images, that `data.unlabelled` names."""
    if isinstance(data.unlabelled, list):
        return data.unlabelled
    return [] if data.unlabelled is None else [data.unlabelled]


def _folders_of(data: DataConfig, root: Path) -> tuple[str, ...]:
    """Return the folders of images without labels, and those of files that list them, as paths from a root."""
    named = [os.path.realpath(path.parent if path.is_file() else path) for path in named_unlabelled(data)]
    folders = [os.path.relpath(path, os.path.realpath(root)) for path in named]
    return tuple(dict.fromkeys(["."] * bool(data.classes) + folders))  # of these images, `data.path` is the root


def by_folder(dataset: DomainDataset, images: NDArray[np.int64], folders: Sequence[str]) -> list[NDArray[np.int64]]:
    """Return some images in groups: those of each folder, if there are any, then those of none of the folders.

    Args:
        folders: as paths from the dataset's root; of one in another the inner one counts.
    """
    starts = ["" if folder == "." else f"{folder}/" for folder in folders]
    inner = sorted(range(len(starts)), key=lambda number: -len(starts[number]))
    paths = [dataset.paths[image] for image in images.tolist()]
    where = np.array([next((i for i in inner if path.startswith(starts[i])), len(folders)) for path in paths])
    return [images[where == number] for number in np.unique(where)]


def gone(data: DataConfig) -> list[Path]:
    """Return the folders of images without labels, and files that list them, that have no image any more."""

    def is_there(path: Path) -> bool:
        if path.is_dir():
            return any(file.suffix.lower() in SUFFIXES for file in path.rglob("*"))  # up to the first one
        with suppress(DataError):  # none of its images is there
            return path.is_file() and bool(read_manifest(path, path.parent, "", labelled=False)[0])
        return False

    return [path for path in named_unlabelled(data) if not is_there(path)]


def at_hand(data: DataConfig) -> DataConfig:
    """Return settings without the folders of images without labels that are gone: what measures a student has labels.

    Where no image has a label, nothing is left out.
    """
    if data.classes or not (missing := gone(data)):
        return data
    there = [path for path in named_unlabelled(data) if path not in missing]
    return data.model_copy(update={"unlabelled": there or None})


def open_sources(config: RunConfig, session: Session) -> Sources:
    """Return the images that a run learns from; see `Images.sources`."""
    return Images(config.data, session).sources


def open_everything(config: RunConfig, session: Session) -> Sources:
    """Open all images but the unseen domains', to be queried: every one counts as a training image.

    Raises:
        DataError: unknown domains, a class called "unknown", no usable images.
    """
    data = config.data
    dataset = _checked(_open_all(data))
    unseen = [dataset.domain_index(name) for name in data.target]
    if unseen:
        dataset = dataset.subset(np.flatnonzero(~np.isin(dataset.domain_ids, unseen)))
    dataset, found = usable(dataset, session, trust=True)
    labelled = dataset.labels >= 0
    nothing = np.zeros(0, np.int64)
    return Sources(dataset, found, Split(np.flatnonzero(labelled), nothing, nothing, np.flatnonzero(~labelled)))


def _checked(dataset: DomainDataset) -> DomainDataset:
    for name in dataset.classes:
        if same_name(name) == UNKNOWN:
            raise DataError(
                f"{dataset.root}: class {name!r}: {UNKNOWN!r} is what is predicted where no class is likely enough; "
                "rename it"
            )
    return dataset


def inspect_data(config: RunConfig, store: Path, teacher: object = None, progress: Progress = silent) -> Inspection:
    """Find what would spoil a run on this dataset, before anything is queried; see `vl2v.data.inspect`.

    Args:
        teacher: whose reading of the class prompts is checked; None: only that no two classes have the same.

    Raises:
        DataError: the dataset can't be opened, or has no such target.
        ConfigError: prompts that can't be filled in.
    """
    data = config.data
    dataset = open_data(data)
    found = audit(dataset, cache=audit_cache(store), progress=progress)
    inspection = inspect(dataset, found, data.target, holdout=data.holdout, split_seed=data.split_seed)
    sources = [name for name in dataset.labelled_domains if name not in data.target]
    groups = prompts_for(dataset.classes, config.prompts, sources)
    alike, cut = read_prompts(dataset.classes, groups, teacher)
    alike = same_prompts(dataset.classes, groups) or alike
    return replace(inspection, findings=(*inspection.findings, *alike, *cut))


def usable(dataset: DomainDataset, session: Session, *, trust: bool = False) -> tuple[DomainDataset, Audit]:
    """Return the dataset and its audit, without what can't be decoded.

    Args:
        trust: take a manifest's hashes as they are, to plan.
    """
    found = audit(dataset, cache=audit_cache(session.store), progress=session.progress, trust=trust)
    return _decodable(dataset, found)


def _decodable(dataset: DomainDataset, found: Audit) -> tuple[DomainDataset, Audit]:
    if not found.problems:
        return dataset, found
    left = [i for i in range(len(dataset)) if i not in found.problems]
    return set_aside(dataset, found), found.subset(left)
