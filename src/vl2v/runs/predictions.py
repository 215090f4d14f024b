"""A run's prediction of every image that it was measured on: for comparisons image by image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from vl2v.config import DataConfig, RunConfig
from vl2v.data.auditing import Audit, lookalikes
from vl2v.data.dataset import DomainDataset, in_split
from vl2v.errors import DataError, RunError
from vl2v.io import checksum, write_bytes, write_text
from vl2v.runs.datasets import Images, Sources, gone
from vl2v.runs.folder import CHOSEN, IMAGES, Run
from vl2v.session import Session

if TYPE_CHECKING:
    from torch import Tensor

FILE = "predictions.safetensors"


@dataclass(frozen=True)
class Predictions:
    """Predictions of n images.

    `predictions[name]` is an array [n]:
        index: of each image in the dataset, which lists its files in an order of its own.
        domain: of each.
        label: of each.
        answer: the student's prediction, its most likely class.
        probability: of that.
        uncalibrated: the same before the temperature.
        teacher: the zero-shot teacher's, -1 where its embedding isn't cached.
        in_split: whether the image is in the 80% of its domain that DomainBed measures a target on.

    Attributes:
        classes: names that `label`, `answer` and `teacher` are indices into.
        domains: names that `domain` is an index into.
        content: of the dataset, see `content`.
    """

    classes: list[str]
    domains: list[str]
    content: str = ""
    columns: dict[str, list[NDArray[Any]]] = field(default_factory=dict)

    @classmethod
    def nothing(
        cls, classes: list[str] | tuple[str, ...], domains: list[str] | tuple[str, ...], content: str = ""
    ) -> Predictions:
        """Return predictions of no image yet."""
        return cls(list(classes), list(domains), content)

    def add(
        self,
        dataset: DomainDataset,
        images: NDArray[np.int64],
        labels: Tensor,
        logits: Tensor,
        temperature: float,
        teacher: Tensor | None,
        config: DataConfig,
    ) -> None:
        """Add images of one domain (dataset indices [m]), labels [m], the student's logits [m, C] as they come."""
        domain = int(dataset.domain_ids[images[0]])
        inside = in_split(dataset, dataset.domains[domain], config.holdout, config.split_seed)
        probability, prediction = (logits / temperature).softmax(-1).max(-1)
        unknown = np.full(len(images), -1)
        rows = {
            "index": images,
            "domain": np.full(len(images), domain),
            "label": labels.numpy(),
            "answer": prediction.numpy(),
            "probability": probability.numpy().astype(np.float32),
            "uncalibrated": logits.softmax(-1).amax(-1).numpy().astype(np.float32),
            "teacher": unknown if teacher is None else teacher.argmax(-1).numpy(),
            "in_split": np.isin(images, inside),
        }
        for name, column in rows.items():
            self.columns.setdefault(name, []).append(column)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return np.concatenate(self.columns[name])

    @property
    def right(self) -> NDArray[np.bool_]:
        """[n], whether the student's prediction is the label."""
        return np.asarray(self["label"] == self["answer"])

    def in_domain(self, name: str) -> NDArray[np.bool_]:
        """Return for each image [n] whether it is of that domain."""
        return np.asarray(self["domain"] == self.domains.index(name))

    def save(self, folder: Path) -> None:
        """Write `predictions.safetensors`."""
        arrays = {name: self[name] for name in self.columns}
        about = json.dumps({"classes": self.classes, "domains": self.domains, "content": self.content})
        write_bytes(folder / FILE, save(arrays, {"told": about, "crc": checksum(arrays, about)}))

    @classmethod
    def load(cls, folder: Path) -> Predictions:
        """Return what `save` wrote.

        Raises:
            RunError: the file is missing or corrupt.
        """
        try:
            with safe_open(folder / FILE, "numpy") as file:
                metadata = file.metadata()
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata["crc"] != checksum(arrays, metadata["told"]):
                raise ValueError("checksum")
            return cls(**json.loads(metadata["told"]), columns={name: [array] for name, array in arrays.items()})
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{folder / FILE}: can't be read ({type(error).__name__}); give its `vl2v distill` command again"
            ) from None


def content(dataset: DomainDataset, found: Audit) -> str:
    """Return a hash of a dataset's images, in order: of each its domain, its class and its file's bytes."""
    names = json.dumps([dataset.classes, dataset.domains]).encode()
    parts = (names, dataset.labels.tobytes(), dataset.domain_ids.tobytes(), *found.sha256)
    return hashlib.sha256(b"".join(parts)).hexdigest()


