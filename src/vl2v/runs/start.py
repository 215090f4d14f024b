"""What a run starts with: the student as it comes, a first one, the images to query, what the targets decide.

A first student is good for a few seconds' work. By the teacher's targets lambda, the temperature, the adapted teacher
and the labels of images that have none are decided.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vl2v.config import RunConfig
from vl2v.data.dataset import DomainDataset
from vl2v.embeddings.plan import BY_STUDENT, balanced_order, k_center_order, random_order
from vl2v.embeddings.session import TeacherSession, TeacherTargets
from vl2v.errors import DataError
from vl2v.evaluation.adapted import AdaptedTeacher, Embedded, adapted
from vl2v.evaluation.metrics import soft_temperature
from vl2v.evaluation.ridge import Taught, best_lambda, lambda_accuracies
from vl2v.io import locked, read_json, temporary_folder, write_text
from vl2v.methods import Task
from vl2v.methods.adip import align
from vl2v.methods.averaging import Scores
from vl2v.runs.datasets import Sources
from vl2v.runs.features import Features, Indices, rows_of
from vl2v.runs.folder import CHOSEN, Run
from vl2v.runs.settings import has_tower, resolve
from vl2v.session import Progress, derive
from vl2v.students.backbone import output_width, pretrained_backbone
from vl2v.students.student import Student, new_projector
from vl2v.teachers.protocol import BackboneSpec
from vl2v.training.batches import DomainBalancedSampler, FeatureBatches, batch_targets
from vl2v.training.device import OneDevice
from vl2v.training.learner import StageWork, Validation
from vl2v.training.loop import Trainer
from vl2v.tree import Tree

FEW = 10  # images with a label and an embedding; fewer say nothing


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
    with temporary_folder() as folder:
        trainer = Trainer(folder, config.train, seed, progress=features.progress, alone=True)
        scores = trainer.fit(student, [(stage, lambda: work)])
    return student, scores


def selected(session: TeacherSession, sources: Sources, features: Features, run: Path | None = None) -> Indices | None:
    """Return the training images that a run queries its teacher about (dataset indices, sorted); None: every image.

    The selection is made once and saved: in the store's folder for runs alike, whatever their image size, and as
    `asked.json` in the run folder, so that a run that is resumed learns from the very images that it began with.
    """
    wanted, training = session.config.teacher.select, sources.queried
    if wanted is None:
        return None
    own = [] if run is None else [run / "asked.json"]
    with ExitStack() as held:
        shared = [] if wanted == "known" else [_saved(session, training)]
        for file in shared:
            held.enter_context(locked(file.with_suffix(".lock")))
        found = next((file for file in (*own, *_selections(session, training)) if file.is_file()), None)
        if found is None:
            chosen = session.contents(session.same(_select(session, sources, features)))
        else:
            chosen = read_json(found)
        for file in own + shared:
            if not file.is_file():
                write_text(file, json.dumps(sorted(set(chosen))))
    return _among(session, training, chosen)


def selected_before(session: TeacherSession, sources: Sources) -> Indices | None:
    """Return the training images that were selected for runs like this one (see `selected`); None: none were yet."""
    training = sources.queried
    found = next((file for file in _selections(session, training) if file.is_file()), None)
    return None if found is None else _among(session, training, read_json(found))


def _among(session: TeacherSession, training: Indices, chosen: Collection[str]) -> Indices:
    return training[np.isin(session.contents(session.same(training)), list(chosen))]


def _selections(session: TeacherSession, training: Indices) -> list[Path]:
    """Return the files that a selection may be saved in: an earlier version's, and this one's."""
    if session.config.teacher.select == "known":
        return []
    return [_saved(session, training, sized=True), _saved(session, training)]


def _saved(session: TeacherSession, training: Indices, *, sized: bool = False) -> Path:
    return session.store.path / "chosen" / f"{_digest(session, training, sized=sized)}.json"


def _select(session: TeacherSession, sources: Sources, features: Features) -> Indices:
    config, training = session.config, sources.queried
    if config.teacher.select == "known":
        return training[session.cached(training)]
    before, images = candidates(session, sources)
    count = min(int(config.teacher.select or 0), len(images))
    return np.concatenate([before, images[_order(session, sources, features, before, images, count)]])


def candidates(session: TeacherSession, sources: Sources) -> tuple[Indices, Indices]:
    """Return the images that are queried in any case, and those that are chosen from: of copies one, of these none.

    Raises:
        ConfigError: the images without labels are chosen from, and there is none.
    """
    before, images = sources.candidates(session.config.teacher.select_from)
    _, first = np.unique(session.same(images), return_index=True)
    images = images[np.sort(first)]
    return before, images[~np.isin(session.same(images), session.same(before))]


def _order(
    session: TeacherSession, sources: Sources, features: Features, before: Indices, images: Indices, count: int
) -> Indices:
    """Return which `count` of some images to query (positions), where all of those `before` them are queried."""
    config, training = session.config, sources.queried
    match config.teacher.strategy:
        case "random":
            return random_order(len(images), config.seed)[:count]
        case "balanced":
            labels, domains = session.dataset.labels[images], session.dataset.domain_ids[images]
            return balanced_order(labels, domains, config.seed)[:count]
    found = features.of(training).numpy()  # of all: Align needs them anyway
    rows, known = (found[np.searchsorted(training, some)] for some in (images, before))
    if config.teacher.strategy == "kcenter":
        return k_center_order(rows, count, known)
    half = k_center_order(rows, 0 if len(before) else count // 2)  # the others come first by a student of these
    taught = np.concatenate([before, images[half]])
    session.query(taught)
    rest = np.setdiff1d(np.arange(len(images)), half)
    targets = session.targets(taught)
    assert targets.texts is not None
    student, _ = aligned(config, sources, features, targets, config.seed)
    with torch.no_grad():
        logits = student.logits(torch.from_numpy(rows[rest]), torch.from_numpy(targets.texts), targets.scale)
    more = BY_STUDENT[config.teacher.strategy](logits.cpu().numpy())[: count - len(half)]
    return np.concatenate([half, rest[more]])


def _digest(session: TeacherSession, training: Indices, *, sized: bool) -> str:
    """Return a digest of everything that decides the selection, but for the image size that a plan may choose."""
    config = session.config
    decides = hashlib.sha256()
    later = {"select_from"} if config.teacher.select_from != "all" else set()  # selections from before it are found
    ours = {"select", "strategy", *later}
    decides.update(config.teacher.model_dump_json(include=ours).encode())
    decides.update(config.student.model_dump_json(exclude=set() if sized else {"image_size"}).encode())
    decides.update(f"{config.seed} {session.teacher.fingerprint}".encode())
    decides.update("".join(session.contents(session.same(training))).encode())
    decides.update(session.dataset.labels[training].tobytes() + session.dataset.domain_ids[training].tobytes())
    return decides.hexdigest()[:32]


def free_features(config: RunConfig, sources: Sources, progress: Progress) -> Features:
    """Return the features of the untrained student."""
    backbone, spec = new_backbone(config)
    fabric = OneDevice(config.train)
    student = Student(backbone, nn.Identity(), spec).to(fabric.device)
    return Features(student, sources.dataset, fabric, config.data.processes, progress)


def automatic(
    task: Task, run: Run, sources: Sources, targets: TeacherTargets, features: Features, progress: Progress
) -> dict[str, float]:
    """Return numbers for those of a task's settings that are "auto": chosen by the teacher's embeddings.

    They stand in the run's `chosen.json`, with how accurate each lambda was; what was chosen before is taken, for an
    adapted student's parent, too.

    Args:
        features: of the backbone as it starts.
        progress: called with what was chosen.
    """
    file, parent = run.folder / CHOSEN, run.config.student.parent
    chosen: Tree = read_json(file, read_json(Path(parent) / CHOSEN, {}) if parent else {})
    names = task.automatic
    missing = [name for name in names if name not in chosen]
    if "lambda" in missing:
        chosen["lambda"] = 0.5  # where few images were queried
        if (taught := _taught(sources, targets, features)) is not None:
            chosen["accuracies"] = lambda_accuracies(taught)
            chosen["lambda"] = best_lambda(chosen["accuracies"], len(taught.labels))
    if "temperature" in missing:
        chosen["temperature"] = _soft_temperature(sources, targets)
    if chosen and (missing or not file.is_file()):
        write_text(file, json.dumps(chosen, indent=2))
    for name in names:
        progress(f"chosen on the source domains: {name} {chosen[name]:g}", 1, 1, "")
    return {name: chosen[name] for name in names}


def _soft_temperature(sources: Sources, targets: TeacherTargets) -> float:
    """Return the temperature for the teacher's embeddings of the images to learn from; 2 where there are few."""
    assert targets.images is not None and targets.texts is not None
    queried = targets.queried(learnt_images(sources, targets))
    if len(queried) < FEW:
        return 2.0
    nowhere = np.zeros_like(queried)
    return soft_temperature(batch_targets(targets, queried, nowhere).logits().numpy(), targets.scale)


