"""The main job: from labelled images and a teacher to a student in a run folder."""

from __future__ import annotations

import copy
import hashlib
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from vl2v.embeddings.session import dim_of
from vl2v.embeddings.store import EmbeddingStore
from vl2v.embeddings.targets import TeacherTargets, online_teacher, text_targets, the_teacher, tower_of
from vl2v.embeddings.views import Views, clean_images, fixed_views
from vl2v.errors import ConfigError, DataError, VL2VWarning
from vl2v.evaluation.metrics import fit_temperature, unknown_threshold
from vl2v.methods import Averager, Stage, Task, task_of, version_of
from vl2v.runs.auto_loss import align_again, refit, settled, toward_parent
from vl2v.runs.cache import SharedCache, stage_name
from vl2v.runs.datasets import Images, Sources
from vl2v.runs.evaluate import classifier_logits, evaluate_images
from vl2v.runs.features import CACHED, Features, Indices, new_backbone, new_student, rows_of, selected
from vl2v.runs.folder import Run, locked, open_run, save_version
from vl2v.runs.image_identity import predictions_of, same_images, save_images
from vl2v.runs.plan import Minutes, RunPlan, limit_of, plan_run, saved_plan, takes_moments
from vl2v.runs.session import open_session, queries_online
from vl2v.runs.settings import Options, has_tower, refits, resolve, retrains, settings_of
from vl2v.runs.unlabelled import labelled_by_teacher
from vl2v.runs.zero_shot import with_adapted_teacher
from vl2v.seeds import derive
from vl2v.session import Progress, Session, silent
from vl2v.students.backbone import weights_of
from vl2v.students.classifier import Classifier
from vl2v.students.student import Student
from vl2v.system import rank, world_size
from vl2v.teachers.prompts import prompts_for
from vl2v.teachers.protocol import Teacher
from vl2v.training.batches import FeatureBatches, PixelBatches, Renderer, Rendering, clean_pixels, viewed_pixels
from vl2v.training.features import cached_activations
from vl2v.training.loop import Trainer
from vl2v.training.processes import from_first, own_part, put_together
from vl2v.training.sampler import DomainBalancedSampler
from vl2v.training.stage import StageWork, Validation
from vl2v.training.swad import Swad

ACTIVATIONS = "activations"  # folder of a run that trains the upper blocks only, until it ends

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
        plan, images = None, Images(config.data, session)
        if (begun := saved_plan(out, config, minutes)) is not None:
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
        run, finished = from_first(trainer.fabric, lambda: _opened(out, config, session))
        if plan is not None:
            plan.save(out)
        if images.data != run.config.data:
            images = Images(run.config.data, session)
        if not finished:
            with EmbeddingStore(session.store) as embeddings:
                shared = SharedCache(shared_cache) if shared_cache else None
                train(run, trainer, session, embeddings, images, shared)
        from_first(trainer.fabric, lambda: _evaluated(run, images, session))
    return run


def _written(data: object, out: Path, domain: Callable[[int], str] | None) -> Path | str | Mapping[str, Any] | None:
    """Return data for the settings: a dataset that is an object is written beside the run folder."""
    if data is None or isinstance(data, Path | str | Mapping):
        if domain is not None:
            raise ConfigError("domain: gives the domains of a dataset that is an object; files have theirs")
        return data
    return write_dataset(data, out.with_name(f"{out.name}-data"), domain=domain)


def _opened(out: Path, config: RunConfig, session: Session) -> tuple[Run, bool]:
    run = open_run(out, config, lambda run: same_images(run, config, session))
    if not run.finished:
        save_version(run, version_of(config.method))
    return run, run.finished


def _sources_of(run: Run, images: Images) -> Sources:
    save_images(run, images.sources)
    return images.sources


def _evaluated(run: Run, images: Images, session: Session) -> None:
    if predictions_of(run) is None:
        evaluation, predictions = evaluate_images(run, session=session, images=images)
        predictions.save(run.folder)
        run.save_evaluation(evaluation)
    for temporary in (
        "checkpoints",
        f"{AGAIN}/checkpoints",
        ACTIVATIONS,
    ):  # the former is five times the student's size
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


