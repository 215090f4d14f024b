"""What would spoil a training, found before anything is queried: copies, leakage, odd labels, each with a remedy."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vl2v.data.auditing import Audit, near_copies
from vl2v.data.dataset import NO_SUFFIX, PASSED_OVER, UNLABELLED, DomainDataset, Excluded, leave_out
from vl2v.data.decoding import CONVERT, FEWER_BITS, NO_ALPHA, NO_END, NOT_WHOLE
from vl2v.data.layouts import split_like
from vl2v.errors import DataError
from vl2v.names import UNKNOWN, listed, same_name, says_nothing, skeleton


@dataclass(frozen=True)
class Inspection:
    """A dataset's counts, and what would spoil a training on it.

    Attributes:
        rows: domain -> class -> number of usable images.
        findings: one line each, with a remedy.
    """

    rows: dict[str, dict[str, int]]
    findings: tuple[str, ...]
    excluded: tuple[Excluded, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain types only."""
        return {"rows": self.rows, "findings": list(self.findings), "excluded": [asdict(e) for e in self.excluded]}


def inspect(
    dataset: DomainDataset, found: Audit, target: Sequence[str] = (), *, holdout: float = 0.2, split_seed: int = 0
) -> Inspection:
    """Count images by class and domain, and look for what would spoil a training.

    Args:
        target: domains that stay unseen; copies of their images in other domains are leakage.
        holdout: share of each source domain that validates.

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
        *_untrained(good, labelled, target, holdout, split_seed),
        *_unseen_only(labelled, target),
        *_names(dataset),
    ]
    return Inspection(rows, tuple(findings), good.excluded)


_REMEDIES = {
    "not at": "move them to where the others are, or use a manifest",
    NOT_WHOLE: "",
    "not an image": "convert them to JPEG or PNG, or delete them",
    NO_SUFFIX: "give it its suffix (.jpg, .png) if it is an image, or delete it",
    "a link to nothing": "fetch the files it points to (git annex get, dvc checkout), or delete it",
    "a link": "copy the images into the folder (cp -rL)",
    "a path": "copy the images into the folder",
    "an empty folder": "delete it, or add its images",
    "no such file": "correct the manifest",
    "an address": "download the images, and give their paths",
    "in iCloud only": "download them (in Finder: Download Now)",
    "a HEIC photo": "convert them to JPEG or PNG",
    "an AVIF image": "convert them to JPEG or PNG",
    "a JPEG XL image": "convert them to JPEG or PNG",
    "a JPEG 2000 image": "convert them to JPEG or PNG",
    CONVERT: "convert them to JPEG or PNG",
    "its name": "rename it",
    "can't be read": "check its permissions",
    "listed": "",
    "a Git LFS pointer": "fetch the images (git lfs pull)",
    PASSED_OVER: "",
    "": "replace or delete them",
}


def _unusable(excluded: Sequence[Excluded]) -> Iterator[str]:
    for reason, count in Counter(gone.reason.split(" (")[0] for gone in excluded).most_common():
        first = next(gone.path for gone in excluded if gone.reason.split(" (")[0] == reason)
        remedy = next(text for start, text in _REMEDIES.items() if reason.startswith(start))
        yield f"{_files(count)} set aside: {reason}, first {first}" + (f"; {remedy}" if remedy else "")


def _files(count: int) -> str:
    return f"{count} file" if count == 1 else f"{count} files"


def _images(count: int) -> str:
    return f"{count} image" if count == 1 else f"{count} images"


def _remarks(dataset: DomainDataset, found: Audit) -> Iterator[str]:
    remarks = {index: remark.split(" (")[0] for index, remark in found.remarks.items()}
    for remark, count in Counter(remarks.values()).most_common():
        index = min(index for index, other in remarks.items() if other == remark)
        meaning, remedy = _MEANINGS[remark]
        yield f"{_files(count)} with {remark}: {meaning}, first {dataset.paths[index]}; {remedy}"


_MEANINGS = {
    FEWER_BITS: (
        "scaled by the bits in use, so that the image doesn't come out black",
        "save as 8 bits to choose the brightness yourself",
    ),
    NO_ALPHA: ("shown as opaque", "save without an alpha channel"),
    NO_END: (
        "used, since no pixel is missing",
        "copy or download again if that ended early",
    ),
}


def _unlabelled(dataset: DomainDataset) -> Iterator[str]:
    given = dataset.domains.index(UNLABELLED) if UNLABELLED in dataset.domains else -1
    without = np.flatnonzero((dataset.labels < 0) & (dataset.domain_ids != given))
    if len(without):
        yield (
            f"{_images(len(without))} without a class in the manifest, first {dataset.paths[without[0]]}; source "
            "domains' are learnt from without a label, targets' are ignored"
        )


def _untrained(
    good: DomainDataset, rows: dict[str, dict[str, int]], target: Sequence[str], holdout: float, seed: int
) -> Iterator[str]:
    """Find classes of which the split leaves, or may leave, nothing to train on."""
    if len(good.classes) < 2:
        return  # reported by `_names`
    try:
        split = leave_out(good, target, fraction=holdout, trial_seed=seed)
    except DataError as error:
        yield f"training would stop: {error}"
        return
    trained, held = (set(good.labels[part].tolist()) for part in (split.train, split.val))
    untrained = [good.classes[label] for label in sorted(held - trained)]
    if untrained:
        yield (
            f"no image of {listed(untrained)} to train on: the split puts all of them into validation, so that a "
            "linear head (lp, erm) never predicts the class; add images, or set another data.split_seed"
        )
    if (
        good.splits is not None
        and held
        and (unchecked := [good.classes[label] for label in sorted(trained - held - {-1})])
    ):
        yield (
            f"no validation image of {listed(unchecked)}: the manifest's split column puts none there, so validation "
            "accuracy says nothing about the class; move some"
        )
    sources = [counts for domain, counts in rows.items() if domain not in target]
    alone = [name for name in good.classes if sum(counts[name] for counts in sources) == 1 and name not in untrained]
    if alone:
        yield (
            f"only one image of {listed(alone)} in the source domains: another split may put it into validation and "
            "leave none to train on; add some"
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
            f"{extra} exact {'copy' if extra == 1 else 'copies'} (queried once, but weighted more in training), "
            f"first {_both(dataset, copies[0])}; delete one of each"
        )
    if torn:
        yield (
            f"{_images(len(torn))} with two different classes, first {_both(dataset, torn[0])}; delete the wrong copies"
        )
    if leaks:
        yield (
            f"leakage: {_images(len(leaks))} in both a target and a source domain, "
            f"first {_both(dataset, leaks[0])}; delete the source's"
        )
    splits = dataset.splits or ()
    shared = [group for group in copies if splits and len({splits[i] for i in group} - {None}) > 1]
    if shared:
        yield (
            f"leakage: {_images(len(shared))} in several of the manifest's splits, "
            f"first {_both(dataset, shared[0])}; delete all but one"
        )
    if across and not leaks:
        yield (
            f"{_images(len(across))} in several domains, which is leakage if one of them is a target, "
            f"first {_both(dataset, across[0])}; delete all but one"
        )


def _near_copies(dataset: DomainDataset, found: Audit, unseen: set[int]) -> Iterator[str]:
    """Find images that look the same though their files differ."""
    stands = near_copies(found.signatures)
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
            f"leakage: {_images(count)} of a target with a near-copy (saved again, scaled or converted) in a source "
            f"domain, so that unseen accuracy may be too high, first {_both(dataset, leaks[0])}; delete the source's"
        )
    elif across:
        yield (
            f"{_images(len(across))} with near-copies (saved again, scaled or converted) in other domains, which is "
            f"leakage if one of them is a target, first {_both(dataset, across[0])}; delete all but one"
        )
    if torn:
        first = _both(dataset, torn[0])
        yield f"{_images(len(torn))} with near-copies of another class, first {first}; delete the wrong ones"
    if within:
        yield (
            f"{_images(len(within))} with near-copies in the same domain, first {_both(dataset, within[0])}; if one is "
            "trained on and another validates, validation accuracy is too high; delete all but one"
        )


def _both(dataset: DomainDataset, group: Sequence[int]) -> str:
    """Return two copies' paths, of different classes or domains if there are such."""
    kinds = [(int(dataset.labels[i]), int(dataset.domain_ids[i])) for i in group]
    other = next((i for i, kind in zip(group, kinds, strict=True) if kind != kinds[0]), group[1])
    return f"{dataset.paths[group[0]]} and {dataset.paths[other]}"