def _taught(sources: Sources, targets: TeacherTargets, features: Features) -> Taught | None:
    """Return the images that lambda is chosen on; None where few were queried."""
    assert targets.images is not None and targets.texts is not None
    indices = learnt_images(sources, targets)
    images = targets.images[indices, 0]
    queried = (targets.labels[indices] >= 0) & images.any(1)
    if queried.sum() < FEW:
        return None
    found = features.of(indices).numpy()  # the very ones that Align learns from
    usable = indices[queried]
    labels, groups = targets.labels[usable], sources.dataset.domain_ids[usable]
    return Taught(found[queried], images[queried].astype(np.float32), targets.texts, labels, groups)


def adapted_teacher(
    targets: TeacherTargets, dataset: DomainDataset, images: NDArray[np.int64]
) -> AdaptedTeacher | None:
    """Return the teacher adapted to labelled images of the source domains; None where they are too few to tell.

    Args:
        targets: the teacher's embeddings; images that it wasn't queried about don't count.
        images: dataset indices; those for validation aren't to be among them.
    """
    assert targets.images is not None and targets.texts is not None
    queried = targets.queried(images[dataset.labels[images] >= 0])
    labels = dataset.labels[queried]
    if len(queried) < FEW or len(np.unique(labels)) < 2:
        return None
    embeddings = targets.images[queried, 0].astype(np.float32)
    return adapted(Embedded(embeddings, targets.texts, labels, dataset.domain_ids[queried], targets.scale))