def train(
    run: Run,
    trainer: Trainer,
    session: Session,
    store: EmbeddingStore,
    images: Images,
    shared_cache: SharedCache | None,
) -> None:
    """Train the run's student and save it.

    Args:
        run: an unfinished run.
        trainer: of its folder.
        session: the budget, and who is shown the progress.
        store: the session's, open.
        images: the run's.
        shared_cache: what is shared with other runs.

    Raises:
        ConfigError: the method trains nothing, or can't be trained on several devices.
        DataError: a class that the method can't learn.
    """
    config, fabric, progress = run.config, trainer.fabric, session.progress
    task = task_of(config)
    if not task.stage_defaults:
        raise ConfigError(f"method {config.method}: trains no student; it is a row of `vl2v benchmark`")
    _check_parts(config, task, fabric.world_size)
    if config.train.swad and any(new().over_steps for stage in task.stages for new in stage.averagers):
        progress(f"train.swad changes nothing: {config.method} averages its weights in a way of its own", 1, 1, "")
    sources = from_first(fabric, lambda: _sources_of(run, images))
    for note in _check_classes(task, sources):
        warnings.warn(note, VL2VWarning, stacklevel=2)
    own_tower = has_tower(config, task)
    wanted = task.queries != "nothing" or own_tower
    needed = fabric.is_global_zero or own_tower or queries_online(config)
    teacher = the_teacher(config.teacher) if wanted and needed else None
    if queries_online(config) and teacher is not None:
        online_teacher(config.teacher, teacher)  # refuses a black box, before it is paid for anything
    base = tower_of(teacher, config.student.statistics) if own_tower and teacher is not None else new_backbone(config)
    with ExitStack() as paid:
        paying = with_budget(teacher, session, asker(run.folder)) if teacher else nullcontext()
        spending = paid.enter_context(paying) if fabric.is_global_zero else None
        dim = from_first(fabric, lambda: dim_of(store, teacher) if teacher else 0)
        student = new_student(config, task, len(sources.dataset.classes), base, dim)
        parent = Run(config.student.parent).classifier.student if config.student.parent is not None else None
        if parent is not None:
            student.start_from(parent)
        trainer.prepare(student)
        if config.train.quick != "off":
            student.cut(config.train.quick)
        features = Features(
            student,
            sources.dataset,
            trainer.fabric,
            config.data.workers,
            progress,
            shared_cache,
            sources.audit.contents,
        )
        views = clean_images(config)
        targets = TeacherTargets(sources.dataset.labels, domains=sources.dataset.domain_ids)
        if task.queries != "nothing":
            views = fixed_views(config, student.spec.image_size)

            def queried() -> TeacherTargets:
                assert teacher is not None
                queries = open_session(config, store, teacher, spending, sources, views, progress)
                queries = replace(queries, buys_new_sizes=False)
                nothing = np.zeros(0, np.int64)
                chosen = nothing if task.queries == "texts" else selected(queries, sources, features, run.folder)
                run.save_refused(queries.query(chosen))
                found = queries.targets(chosen)
                return with_adapted_teacher(found, sources, progress) if config.teacher.adapt == "auto" else found

            targets = from_first(fabric, queried)
            if queries_online(config) and teacher is not None:
                targets = replace(targets, online=online_teacher(config.teacher, teacher))
    probabilities = None  # the teacher's, that validate where there is no label
    if not sources.labelled:
        sources, probabilities = labelled_by_teacher(sources, targets)
    if task.head == "stacked":
        assert targets.texts is not None
        student.classify_by(torch.from_numpy(targets.texts))
    features.spread()
    task = settled(task, run.folder, sources, targets, features, fabric, progress)
    work = _Work(run, student, sources, targets, views, trainer, features, probabilities)
    again = retrains(config, task)
    start = copy.deepcopy(student) if again else student
    stages = task.stages if parent is None else task.stages[-1:]  # whose projector fits already
    stages = () if config.train.head == "only" else stages
    with ExitStack() as held:
        alone = fabric.world_size == 1
        keep = work.share(shared_cache, stages[0], held) if shared_cache is not None and alone and stages else None
        if stages:
            trainer.fit(student, [(stage, partial(work.of, stage)) for stage in stages], keep)
    if not fabric.is_global_zero:
        return

    def new_features(one: Student) -> Features:
        return Features(one, sources.dataset, fabric, config.data.workers, progress)

    def classifier_of(student: Student, sources: Sources) -> Classifier:
        student.fold()
        head = config.train.head
        if refits(config, task):
            trained = new_features(student)
            if head != "method":
                progress(refit(student, task, sources, targets, trained, head), 1, 1, "")
            elif (best := align_again(student, sources, targets, trained)) is not None:
                progress(f"aligned again, lambda {best:g}", 1, 1, "")
        if parent is not None:
            progress(toward_parent(student, parent, sources, targets, new_features), 1, 1, "")
        texts = torch.from_numpy(targets.texts) if student.head == "text" and targets.texts is not None else None
        scale = targets.scale if student.head == "text" else 1.0
        about = _about(config, sources, teacher, targets, own_tower=own_tower)
        return Classifier(student, list(sources.dataset.classes), texts, scale=scale, about=about)

    classifier = classifier_of(student, sources)
    _calibrate(classifier, sources, config.data.workers, probabilities)
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
        second.fit(start, [(stage, partial(work.of, stage)) for stage in stages])
        first, classifier = classifier, classifier_of(start, everything)
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


