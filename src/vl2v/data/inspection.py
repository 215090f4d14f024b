"""What there is to be known about a dataset before it is used: counts, copies, mistakes, each with what to do."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vl2v.data.audit import Audit
from vl2v.data.dataset import UNLABELLED, DomainDataset, Excluded
from vl2v.data.decoding import FEWER_BITS, NO_ALPHA, NO_END
from vl2v.data.files import PASSED_OVER
from vl2v.data.layouts import split_like
from vl2v.data.near_duplicates import near_copies


@dataclass(frozen=True)
class Inspection:
    """What there is to be known about a dataset before it is used.

    Attributes:
        rows: domain -> class -> images.
        findings: one line each, with what to do.
        excluded: files that are set aside.
    """

    rows: dict[str, dict[str, int]]
    findings: tuple[str, ...]
    excluded: tuple[Excluded, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain types only."""
        return {"rows": self.rows, "findings": list(self.findings), "excluded": [asdict(e) for e in self.excluded]}


def inspect(dataset: DomainDataset, found: Audit, target: Sequence[str] = ()) -> Inspection:
    """Count classes by domains and look for what would spoil a training.

    Args:
        dataset: as opened.
        found: its audit.
        target: domains to be kept unseen; copies of their images in other domains are leakage.

    Raises:
        DataError: an unknown target.
    """
    unseen = {dataset.domain_index(name) for name in target}
    good = dataset.without(found.problems)
    rows = {domain: dict.fromkeys(dataset.classes, 0) for domain in dataset.domains}
    for label, domain in zip(good.labels, good.domain_ids, strict=True):
        if label >= 0:
            rows[good.domains[domain]][good.classes[label]] += 1
    labelled = {domain: counts for domain, counts in rows.items() if domain != UNLABELLED}
    findings = [
        *_unusable(good.excluded),
        *dataset.notes,
        *_remarks(dataset, found),
        *_copies(dataset, found, unseen),
        *_near_copies(dataset, found, unseen),
        *_unlabelled(dataset),
        *_gaps(labelled),
        *_rare(labelled, target),
        *_unseen_only(labelled, target),
        *_names(dataset),
    ]
    return Inspection(rows, tuple(findings), good.excluded)


_REMEDIES = {
    "not at": "move them to where the others are, or use a manifest",
    "not an image": "convert them to JPEG or PNG, or delete them",
    "a link to nothing": "fetch what it stands for (git annex get, dvc checkout), or delete it",
    "a link": "copy the images into the folder (cp -rL)",
    "a path": "copy the images into the folder",
    "an empty folder": "delete it, or put its images in",
    "no such file": "correct the manifest",
    "its name": "rename it",
    "can't be read": "see to its permissions",
    "listed": "",
    "a Git LFS pointer": "fetch the images (git lfs pull)",
    PASSED_OVER: "",
    "": "replace or delete them",
}


def _unusable(excluded: Sequence[Excluded]) -> Iterator[str]:
    for reason, count in Counter(gone.reason.split(" (")[0] for gone in excluded).most_common():
        first = next(gone.path for gone in excluded if gone.reason.split(" (")[0] == reason)
        remedy = next(text for start, text in _REMEDIES.items() if reason.startswith(start))
        yield f"{count} files set aside: {reason}, first {first}" + (f"; {remedy}" if remedy else "")


def _remarks(dataset: DomainDataset, found: Audit) -> Iterator[str]:
    remarks = {index: remark.split(" (")[0] for index, remark in found.remarks.items()}
    for remark, count in Counter(remarks.values()).most_common():
        index = min(index for index, other in remarks.items() if other == remark)
        meaning, remedy = _MEANINGS[remark]
        yield f"{count} files with {remark}: {meaning}, first {dataset.paths[index]}; {remedy}"


_MEANINGS = {
    FEWER_BITS: (
        "each is brightened to the bits that it uses, so that it doesn't come out black",
        "write them as 8 bits to choose the brightness yourself",
    ),
    NO_ALPHA: ("they are shown as if there were none", "save them without it"),
    NO_END: (
        "they are used, all their pixels are there",
        "get them anew if it was a copy or download that ended early",
    ),
}


def _unlabelled(dataset: DomainDataset) -> Iterator[str]:
    given = dataset.domains.index(UNLABELLED) if UNLABELLED in dataset.domains else -1
    without = np.flatnonzero((dataset.labels < 0) & (dataset.domain_ids != given))
    if len(without):
        yield (
            f"{len(without)} images have no class in the manifest, first {dataset.paths[without[0]]}; those of source "
            "domains are learnt from without a label, those of targets aren't used"
        )


def _rare(rows: dict[str, dict[str, int]], target: Sequence[str]) -> Iterator[str]:
    sources = [counts for domain, counts in rows.items() if domain not in target]
    alone = [name for name in next(iter(rows.values()), {}) if sum(counts[name] for counts in sources) == 1]
    if alone:
        yield (
            f"one image only of {_some(alone)} in the source domains: if it is drawn for validation, none is left to "
            "learn from; add some"
        )