def save_images(run: Run, sources: Sources) -> None:
    """Save which images a run learns from, so that it is resumed on these alone, wherever they lie then.

    Raises:
        RunError: it has begun to learn from others.
    """
    if have_changed(run, sources):
        if (run.folder / "checkpoints").exists():
            raise RunError(
                f"{run.folder}: images in {sources.dataset.root} have changed since this run began to learn from "
                "them, or some can't be read now; put them back, or delete the folder to begin again"
            )
        for made in ("asked.json", CHOSEN):  # made from the former images
            (run.folder / made).unlink(missing_ok=True)
    write_text(run.folder / IMAGES, content(sources.dataset, sources.audit))


def have_changed(run: Run, sources: Sources) -> bool:
    """Whether a run began with other images than these."""
    saved = run.folder / IMAGES
    # the digest of earlier versions had the names of the target's classes in it
    now = {content(dataset, sources.audit) for dataset in (sources.dataset, sources.with_others)}
    return saved.is_file() and saved.read_text(encoding="utf-8") not in now


def same_images(run: Run, config: RunConfig, session: Session) -> bool:
    """Return whether images are, byte for byte, a run's: what it learns from, once it is evaluated all of them.

    Args:
        run: begun with images at other paths.
        config: the run's, with the paths where the images are to be now.
    """
    predictions, images = predictions_of(run), Images(config.data, session)
    if predictions is not None and predictions.content != content(*images.all):
        return False
    if predictions is not None and config.data.unlabelled == run.config.data.unlabelled:
        return True  # some that it learnt from may be gone
    return (run.folder / IMAGES).is_file() and not have_changed(run, images.sources)


def predictions_of(run: Run) -> Predictions | None:
    """Return a run's predictions of when it was evaluated; None if it wasn't, or if that can't be read."""
    try:
        return Predictions.load(run.folder) if run.evaluation is not None else None
    except RunError:
        return None


def source_notes(run: Run, images: Images) -> list[str]:
    """Return notes on the images that a run learnt from: leakage, and whether they have changed."""
    dataset, found = images.all
    try:
        learnt = images.sources
    except DataError as error:
        return [f"leakage, and whether images have changed since the run, can't be checked: {error}"]
    names = run.classifier.about["sources"]
    rows = zip(learnt.dataset.labels, learnt.dataset.domain_ids, learnt.audit.sha256, strict=True)
    seen = {digest for label, domain, digest in rows if label < 0 or learnt.dataset.domains[domain] in names}
    measured = zip(dataset.labels, dataset.domain_ids, found.sha256, strict=True)
    count = sum(
        label >= 0 and dataset.domains[domain] not in names and digest in seen for label, domain, digest in measured
    )
    notes = [f"leakage: {count} images of unseen domains are among those to learn from, too"] if count else []
    notes += _near_copies(learnt, dataset, found, names)
    if gone(run.config.data):
        notes.append("images without labels that it learnt from are gone, so whether any have changed isn't known")
    elif have_changed(run, learnt):
        notes.append("images have changed since the run: some that count as seen may be images that it was trained on")
    return notes


def _near_copies(learnt: Sources, dataset: DomainDataset, found: Audit, sources: Sequence[str]) -> list[str]:
    """Return notes on images that are near-copies of training images.

    Args:
        dataset: all its images.
        found: of them.
    """
    training = learnt.training
    apart = np.array([dataset.domains[domain] not in sources for domain in dataset.domain_ids])
    unseen = np.flatnonzero(apart & (dataset.labels >= 0))
    everything = np.arange(len(learnt.dataset))
    notes = []
    if pairs := _alike(found, unseen, learnt.audit, everything, exact=False):
        first, other = dataset.paths[pairs[0][0]], learnt.dataset.paths[pairs[0][1]]
        notes.append(
            f"leakage: {len(pairs)} images of unseen domains are near-copies of those to learn from, first {first} "
            f"and {other}; accuracy on unseen domains may be too high"
        )
    if pairs := _alike(learnt.audit, learnt.split.val, learnt.audit, training, exact=True):
        first, other = (learnt.dataset.paths[index] for index in pairs[0])
        notes.append(
            f"leakage within the source domains: {len(pairs)} of {len(learnt.split.val)} validation images are copies "
            f"or near-copies of training images, first {first} and {other}; accuracy on source domains may be too high"
        )
    return notes


def _alike(
    found: Audit, images: NDArray[np.int64], others: Audit, among: NDArray[np.int64], *, exact: bool
) -> list[tuple[int, int]]:
    """Return (image, other) of each image that is a near-copy of another, or with `exact` a copy, too."""
    same = {others.sha256[i]: int(i) for i in reversed(among)}
    near = lookalikes([found.signatures[i] for i in images], [others.signatures[i] for i in among])
    pairs = []
    for image, position in zip(images.tolist(), near.tolist(), strict=True):
        copy = same.get(found.sha256[image])
        if copy is not None and exact:
            pairs.append((image, copy))
        elif copy is None and position >= 0:
            pairs.append((image, int(among[position])))
    return pairs