def with_adapted_teacher(targets: TeacherTargets, sources: Sources, progress: Progress) -> TeacherTargets:
    """Return the same targets, with the logits of the teacher adapted to the training images (`teacher.adapt`)."""
    fitted = adapted_teacher(targets, sources.dataset, sources.split.train)
    if fitted is None or not fitted.blend:
        progress("the teacher stays zero-shot", 1, 1, "")
        return targets
    progress("the teacher is adapted", 1, 1, f"blend {fitted.blend:g}, shrinkage {fitted.shrinkage:g}")
    return replace(targets, adapted=np.hstack([fitted.weight, fitted.bias[:, None]]))


def labelled_by_teacher(sources: Sources, targets: TeacherTargets) -> tuple[Sources, Tensor]:
    """Return the images with the teacher's predictions for the labels of the held-out ones, which validate by that.

    What isn't held out stays without a label: it is learnt from the embeddings.

    Returns:
        The sources, with those held-out images that were queried, and the teacher's probabilities of these [n, C].

    Raises:
        DataError: none of them, or none of the others, was queried.
    """
    held = targets.queried(sources.split.val)
    learnt = targets.queried(sources.split.unlabelled)
    for count, images, what in (
        (len(held), sources.split.val, "are held out"),
        (len(learnt), sources.split.unlabelled, "are to be learnt from"),
    ):
        if not count:
            raise DataError(
                f"{sources.dataset.root}: the teacher was queried about none of the {len(images)} images that {what}; "
                "raise teacher.select (--select)"
            )
    probabilities = batch_targets(targets, held, np.zeros_like(held)).logits().softmax(-1)
    labels = sources.dataset.labels.copy()
    labels[held] = probabilities.argmax(-1).numpy()
    dataset, split = replace(sources.dataset, labels=labels), replace(sources.split, val=held)
    return replace(sources, dataset=dataset, split=split), probabilities


def learnt_images(sources: Sources, targets: TeacherTargets) -> NDArray[np.int64]:
    """Return the images that something is learnt from (dataset indices, sorted)."""
    return np.unique(np.concatenate(sources.groups(targets.queried(sources.split.unlabelled))))
