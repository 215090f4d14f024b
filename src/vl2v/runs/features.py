"""What the student's backbone sees as it came, before anything is taught: features F(x), computed once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vl2v.config import RunConfig, deciding
from vl2v.data.dataset import DomainDataset
from vl2v.io import locked, replacing, write_tensors
from vl2v.methods import LOOP, Stage
from vl2v.session import Progress, silent
from vl2v.students.student import Student, evaluating
from vl2v.training.batches import Rendering, clean_pixels
from vl2v.training.device import Device, own_part, put_together

BATCH = 64  # always as many at a time: with another number the last digits are others


def compute_features(
    student: Student, pixels: Iterable[Tensor], fabric: Device, total: int = 0, progress: Progress = silent
) -> Tensor:
    """Return F(x) [N, p] in float32 on the CPU, of batches of uint8 pixels [n, s, s, 3], n at most `BATCH`.

    An image's features are the same bit for bit, whichever others are computed with it.

    Args:
        student: its backbone is F; batch norms and dropout are in eval mode.
        pixels: batches, in order.
        total: how many images there are, for the progress.
    """
    parts: list[Tensor] = []
    done = 0
    with evaluating(student), fabric.autocast():
        for batch in pixels:
            padded = torch.cat([batch, batch.new_zeros(BATCH - len(batch), *batch.shape[1:])])
            parts.append(student.features(fabric.to_device(padded))[: len(batch)].cpu())
            done += len(batch)
            progress("student's features", done, total, "")
    return torch.cat(parts)


def cached_activations(
    student: Student,
    pixels: Callable[[], Iterable[Tensor]],
    fabric: Device,
    file: Path,
    rows: int,
    progress: Progress = silent,
) -> Tensor:
    """Return a student's activations at its cut, [rows, ...] in float16, mapped from a file; computed if it's missing.

    Args:
        student: cut; batch norms and dropout are in eval mode.
        pixels: called for batches of uint8 pixels [n, s, s, 3], in order.
        file: appears once it is complete.
        rows: how many images, or views of them, there are.

    Raises:
        RunError: the disk is full.
    """
    size = student.spec.image_size
    with evaluating(student), fabric.autocast():
        shape = student.activations(torch.zeros(1, size, size, 3, dtype=torch.uint8)).shape[1:]
        count = rows * shape.numel()
        if not file.is_file() or file.stat().st_size != 2 * count:
            done = 0
            with replacing(file) as draft, draft.open("wb") as opened:
                for batch in pixels():
                    padded = torch.cat([batch, batch.new_zeros(-len(batch) % BATCH, *batch.shape[1:])])
                    for part in padded.split(BATCH):
                        found = student.activations(fabric.to_device(part))[: len(batch)].cpu()
                        opened.write(found.contiguous().numpy().tobytes())
                        batch = batch[len(found) :]
                        done += len(found)
                    progress("lower blocks", done, rows, "")
    return torch.from_file(str(file), shared=False, size=count, dtype=torch.float16).view(rows, *shape)


class SharedCache:
    """A folder that several processes put things on and take them from.

    Args:
        folder: made when something is put there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Hold a name, so that what belongs there is made once; wait while another process holds it.

        The operating system frees the name of a process that dies.
        """
        with locked(self.folder / "locks" / f"{name}.lock"):
            yield

    def features(self, name: str, contents: Sequence[bytes]) -> tuple[Tensor, Tensor] | None:
        """Return (which of the images are cached: bool [n], F(x) of those [m, p], in order); None: none is.

        Args:
            name: of the backbone, see `backbone_name`.
            contents: SHA-256 of each image.
        """
        cached: dict[bytes, Tensor] = {}
        for file in sorted((self.folder / "features" / name).glob("*.safetensors")):
            try:
                shard = load_file(file)
            except (OSError, SafetensorError):
                continue  # computed again
            keys = shard["sha256"].numpy()
            cached |= {key.tobytes(): row for key, row in zip(keys, shard["features"], strict=True)}
        there = torch.tensor([content in cached for content in contents])
        if not there.any():
            return None
        return there, torch.stack([cached[content] for content in contents if content in cached])

    def put_features(self, name: str, contents: Sequence[bytes], features: Tensor) -> None:
        """Save F(x) [n, p] of images."""
        keys = torch.tensor([list(content) for content in contents], dtype=torch.uint8)
        shard = hashlib.sha256(b"".join(contents)).hexdigest()[:16]
        write_tensors(
            self.folder / "features" / name / f"{shard}.safetensors",
            {"sha256": keys, "features": features.contiguous()},
        )

    def take_stage(self, name: str, run: Path) -> bool:
        """Start a new run where another run's first stage, the very same, ended; return whether there is one."""
        saved = self.folder / "stages" / name
        if (run / "checkpoints").exists() or not saved.is_dir():
            return False
        shutil.copyfile(saved / "metrics.jsonl", run / "metrics.jsonl")
        shutil.copytree(saved / "checkpoints", run / "checkpoints.new", dirs_exist_ok=True)
        (run / "checkpoints.new").replace(run / "checkpoints")
        return True

    def put_stage(self, name: str, run: Path) -> None:
        """Save the checkpoint that a run's first stage ended with, and the metrics so far."""
        saved = self.folder / "stages" / name
        if saved.exists():
            return
        draft = saved.with_name(f"{name}.{os.getpid()}.new")
        (draft / "checkpoints").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run / "metrics.jsonl", draft / "metrics.jsonl")
        (newest,) = sorted((run / "checkpoints").glob("*.safetensors"))[-1:]
        shutil.copyfile(newest, draft / "checkpoints" / newest.name)
        try:
            draft.replace(saved)
        except OSError:
            shutil.rmtree(draft)  # another run was quicker with the same


