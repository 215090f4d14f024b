"""The main job: from labelled images and a teacher to a student in a run folder."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from vl2v.config import RunConfig
from vl2v.data.objects import write_dataset
from vl2v.embeddings.bill import asker, with_budget
from vl2v.embeddings.plan import clean_images, fixed_views
from vl2v.embeddings.session import TeacherTargets, dim_of, text_targets
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import ConfigError, VL2VWarning
from vl2v.methods import Averager, Stage, task_of, version_of
from vl2v.methods.averaging import Swad
from vl2v.runs.datasets import Images, Sources
from vl2v.runs.evaluate import evaluate_images
from vl2v.runs.features import ComputedFeatures, Features, SharedCache
from vl2v.runs.folder import Run, check_folder, locked, open_run, save_version
from vl2v.runs.heads import calibrate, classifier_for, fit_last_layer, start_head
from vl2v.runs.plan import Minutes, RunPlan, limit_of, plan_run, saved_plan, takes_moments
from vl2v.runs.predictions import predictions_of, same_images, save_images
from vl2v.runs.query import open_session, queries_online
from vl2v.runs.settings import Options, has_tower, resolve, retrains, settings_of
from vl2v.runs.stages import ACTIVATIONS, RunStages, check_classes, check_trainable
from vl2v.runs.start import (
    automatic,
    labelled_by_teacher,
    new_backbone,
    new_student,
    selected,
    with_adapted_teacher,
)
from vl2v.session import Progress, Session, silent
from vl2v.students.classifier import Classifier
from vl2v.students.student import Student
from vl2v.system import rank, world_size
from vl2v.teachers import online_teacher, the_teacher, tower_of
from vl2v.teachers.prompts import prompts_for
from vl2v.training.device import from_first
from vl2v.training.learner import Checkpoint, load_checkpoint
from vl2v.training.loop import Trainer

AGAIN = "again"  # the folder, in a run's, of the training on all source images


def distill(
    settings: Mapping[str, Any] | None = None,
    out: Path | str = "runs/student",
    *,
    data: Path | str | Mapping[str, Any] | object | None = None,
    teacher: str | Mapping[str, Any] | None = None,
    student: str | Mapping[str, Any] | None = None,
    method: str | None = None,
    target: str | Sequence[str] | None = None,
    preset: str = "default",
    store: Path | str | None = None,
    budget: float = 0,
    domain: Callable[[int], str] | None = None,
    shared_cache: Path | None = None,
    minutes: Minutes = "auto",
    on_plan: Callable[[RunPlan], None] | None = None,
    on_metrics: Callable[[dict[str, Any]], None] | None = None,
    progress: Progress = silent,
    **options: Unpack[Options],
) -> Run:
    """Train a student, or resume a run that was interrupted.

    Args:
        settings: a tree of `RunConfig`'s keys, for all that has no keyword; the keywords are laid over it.
        out: the run folder.
        data: a folder of images or a manifest; or the tree's section of that name, as for the next two; or a dataset
            that is an object (see `vl2v.data.write_dataset`), which is written into `OUT-data`, beside the run.
        teacher: for example "open_clip:ViT-B-16/openai".
        student: a timm model.
        method: see `vl2v methods`.
        target: the domain, or domains, to leave out of training.
        preset: "default" or "paper" (the published recipe with the oddities of its code).
        store: the folder of the embedding store; by default the one that all runs share.
        budget: lifetime spending limit of this store for a paid teacher, in the vendor's currency.
        domain: the domain of an image of such an object by its index.
        shared_cache: a folder in which runs on the same images share what they compute alike; changes no result.
        minutes: what the run has to fit in; "auto": 20 where there is no GPU and the settings give neither steps nor
            image size; None: the settings as they are.
        on_plan: called with the plan of a run that hasn't begun.
        on_metrics: called with each row of `metrics.jsonl`: stage, step, every loss term, lr, seconds, validation.
        progress: called with the progress.
        **options: the other options of `vl2v distill`, and sections of the tree; see `vl2v.runs.settings.Options`.

    Returns:
        The finished run, evaluated on the source domains' validation images and the unseen domains.

    Raises:
        ConfigError: a setting that isn't known, is out of range or can't apply.
        VL2VError: of the part that failed; the message says what to do.

    Examples:
        >>> import vl2v
        >>> run = vl2v.distill(
        ...     data="images", teacher="recorded:vendor", target="paint", method="kd", out="runs/b",
        ...     student={"name": "test_efficientnet", "weights": "none"}, image_size=32,
        ...     stages={"distill": {"steps": 3, "batch_per_domain": 4}},
        ... )
        >>> run.finished, run.evaluation.of(role="unseen")[0].domain
        (True, 'paint')
    """
    data = _written(data, Path(out), domain)
    given = settings_of(settings, data=data, teacher=teacher, student=student, method=method, target=target, **options)
    config = resolve(given, preset)
    out = Path(out)
    session = Session.of(store, budget, silent if rank() else progress)
    with nullcontext() if rank() else locked(out):
        check_folder(out)
        plan, images = None, Images(config.data, session)
        if (begun := saved_plan(out, config, minutes, given)) is not None:
            config = begun
        elif world_size() == 1 and (
            limit_of(given, preset, minutes, config) or (on_plan and not takes_moments(config))
        ):
            plan = plan_run(
                given,
                preset=preset,
                store=session.store,
                budget=budget,
                minutes=minutes,
                images=images,
                progress=progress,
            )
            config, session = plan.config, replace(session, progress=plan.beside(session.progress))
            if on_plan is not None:
                on_plan(plan)
        trainer = _new_trainer(out, config, session.progress)
        trainer.log.on_metrics = None if rank() else on_metrics

        def opened() -> tuple[Run, Sources | None, Checkpoint | None]:
            nonlocal images
            run = open_run(out, config, lambda run: same_images(run, config, session))
            if images.data != run.config.data:
                images = Images(run.config.data, session)
            if run.finished:
                return run, None, None
            save_version(run, version_of(config.method))
            if plan is not None:
                plan.save(out)
            check_trainable(run.config, trainer.fabric.world_size, trainer.fabric.device.type)
            save_images(run, images.sources)
            several = trainer.fabric.world_size > 1
            return run, images.sources, load_checkpoint(out / "checkpoints") if several else None

        run, sources, trainer.checkpoint = from_first(trainer.fabric, opened)
        if sources is not None:
            with EmbeddingStore(session.store) as embeddings:
                shared = SharedCache(shared_cache) if shared_cache else None
                train(run, trainer, session, embeddings, sources, shared)
        from_first(trainer.fabric, lambda: _evaluated(run, images, session))
    return run


def _written(data: object, out: Path, domain: Callable[[int], str] | None) -> Path | str | Mapping[str, Any] | None:
    """Return data for the settings: a dataset that is an object is written beside the run folder."""
    if data is None or isinstance(data, Path | str | Mapping):
        if domain is not None:
            raise ConfigError("domain: gives the domains of a dataset that is an object; files have theirs")
        return data
    return write_dataset(data, out.with_name(f"{out.name}-data"), domain=domain)


def _evaluated(run: Run, images: Images, session: Session) -> None:
    if predictions_of(run) is None:
        evaluation, predictions = evaluate_images(run, session=session, images=images)
        predictions.save(run.folder)
        run.save_evaluation(evaluation)
    made = ("checkpoints", ACTIVATIONS)
    for temporary in (*made, *(f"{AGAIN}/{name}" for name in made)):  # the first is five times the student's size
        shutil.rmtree(run.folder / temporary, ignore_errors=True)


def _new_trainer(folder: Path, config: RunConfig, progress: Progress) -> Trainer:
    return Trainer(
        folder,
        config.train,
        config.seed,
        batch_norm=config.student.batch_norm,
        average=partial(_swad, config),
        progress=progress,
    )


def _swad(config: RunConfig, stage: Stage, last: bool) -> Averager | None:
    """Return SWAD for a stage, where the run wants it, and where what it finds isn't discarded (as the authors do)."""
    published = config.published
    if not config.train.swad or (published.swad_discarded and not last):
        return None
    where = published.swad_overlapping
    overlapping = where if isinstance(where, bool) else stage.key in where
    return Swad(overlapping=overlapping, restarts=published.swad_restarts)