def _copies(dataset: DomainDataset, found: Audit, unseen: set[int]) -> Iterator[str]:
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, digest in enumerate(found.sha256):
        if index not in found.problems:
            groups[digest].append(index)
    copies = [group for group in groups.values() if len(group) > 1]
    torn = [group for group in copies if len({int(dataset.labels[i]) for i in group} - {-1}) > 1]
    domains = [{int(dataset.domain_ids[i]) for i in group} for group in copies]
    across = [group for group, its in zip(copies, domains, strict=True) if len(its) > 1]
    leaks = [group for group, its in zip(copies, domains, strict=True) if its & unseen and its - unseen]
    if copies:
        extra = sum(len(group) - 1 for group in copies)
        yield (
            f"{extra} exact copies (the teacher is asked once about each image, but they weigh more in training), "
            f"first {_both(dataset, copies[0])}; delete one of each"
        )
    if torn:
        yield (
            f"{len(torn)} images with two different classes, first {_both(dataset, torn[0])}; delete the wrong copies"
        )
    if leaks:
        yield (
            f"leakage: {len(leaks)} images are in a target and a source domain, "
            f"first {_both(dataset, leaks[0])}; delete the source's"
        )
    elif across:
        yield (
            f"{len(across)} images are in several domains, which is leakage if one of them is a target, "
            f"first {_both(dataset, across[0])}; delete all but one"
        )


def _near_copies(dataset: DomainDataset, found: Audit, unseen: set[int]) -> Iterator[str]:
    """Tell of images that look the same, though their files differ; exact copies are told of already."""
    stands = near_copies(found.looks)
    groups: dict[int, dict[bytes, int]] = defaultdict(dict)  # of each content the first
    for index, first in enumerate(stands):
        if index not in found.problems:
            groups[int(first)].setdefault(found.sha256[index], index)
    alike = [sorted(group.values()) for group in groups.values() if len(group) > 1]
    if not alike:
        return
    torn = [group for group in alike if len({int(dataset.labels[i]) for i in group} - {-1}) > 1]
    domains = [{int(dataset.domain_ids[i]) for i in group} for group in alike]
    leaks = [group for group, its in zip(alike, domains, strict=True) if its & unseen and its - unseen]
    across = [group for group, its in zip(alike, domains, strict=True) if len(its) > 1]
    within = [group for group, its in zip(alike, domains, strict=True) if len(its) < len(group)]
    if leaks:
        count = sum(int(dataset.domain_ids[i]) in unseen for group in leaks for i in group)
        yield (
            f"leakage: {count} images of a target are near-copies of a source domain's (saved anew, scaled or "
            f"converted), so that unseen accuracy may be too high, first {_both(dataset, leaks[0])}; "
            "delete the source's"
        )
    elif across:
        yield (
            f"{len(across)} images have near-copies in other domains (saved anew, scaled or converted), which is "
            f"leakage if one of them is a target, first {_both(dataset, across[0])}; delete all but one"
        )
    if torn:
        first = _both(dataset, torn[0])
        yield f"{len(torn)} images have near-copies of another class, first {first}; see which is right"
    if within:
        yield (
            f"{len(within)} images have near-copies in the same domain, first {_both(dataset, within[0])}; where one "
            "validates what another taught, validation accuracy may be too high; delete all but one"
        )


def _both(dataset: DomainDataset, group: Sequence[int]) -> str:
    """Name two copies, of different classes or domains if there are such."""
    kinds = [(int(dataset.labels[i]), int(dataset.domain_ids[i])) for i in group]
    other = next((i for i, kind in zip(group, kinds, strict=True) if kind != kinds[0]), group[1])
    return f"{dataset.paths[group[0]]} and {dataset.paths[other]}"


def _gaps(rows: dict[str, dict[str, int]]) -> Iterator[str]:
    for domain, counts in rows.items():
        missing = [name for name, count in counts.items() if not count]
        if missing and len(missing) < len(counts):
            yield f"domain {domain} has no {_some(missing)}; its accuracy is over the other classes"
        elif missing:
            yield f"domain {domain} has no usable images with labels; add some, or delete the folder"
    if len(rows) == 1:
        yield (
            "one domain only: none can be left out to measure how the student does elsewhere; "
            "sort the images into domain/class/image"
        )


def _unseen_only(rows: dict[str, dict[str, int]], target: Sequence[str]) -> Iterator[str]:
    sources = [counts for domain, counts in rows.items() if domain not in target]
    missing = [name for name in next(iter(rows.values()), {}) if not any(counts[name] for counts in sources)]
    if target and sources and missing:
        yield (
            f"no source domain has {_some(missing)}; training leaves such classes out, and the student knows them by "
            "their names alone"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _names(dataset: DomainDataset) -> Iterator[str]:
    if len(dataset.classes) < 2:
        yield f"one class only ({', '.join(dataset.classes)}): a classifier needs two; add images of another"
    for names, kind in ((dataset.classes, "classes"), (dataset.domains, "domains")):
        alike: dict[str, list[str]] = defaultdict(list)
        for name in names:
            alike["".join(letter for letter in name.lower() if letter.isalnum()) or name].append(name)
        for group in alike.values():
            if len(group) > 1:
                yield f"{kind} {' and '.join(group)} look like one; rename the folders to the same"
        if splits := split_like(names):
            yield (
                f"{kind} {', '.join(splits)}: called like splits of the data; if they are, open the folder that is "
                "to be learnt from, or write a manifest with a column split"
            )
    if odd := [name for name in dataset.classes if name.lower() in ("none", "na", "unlabeled", "unlabelled")]:
        yield f"class {', '.join(odd)}: if it stands for a missing label, leave the manifest's cell empty"
    both = {name.lower() for name in dataset.classes} & {name.lower() for name in dataset.domains}
    if both:
        yield (
            f"{', '.join(sorted(both))}: a class and a domain; "
            "is the layout class/domain/image? It should be domain/class/image"
        )