def _about(
    config: RunConfig, sources: Sources, teacher: Teacher | None, targets: TeacherTargets, *, own_tower: bool
) -> dict[str, Any]:
    """Return where a student comes from."""
    about_teacher = None
    if teacher is not None:
        queried = targets.texts is not None
        scale = targets.scale if queried else config.teacher.logit_scale or teacher.logit_scale or 1.0
        about_teacher = {
            "spec": teacher.name,
            "fingerprint": teacher.fingerprint,
            "scale": scale,
            "fit": config.teacher.fit,
        }
    return {
        "method": config.method,
        "seed": config.seed,
        "sources": sources.names,
        "target": config.data.target,
        "images": sources.counts,
        "teacher": about_teacher,
        "weights": "the teacher's own" if own_tower else weights_of(config.student.name, config.student.weights),
        "prompts": config.prompts.model_dump(),
        **_parent(config),
    }


def _parent(config: RunConfig) -> dict[str, Any]:
    """Return the name and the digest of the run that a student was adapted from, if it was."""
    if config.student.parent is None:
        return {}
    weights = (config.student.parent / "student" / "student.safetensors").read_bytes()
    return {"parent": {"run": config.student.parent.name, "sha256": hashlib.sha256(weights).hexdigest()}}


def _calibrate(classifier: Classifier, sources: Sources, workers: int, probabilities: Tensor | None) -> None:
    """Fit the temperature and the "unknown" threshold on the validation images; without labels to the teacher's word.

    Args:
        classifier: is calibrated.
        sources: the images.
        workers: decoding processes.
        probabilities: the teacher's, of the validation images [n, C], where none has a label.
    """
    logits = classifier_logits(classifier, sources.dataset, sources.split.val, workers)
    labels = torch.from_numpy(sources.dataset.labels[sources.split.val])
    right = (logits.argmax(1) == labels).double().mean().item()
    if probabilities is None:
        classifier.about["validation_accuracy"] = right
    else:
        classifier.about |= {"validation_agreement": right, "validation_images": len(labels)}
    classifier.temperature = fit_temperature(logits, labels if probabilities is None else probabilities)
    classifier.threshold = unknown_threshold(logits / classifier.temperature, labels)


def _check_classes(task: Task, sources: Sources) -> list[str]:
    """Return a line about classes of which the split leaves no image to train on; refuse what can't be learnt at all.

    Raises:
        DataError: a head of the student's own could never predict such a class.
    """
    if not sources.labelled:
        return []
    missing = sources.others
    if missing and task.head != "text":
        raise DataError(
            f"{sources.dataset.root}: no source domain has images of {', '.join(missing[:5])}, so that {task.name} "
            "can't learn it; take adip, which knows a class by its text, or move its images out of the data"
        )
    names = sources.dataset.classes
    learnt = set(sources.dataset.labels[sources.split.train].tolist())
    unlearnt = [name for i, name in enumerate(names) if i not in learnt]
    if not unlearnt:
        return []
    listed = ", ".join(unlearnt[:5]) + (f" and {len(unlearnt) - 5} more" if len(unlearnt) > 5 else "")
    found = f"the split puts every image of {listed} into validation, and leaves none to train on"
    if task.head == "text":
        return [f"{found}: the student knows it by its text alone"]
    return [
        f"{found}: {task.name} could never predict it; add images, set another data.split_seed, or take adip, which "
        "knows a class by its text"
    ]


