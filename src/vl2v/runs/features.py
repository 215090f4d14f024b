"""What the student's backbone sees as it came, before anything is taught: features F(x), computed once."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vl2v.config import RunConfig
from vl2v.data.dataset import DomainDataset
from vl2v.embeddings.select import select_images
from vl2v.embeddings.session import TeacherSession
from vl2v.embeddings.targets import TeacherTargets
from vl2v.methods import Task
from vl2v.methods.adip import align
from vl2v.methods.averaging import Scores
from vl2v.runs.cache import SharedCache, backbone_name
from vl2v.runs.datasets import Sources
from vl2v.runs.settings import has_tower, resolve
from vl2v.runs.unlabelled import labelled_by_teacher
from vl2v.seeds import derive
from vl2v.session import Progress
from vl2v.students.backbone import output_width, pretrained_backbone
from vl2v.students.student import Student, new_projector
from vl2v.teachers.protocol import BackboneSpec
from vl2v.training.batches import FeatureBatches, Rendering, clean_pixels
from vl2v.training.device import Device
from vl2v.training.features import compute_features
from vl2v.training.loop import Trainer
from vl2v.training.processes import from_first, own_part, put_together
from vl2v.training.sampler import DomainBalancedSampler
from vl2v.training.stage import StageWork, Validation

Indices = NDArray[np.int64]

CACHED = 2**27  # bytes of validation pixels that are cached in memory for a stage


def new_backbone(config: RunConfig) -> tuple[nn.Module, BackboneSpec]:
    """Return the student's backbone F as it comes; random weights are decided by the seed.

    Raises:
        StudentError: unknown model, weights that can't be had or don't fit.
    """
    wanted = config.student
    torch.manual_seed(derive(config.seed, "backbone"))
    backbone, spec = pretrained_backbone(
        wanted.name, wanted.weights, image_size=wanted.image_size, statistics=wanted.statistics
    )
    return backbone, replace(spec, fit=config.data.fit)


def new_student(config: RunConfig, task: Task, classes: int, base: tuple[nn.Module, BackboneSpec], dim: int) -> Student:
    """Return the student as it starts.

    Args:
        config: of the run.
        task: how it learns.
        classes: how many.
        base: its backbone and spec: `new_backbone`'s, or `tower_of`'s for methods that start from that.
        dim: d of the teacher's space.
    """
    own_tower = has_tower(config, task)
    backbone, spec = base[0], replace(base[1], fit=config.data.fit)
    features = dim if own_tower else output_width(config.student.name, spec.image_size)
    seed = derive(config.seed, "projector")
    if task.head == "stacked":
        head = new_projector(dim, classes, derive(config.seed, "head"))
        return Student(backbone, nn.Sequential(new_projector(features, dim, seed), head), spec, "linear")
    if own_tower and task.head == "text" and all(stage.trains == "all" for stage in task.stages):
        return Student(backbone, nn.Identity(), spec)  # it ends in the teacher's space already
    return Student(backbone, new_projector(features, dim if task.head == "text" else classes, seed), spec, task.head)


def rows_of(images: Indices, dataset: DomainDataset) -> Indices:
    """Return the place of each image of a dataset in a list of images; -1 for those that aren't in it."""
    rows = np.full(len(dataset), -1)
    rows[images] = np.arange(len(images))
    return rows


class Features:
    """F(x) of a dataset's images; the same images are passed through the backbone once.

    Args:
        student: whose backbone is F; its weights don't change as long as features are wanted.
        dataset: the images.
        fabric: device and precision.
        workers: decoding processes.
        progress: called with the progress.
        shared_cache: where other runs put theirs; needs `contents`.
        contents: SHA-256 of each image of the dataset.
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
        self._computed: dict[tuple[bytes, int], Tensor] = {}

    def of(self, images: Indices, view: Rendering | None = None) -> Tensor:
        """Return F(x) [n, p] of images (dataset indices), of the clean ones or of one fixed view of each."""
        key = images.tobytes(), view[2] if view else 0
        if key not in self._computed:
            if self.shared_cache is None or self.fabric.world_size > 1:  # each process computes its part
                self._computed[key] = self._compute(images, view)
            else:
                self._computed[key] = self._shared(self.shared_cache, images, view)
        return self._computed[key]

    def spread(self) -> None:
        """From here on let every process of the run compute a part; all of them want the same in the same order."""
        self._computed = from_first(self.fabric, lambda: self._computed)
        self.together = True

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


def aligned(
    config: RunConfig,
    sources: Sources,
    features: Features,
    targets: TeacherTargets,
    seed: int,
    steps: int | None = None,
) -> tuple[Student, Scores]:
    """Return a first student, good for a few seconds' work: ADiP's Align on features alone, and how well it does.

    Args:
        config: of the run; Align's settings are ADiP's defaults unless it has its own.
        sources: the images to learn from, and to validate on.
        features: of them.
        targets: the teacher's embeddings, zeros for what wasn't queried.
        seed: of its draws.
        steps: of the optimiser.
    """
    settings = (config if "align" in config.stages else resolve({"data": {"path": config.data.path}})).stages["align"]
    if steps is not None:
        settings = settings.model_copy(update={"steps": steps, "eval_every": None})
    stage = align(0.5)
    assert targets.images is not None and targets.texts is not None
    spec, dim = features.student.spec, targets.texts.shape[1]
    probabilities = None
    if not sources.labelled:
        sources, probabilities = labelled_by_teacher(sources, targets)
    train, val = sources.training, sources.split.val
    found = features.of(train)
    seen = features.of(val)
    labels, texts = torch.from_numpy(sources.dataset.labels[val]), torch.from_numpy(targets.texts)
    labels = labels if probabilities is None else probabilities
    groups = sources.groups(targets.queried(sources.split.unlabelled))
    sampler = DomainBalancedSampler(groups, settings.batch_per_domain, derive(seed, "first"))
    student = Student(nn.Identity(), new_projector(found.shape[1], dim, derive(seed, "first projector")), spec)
    work = StageWork(
        stage,
        settings,
        FeatureBatches(
            sampler, found[:, None], targets, rows_of(train, sources.dataset), np.zeros(1, np.int64), sampler.seed
        ),
        Validation(lambda: [seen], labels, texts, targets.scale),
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(Path(folder), config.train, seed, progress=features.progress, alone=True)
        scores = trainer.fit(student, [(stage, lambda: work)])
    return student, scores


def selected(session: TeacherSession, sources: Sources, features: Features, run: Path | None = None) -> Indices | None:
    """Return the training images that a run queries its teacher about (dataset indices); None: every image."""

    def classify(targets: TeacherTargets, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        assert targets.texts is not None
        student, _ = aligned(session.config, sources, features, targets, session.config.seed)
        with torch.no_grad():
            logits = student.logits(torch.from_numpy(rows), torch.from_numpy(targets.texts), targets.scale)
        return logits.cpu().numpy()

    return select_images(session, sources.queried, lambda images: features.of(images).numpy(), classify, run)