def _gaps(rows: dict[str, dict[str, int]]) -> Iterator[str]:
    for domain, counts in rows.items():
        missing = [name for name, count in counts.items() if not count]
        if missing and len(missing) < len(counts):
            yield f"domain {domain} has no images of {listed(missing)}; its accuracy is over the other classes"
        elif missing:
            yield f"domain {domain} has no usable labelled images; add some, or delete the folder"
    if len(rows) == 1:
        yield (
            "only one domain: none can be left out to measure accuracy on an unseen one; "
            "sort the images into domain/class/image"
        )


def _unseen_only(rows: dict[str, dict[str, int]], target: Sequence[str]) -> Iterator[str]:
    sources = [counts for domain, counts in rows.items() if domain not in target]
    missing = [name for name in next(iter(rows.values()), {}) if not any(counts[name] for counts in sources)]
    if target and sources and missing:
        yield (
            f"no source domain has images of {listed(missing)}: training leaves the class out; a student with a text "
            "head still predicts it by its text, a linear head (lp, erm) is refused"
        )


_PARTS = re.compile(
    r"(ground[ _-]?truths?|gt|masks?|annotations?|labels?|segmentations?|seg|depths?|thumbs|thumbnails?)"
    r"([ _-]?(masks?|images?|maps?|png))?",
    re.IGNORECASE,
)