@dataclass(frozen=True)
class Queried:
    """What the first of a run's processes makes of the teacher's embeddings; the others get a copy.

    Attributes:
        dim: d of the teacher's space; 0 without a teacher.
        sources: the images, those for validation with the teacher's predictions where none has a label.
        probabilities: the teacher's, of the validation images, where none has a label.
        chosen: for settings that are "auto".
        computed: features that this took.
    """

    dim: int
    targets: TeacherTargets
    sources: Sources
    probabilities: Tensor | None
    chosen: dict[str, float]
    computed: ComputedFeatures


def train(
    run: Run,
    trainer: Trainer,
    session: Session,
    store: EmbeddingStore,
    sources: Sources,
    shared_cache: SharedCache | None,
) -> None:
    """Train the run's student and save it.

    Args:
        session: the budget, and who is shown the progress.
        shared_cache: what is shared with other runs.

    Raises:
        DataError: a class that the method can't learn.
    """
    config, fabric, progress = run.config, trainer.fabric, session.progress
    task = task_of(config)
    if config.train.swad and any(new().over_steps for stage in task.stages for new in stage.averagers):
        progress(f"train.swad changes nothing: {config.method} averages its weights in a way of its own", 1, 1, "")
    for note in check_classes(task, sources):
        warnings.warn(note, VL2VWarning, stacklevel=2)
    own_tower = has_tower(config, task)
    wanted = task.queries != "nothing" or own_tower
    needed = fabric.is_global_zero or own_tower or queries_online(config)
    teacher = the_teacher(config.teacher) if wanted and needed else None
    if queries_online(config) and teacher is not None:
        online_teacher(config.teacher, teacher)  # refuses a black box, before it is paid for anything
    base = tower_of(teacher, config.student.statistics) if own_tower and teacher is not None else new_backbone(config)
    parent = Run(config.student.parent).classifier.student if config.student.parent is not None else None
    views = clean_images(config) if task.queries == "nothing" else fixed_views(config, base[1].image_size)

    @cache
    def started(dim: int) -> tuple[Student, Features]:
        student = new_student(config, task, len(sources.dataset.classes), base, dim)
        if parent is not None:
            student.start_from(parent)
        trainer.prepare(student)
        if config.train.quick != "off":
            student.cut(config.train.quick)
        options = fabric, config.data.processes, progress, shared_cache, sources.audit.contents
        return student, Features(student, sources.dataset, *options)

    with ExitStack() as paid:
        paying = with_budget(teacher, session, asker(run.folder)) if teacher else nullcontext()
        spending = paid.enter_context(paying) if fabric.is_global_zero else None

        def queried() -> Queried:
            dim = dim_of(store, teacher) if teacher else 0
            _, features = started(dim)
            learnt, probabilities = sources, None
            targets = TeacherTargets(sources.dataset.labels, domains=sources.dataset.domain_ids)
            if teacher is not None and task.queries != "nothing":
                queries = open_session(config, store, teacher, spending, sources, views, progress)
                queries = replace(queries, buys_new_sizes=False)
                nothing = np.zeros(0, np.int64)
                selection = nothing if task.queries == "texts" else selected(queries, sources, features, run.folder)
                run.save_refused(queries.query(selection))
                targets = queries.targets(selection)
                if config.teacher.adapt == "auto":
                    targets = with_adapted_teacher(targets, sources, progress)
            if not sources.labelled:
                learnt, probabilities = labelled_by_teacher(sources, targets)
            chosen = automatic(task, run, learnt, targets, features, progress)
            return Queried(dim, targets, learnt, probabilities, chosen, features.computed)

        found = from_first(fabric, queried)
    (student, features), targets, sources = started(found.dim), found.targets, found.sources
    features.computed, features.together = found.computed, True
    if queries_online(config) and teacher is not None:
        targets = replace(targets, online=online_teacher(config.teacher, teacher))
    if task.head == "stacked":
        assert targets.texts is not None
        student.classify_by(torch.from_numpy(targets.texts))
    task = task.with_chosen(found.chosen)
    work = RunStages(run, student, sources, targets, views, trainer, features, found.probabilities)
    again = retrains(config, task)
    stages = task.stages if parent is None else task.stages[-1:]  # whose projector fits already
    stages = () if config.train.head == "only" else stages
    if config.train.head == "start" and parent is None and (again or not (run.folder / "checkpoints").exists()):
        progress(start_head(student, sources, features), 1, 1, "")
    start = copy.deepcopy(student) if again else student
    with ExitStack() as held:
        alone = fabric.world_size == 1
        keep = work.share(shared_cache, stages[0], held) if shared_cache is not None and alone and stages else None
        if stages:
            trainer.fit(student, [(stage, partial(work.of, stage)) for stage in stages], keep, found.dim)
    if not fabric.is_global_zero:
        return

    def new_features(one: Student) -> Features:
        return Features(one, sources.dataset, fabric, config.data.processes, progress)

    def classifier_of(one: Student, sources: Sources, head: str) -> tuple[Classifier, str]:
        head = fit_last_layer(one, config, task, sources, targets, parent, new_features, progress, head)
        return classifier_for(one, config, sources, teacher, targets, own_tower=own_tower), head

    classifier, head = classifier_of(student, sources, config.train.head)
    calibrate(classifier, sources, config.data.processes, found.probabilities)
    if again and stages:
        best = config.train.select == "best"
        steps = trainer.log.best_step(stages[-1].name) if best else trainer.log.rows()[-1]["step"]
        progress(f"once more, {steps:,} steps on all source images", 1, 1, "")
        everything = sources.with_validation()
        (run.folder / AGAIN).mkdir(exist_ok=True)
        second = _new_trainer(run.folder / AGAIN, _retraining(config), progress)
        second.prepare(start)
        work = replace(
            work, student=start, sources=everything, trainer=second, features=new_features(start), steps=steps
        )
        second.fit(start, [(stage, partial(work.of, stage)) for stage in stages], dim=found.dim)
        first, (classifier, _) = classifier, classifier_of(start, everything, head)
        classifier.temperature, classifier.threshold = first.temperature, first.threshold
        classifier.about = {**first.about, "images": everything.counts, "retrained": steps}
    texts = classifier.texts
    if texts is not None and sources.others and teacher is not None:
        prompts = prompts_for(sources.others, config.prompts, sources.names)
        others = torch.from_numpy(text_targets(store, teacher.fingerprint, prompts))
        classifier.texts = torch.cat([texts, others.to(texts)])
        classifier.classes += sources.others
    classifier.save(run.folder / "student")


def _retraining(config: RunConfig) -> RunConfig:
    """Return the settings of a training that nothing validates any more."""
    train = config.train.model_copy(update={"select": "last", "steps": "set", "swad": False, "tensorboard": False})
    return config.model_copy(update={"train": train})
