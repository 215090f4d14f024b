"""A run's prediction of every image that it was measured on: for comparisons image by image."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from vl2v.config import DataConfig
from vl2v.errors import RunError
from vl2v.io import checksum, write_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from vl2v.data.auditing import Audit
    from vl2v.data.dataset import DomainDataset

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
        columns: the arrays, in parts.
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
        from vl2v.data.splits import in_split

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