_NUMBERED = re.compile(r"\d+\s*[._ -]+\s*[^\W\d]")


def _several(name: str, classes: frozenset[str]) -> bool:
    """Whether a class is a list of other ones."""
    lists = ([part.strip() for part in name.split(sign)] for sign in "|;,+/ ")
    return any(len(parts) > 1 and classes.issuperset(parts) for parts in lists)


def _names(dataset: DomainDataset) -> Iterator[str]:
    if len(dataset.classes) < 2:
        yield f"only one class ({', '.join(dataset.classes)}): a classifier needs two; add images of another"
    for names, kind in ((dataset.classes, "classes"), (dataset.domains, "domains")):
        alike: dict[str, list[str]] = defaultdict(list)
        for name in names:
            alike[skeleton(name)].append(name)
        for group in alike.values():
            if len(group) > 1:
                yield f"{kind} {' and '.join(map(repr, group))} look like the same; rename one if they are"
        if splits := split_like(names):
            yield (
                f"{kind} {', '.join(splits)}: named like splits of the data; if they are, open the one to train on, "
                "or write a manifest with a split column"
            )
        if len(names) > 1 and (parts := [name for name in names if _PARTS.fullmatch(name)]):
            yield (
                f"{kind} {', '.join(parts)}: named like masks or annotations of the images; if they are, delete them, "
                "or open the folder of the images alone"
            )
    if several := [name for name in dataset.classes if _several(name, frozenset(dataset.classes))]:
        yield (
            f"classes {listed(several)}: made of the names of other classes; an image has one class: if these are "
            "several labels of an image, keep the one that matters"
        )
    if mute := [name for name in dataset.classes if says_nothing(name)]:
        yield (
            f"classes {listed(mute)}: names that say nothing to a teacher, which is queried with them; rename them, or "
            "write what they are into prompts.overrides (methods without a teacher don't mind)"
        )
    elif len(dataset.classes) > 1 and all(map(_NUMBERED.match, dataset.classes)):
        yield (
            f"classes {listed(dataset.classes)}: numbers before the names become part of the prompts; rename the "
            "folders, or set prompts.overrides"
        )
    if odd := [name for name in dataset.classes if name.lower() in ("none", "na", "unlabeled", "unlabelled")]:
        yield f"class {', '.join(odd)}: if it means a missing label, leave the manifest's cell empty"
    if taken := [name for name in dataset.classes if same_name(name) == UNKNOWN]:
        yield f"class {', '.join(taken)}: training refuses it, since {UNKNOWN!r} is a prediction; rename it"
    both = {name.lower() for name in dataset.classes} & {name.lower() for name in dataset.domains}
    if both:
        yield (
            f"{', '.join(sorted(both))}: both a class and a domain; "
            "if the layout is class/domain/image, rearrange it to domain/class/image"
        )