def backbone_name(student: Student, precision: str, view: str) -> str:
    """Return a name for everything that decides F(x) of an image.

    Args:
        student: whose backbone, with its weights as they are.
    """
    decides = hashlib.sha256(json.dumps([asdict(student.spec), precision, view]).encode())
    for key, value in student.backbone.state_dict().items():
        decides.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
    return decides.hexdigest()[:24]


def stage_name(config: RunConfig, stage: Stage, student: Student, targets: str) -> str | None:
    """Return a name for everything that decides how a run's first stage ends; None for one that isn't shared.

    Args:
        stage: its first, as it is once everything is chosen; only one with an id is shared.
        targets: a digest of the images and of what is learnt from them.
    """
    if not stage.id:
        return None
    paths = {"path", "layout", "exclude", "unlabelled"}
    tree = config.model_dump(
        mode="json", by_alias=True, exclude={"method": True, "stages": True, "loss": True, "data": paths}
    )
    tree = deciding(tree)
    tree["version"] = LOOP
    tree["stage"] = [stage.name, stage.id, dict(stage.decides), config.stages[stage.key].model_dump()]
    decides = hashlib.sha256(json.dumps([tree, targets, student.head], sort_keys=True).encode())
    for key, value in student.state_dict().items():
        decides.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
    return decides.hexdigest()[:24]


Indices = NDArray[np.int64]
CACHED = 2**27  # bytes of validation pixels that are cached in memory for a stage


def rows_of(images: Indices, dataset: DomainDataset) -> Indices:
    """Return the place of each image of a dataset in a list of images; -1 for those that aren't in it."""
    rows = np.full(len(dataset), -1)
    rows[images] = np.arange(len(images))
    return rows


ComputedFeatures = dict[tuple[bytes, int], Tensor]


class Features:
    """F(x) of a dataset's images; the same images are passed through the backbone once.

    Args:
        student: whose backbone is F; its weights don't change as long as features are wanted.
        shared_cache: where other runs put theirs; needs `contents`.
        contents: SHA-256 of each image of the dataset.

    Attributes:
        computed: so far, by images and view.
        together: whether every process of the run computes a part; all of them want the same in the same order then.
    """

    def __init__(
        self,
        student: Student,
        dataset: DomainDataset,
        fabric: Device,
        workers: int,
        progress: Progress,
        shared_cache: SharedCache | None = None,
        contents: Sequence[bytes] = (),
    ) -> None:
        self.student = student
        self.dataset = dataset
        self.fabric = fabric
        self.workers = workers
        self.progress = progress
        self.shared_cache = shared_cache
        self.contents = contents
        self.together = False
        self.computed: ComputedFeatures = {}

    def of(self, images: Indices, view: Rendering | None = None) -> Tensor:
        """Return F(x) [n, p] of images (dataset indices), of the clean ones or of one fixed view of each."""
        key = images.tobytes(), view[2] if view else 0
        if key not in self.computed:
            if self.shared_cache is None or self.fabric.world_size > 1:  # each process computes its part
                self.computed[key] = self._compute(images, view)
            else:
                self.computed[key] = self._shared(self.shared_cache, images, view)
        return self.computed[key]

    def _compute(self, images: Indices, view: Rendering | None) -> Tensor:
        own = own_part(self.fabric, images) if self.together else images
        pixels = clean_pixels(
            self.dataset, own, self.student.spec.image_size, workers=self.workers, view=view, fit=self.student.spec.fit
        )
        found = compute_features(self.student, pixels, self.fabric, len(own), self.progress)
        return put_together(self.fabric, found, len(images)) if self.together else found

    def _shared(self, shared_cache: SharedCache, images: Indices, view: Rendering | None) -> Tensor:
        """Return F(x), computed only for images that no run has computed it for."""
        contents = [self.contents[image] for image in images]
        precision = "Precision" if self.fabric.precision == "32-true" else "MixedPrecision"  # names of long ago
        name = backbone_name(self.student, precision, view[0].names[view[2]] if view else "clean")
        with shared_cache.alone(name):
            return self._from_cache(shared_cache, name, contents, images, view)

    def _from_cache(
        self, shared_cache: SharedCache, name: str, contents: Sequence[bytes], images: Indices, view: Rendering | None
    ) -> Tensor:
        """Return F(x); what is missing under the name is computed and put there."""
        found = shared_cache.features(name, contents)
        there = torch.zeros(len(images), dtype=torch.bool) if found is None else found[0]
        if not there.all():
            missing = ~there
            made = self._compute(images[missing.numpy()], view)
            shared_cache.put_features(
                name, [content for content, one in zip(contents, missing, strict=True) if one], made
            )
            features = made.new_zeros(len(images), made.shape[1])
            features[missing] = made
        else:
            assert found is not None
            features = found[1].new_zeros(len(images), found[1].shape[1])
        if found is not None:
            features[there] = found[1]
        return features