def _check_parts(config: RunConfig, task: Task, devices: int) -> None:
    """Refuse what can't be learnt from parts of a batch, before the teacher is queried.

    Raises:
        ConfigError: it can't.
    """
    if retrains(config, task):
        for name, clashes in (("swad", config.train.swad), ("quick", config.train.quick != "off")):
            if clashes:
                raise ConfigError(f"train.{name}: doesn't go with training once more; set train.retrain='off'")
        if devices > 1:
            raise ConfigError("train.retrain: a run on several devices isn't trained once more; set it to 'off'")
    if devices == 1:
        return
    if config.train.quick != "off":
        raise ConfigError(f"train.quick = {config.train.quick!r}: trains on one device; start it without torchrun")
    for stage in task.stages:
        per_domain = config.stages[stage.key].batch_per_domain
        if stage.pairs:
            raise ConfigError(f"method {config.method}: its loss is of a whole batch at once; train it on one device")
        if per_domain % devices:
            raise ConfigError(
                f"stages.{stage.key}.batch_per_domain = {per_domain}: {devices} devices can't have equal parts of it; "
                f"use {-(-per_domain // devices) * devices}"
            )
        if config.student.batch_norm == "train" and stage.trains != "projector":
            raise ConfigError(
                "student.batch_norm = 'train': its statistics are of a whole batch; use 'eval', or one device"
            )


@dataclass(frozen=True)
class _Work:
    """Makes a stage's batches and validation from everything a run has."""

    run: Run
    student: Student
    sources: Sources
    targets: TeacherTargets
    views: Views
    trainer: Trainer
    features: Features
    probabilities: Tensor | None = None
    steps: int | None = None  # of the last stage, where validation has chosen them

    def of(self, stage: Stage) -> StageWork:
        config = self.run.config
        cached = stage.trains == "projector" and not config.published.align_through_backbone
        settings = config.stages[stage.key]
        if config.train.steps == "auto" and stage.trains != "projector":
            every = settings.eval_every or max(1, min(100, settings.steps // 10))
            settings = settings.model_copy(update={"schedule": "constant", "eval_every": every})
        if self.steps is not None and stage.name == task_of(config).stages[-1].name:
            settings = settings.model_copy(update={"steps": self.steps})
        targets = self.targets
        groups = self.sources.groups(targets.queried(self.sources.split.unlabelled))
        seed, part = derive(config.seed, stage.name), self.trainer.part
        sampler = DomainBalancedSampler(groups, settings.batch_per_domain, seed, part)
        if cached:
            return StageWork(stage, settings, self._feature_batches(sampler), self._validation(cached=True))
        if config.train.quick != "off":
            return StageWork(stage, settings, self._activation_batches(sampler), self._quick_validation())
        return StageWork(stage, settings, self._pixel_batches(sampler, targets), self._validation(cached=False))

    def share(self, shared_cache: SharedCache, stage: Stage, held: ExitStack) -> Callable[[int], None] | None:
        """Start after a first stage that another run went through; else return what keeps ours for others.

        Until then the stage is locked: others wait for it. A resumed run waits for none.

        Args:
            shelf: where first stages are.
            stage: its first.
            held: as long as the stage is.
        """
        folder, targets, split = self.run.folder, self.targets, self.sources.split
        learnt = hashlib.sha256(b"".join(self.sources.audit.contents))
        for table in (targets.labels, targets.images, targets.texts, split.train, split.val):
            learnt.update(b"" if table is None else np.ascontiguousarray(table).tobytes())
        name = stage_name(self.run.config, stage, self.student, f"{learnt.hexdigest()} {targets.scale}")
        if name is None or targets.online is not None:
            return None
        if not (folder / "checkpoints").exists():
            held.enter_context(shared_cache.alone(name))
            if shared_cache.take_stage(name, folder):
                held.close()
                return None

        def ended(number: int) -> None:
            if number == 0:
                shared_cache.put_stage(name, folder)
                held.close()

        return ended

    def _pixel_batches(self, sampler: DomainBalancedSampler, targets: TeacherTargets) -> PixelBatches:
        spec = self.student.spec
        renderer = Renderer(
            self.sources.dataset, self.sources.audit.sha256, self.views, spec.image_size, sampler.seed, spec.fit
        )
        return PixelBatches(sampler, renderer, targets, self.run.config.data.workers)

    def _feature_batches(self, sampler: DomainBalancedSampler) -> FeatureBatches:
        """Pass the images (with K views: each view of each) through the frozen backbone once."""
        images = np.unique(np.concatenate(sampler.groups))
        contents = self.sources.audit.sha256
        views: list[Rendering | None] = [(self.views, contents, 1 + k) for k in range(self.views.k)] or [None]
        table = torch.stack([self.features.of(images, view) for view in views], 1)
        numbers = np.arange(len(views)) + (1 if self.views.k else 0)
        return FeatureBatches(
            sampler, table, self.targets, rows_of(images, self.sources.dataset), numbers, sampler.seed
        )

    def _activation_batches(self, sampler: DomainBalancedSampler) -> FeatureBatches:
        """Pass fixed views of the images, the teacher's if it has any, through the backbone's lower blocks once."""
        config, spec = self.run.config, self.student.spec
        images, contents = np.unique(np.concatenate(sampler.groups)), self.sources.audit.sha256
        own = Views(config.train.quick_views, derive(config.seed, "quick views"), spec.image_size, spec.fit)
        views = self.views if self.views.k else own
        numbers = np.arange(views.k) + 1 if self.views.k else np.zeros(views.k, np.int64)
        pixels = partial(viewed_pixels, self.sources.dataset, images, views, contents, workers=config.data.workers)
        table = self._cached_activations("training", pixels, len(images) * views.k)
        table = table.view(len(images), views.k, *table.shape[1:])
        return FeatureBatches(
            sampler, table, self.targets, rows_of(images, self.sources.dataset), numbers, sampler.seed
        )

    def _cached_activations(self, name: str, pixels: Callable[[], Iterable[Tensor]], rows: int) -> Tensor:
        file = self.run.folder / ACTIVATIONS / f"{name}.f16"
        return cached_activations(self.student, pixels, self.trainer.fabric, file, rows, self.trainer.progress)

    def _quick_validation(self) -> Validation:
        images, spec = self.sources.split.val, self.student.spec
        pixels = partial(
            clean_pixels,
            self.sources.dataset,
            images,
            spec.image_size,
            workers=self.run.config.data.workers,
            fit=spec.fit,
        )
        table = self._cached_activations("validation", pixels, len(images))
        return self._scored(images, lambda: table.split(64))

    def _validation(self, *, cached: bool) -> Validation:
        images = self.sources.split.val
        batches: Callable[[], Iterable[Tensor]]
        together = None
        if cached:
            features = self.features.of(images)
            batches = lambda: [features]  # noqa: E731
        else:
            size, workers = self.student.spec.image_size, self.run.config.data.workers
            own = own_part(self.trainer.fabric, images)
            pixels = partial(clean_pixels, self.sources.dataset, own, size, workers=workers, fit=self.student.spec.fit)
            kept = cache(lambda: [x.clone() for x in pixels()])  # out of the loader's shared memory
            batches = kept if len(own) * size**2 * 3 <= CACHED else pixels
            together = partial(put_together, self.trainer.fabric, total=len(images))
        return self._scored(images, batches, together)

    def _scored(
        self,
        images: Indices,
        batches: Callable[[], Iterable[Tensor]],
        together: Callable[[Tensor], Tensor] | None = None,
    ) -> Validation:
        texts = self.targets.texts if self.student.head == "text" else None
        labels = torch.from_numpy(self.sources.dataset.labels[images])
        return Validation(
            batches,
            labels if self.probabilities is None else self.probabilities,
            None if texts is None else torch.from_numpy(texts),
            self.targets.scale,
            together,
        )
