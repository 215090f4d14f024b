"""A finished run on images: every domain, the unseen ones marked, the zero-shot teacher beside the student."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vl2v.config import DataConfig, PromptConfig, RunConfig
from vl2v.data import leave_out
from vl2v.data.auditing import Audit
from vl2v.data.dataset import DomainDataset, in_split, one_form
from vl2v.embeddings.plan import clean_images, clean_view
from vl2v.embeddings.rows import FILE_NAME
from vl2v.embeddings.schema import image_key, text_key
from vl2v.embeddings.session import TeacherSession, TeacherTargets, text_targets
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import DataError, TeacherError
from vl2v.evaluation.compare import wilson
from vl2v.evaluation.metrics import Evaluation, Role, Row, measure
from vl2v.io import write_text
from vl2v.runs.datasets import Images, at_hand, open_data, usable
from vl2v.runs.folder import Run
from vl2v.runs.predict import load
from vl2v.runs.predictions import Predictions, content, same_images, source_notes
from vl2v.runs.query import fit_scale
from vl2v.runs.settings import resolve
from vl2v.runs.start import adapted_teacher
from vl2v.session import Progress, Session, silent
from vl2v.students.classifier import Classifier
from vl2v.students.stored import is_on_hub
from vl2v.students.student import Student
from vl2v.system import best_device, reuse_freed_memory
from vl2v.teachers import the_teacher
from vl2v.teachers.prompts import prompts_for
from vl2v.training.batches import clean_pixels

STUDENT, TEACHER = "student", "teacher, zero-shot"


def evaluate(
    student: Run | Path | str,
    data: Path | str | None = None,
    *,
    domains: Collection[str] = (),
    store: Path | str | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Return how well a student does on every domain; nothing is written into its folder.

    On a source domain of the run's own data, its validation images count; on others, and on other data, all.

    Args:
        student: a finished run, its folder, or hf:USER/REPO[@REVISION] for one on the Hugging Face hub.
        data: a dataset; by default the run's own, which a student on the hub doesn't have. The very same images are
            the run's own wherever they lie.
        domains: on these only; by default on all.
        store: of the teacher's embeddings; the zero-shot row is there for domains that it has all embeddings of.
        progress: called with the progress.

    Raises:
        DataError: the data has classes that the student doesn't have, or none is given for a student on the hub.
        VL2VError: as `load` does.

    Examples:
        >>> evaluation = evaluate("runs/a")
        >>> sorted({row.domain for row in evaluation.of(role="unseen")})
        ['paint']
    """
    return evaluate_images(student, data, domains=domains, session=Session.of(store, progress=progress))[0]


def evaluate_images(
    student: Run | Path | str,
    data: Path | str | None = None,
    *,
    session: Session,
    domains: Collection[str] = (),
    images: Images | None = None,
) -> tuple[Evaluation, Predictions]:
    """Return what `evaluate` does, and the prediction of every image that it was measured on.

    Args, Raises: as for `evaluate`; `images` are the run's own, where somebody has opened them already.
    """
    data, progress = Path(data) if data else None, session.progress
    run = None if is_on_hub(student) else Run.of(student)
    if run is None and data is None:
        raise DataError(f"{student}: comes without its images; give some (--data)")
    reuse_freed_memory()
    classifier = run.classifier if run else load(student)
    given = run.config if run else RunConfig(data=DataConfig(path=data or Path()))
    config = given if data is None else given.model_copy(update={"data": given.data.model_copy(update={"path": data})})
    own = run is not None and (data is None or _is_own(run, config, session))
    if not own:
        config = RunConfig(data=DataConfig(path=config.data.path, workers=config.data.workers), train=config.train)
    images = images or Images(at_hand(config.data), session)
    _check_classes(images.listed, classifier)
    dataset, found = images.all
    sources = [name for name in classifier.about["sources"] if own and name in dataset.domains]
    val = validation(config.data, dataset, sources)
    rows: list[Row] = []
    predictions = Predictions.nothing(classifier.classes, dataset.domains, content(dataset, found))
    wanted = [domain for domain in dataset.domains if not domains or domain in domains]
    with _at_its_quickest(classifier.student, config):
        for number, domain in enumerate(wanted):
            indices = measured(config, dataset, domain, val)
            progress("evaluating", number, len(wanted), domain)
            if not len(indices):
                continue
            role: Role = "seen" if domain in sources else "unseen"
            labels = _labels(dataset, indices, classifier)
            logits = classifier_logits(classifier, dataset, indices, config.data.processes)
            rows.append(
                Row(STUDENT, domain, role, measure(logits / classifier.temperature, labels, classifier.threshold))
            )
            teacher = zero_shot_logits(classifier, found, indices, session.store)
            if teacher is not None:
                rows.append(Row(TEACHER, domain, role, measure(teacher, labels)))
            predictions.add(dataset, indices, labels, logits, classifier.temperature, teacher, config.data)
    progress("evaluating", len(wanted), len(wanted), "")
    notes = _namesakes(wanted, classifier)
    unlabelled = run is not None and bool(run.config.data.classes)
    if own and run is not None:
        notes = source_notes(run, images)
        notes = [agreement_note(classifier), *notes] if unlabelled else notes
        if "retrained" in classifier.about:
            notes.append("accuracy on source domains is that of images which it was trained on at last (train.retrain)")
    elif unlabelled and run is not None:
        mine = [row for row in rows if row.who == STUDENT]
        try:
            learnt = set(Images(run.config.data, session).sources.audit.sha256)
        except DataError as error:
            notes.append(f"whether some of these images are among those that it learnt from isn't known: {error}")
            learnt = set()
        notes += sample_notes(mine, found, learnt)
    return Evaluation(tuple(rows), (*notes, *_left_out(dataset)), tuple(classifier.classes)), predictions


@contextmanager
def _at_its_quickest(student: Student, config: RunConfig) -> Iterator[None]:
    """Let a student compute on the GPU, if there is one, while the block lasts."""
    student.to("cpu" if config.train.accelerator == "cpu" else best_device())
    try:
        yield
    finally:
        student.to("cpu")


def _is_own(run: Run, config: RunConfig, session: Session) -> bool:
    """Whether images are those of a run, byte for byte if they lie elsewhere; of a run without labels, none with."""
    if run.config.data.classes:
        return False
    if config.data.path.resolve() == run.config.data.path.resolve():
        return True
    try:
        return same_images(run, config, session)
    except DataError:  # they can't even be opened as the run's own: other domains, another layout
        return False


def classifier_logits(
    classifier: Classifier, dataset: DomainDataset, images: NDArray[np.int64], workers: int
) -> Tensor:
    """Return logits [n, C] of images (dataset indices), before the temperature."""
    pixels = clean_pixels(dataset, images, classifier.image_size, workers=workers, fit=classifier.fit)
    return torch.cat([classifier.logits(x) for x in pixels])


def measured(config: RunConfig, dataset: DomainDataset, domain: str, val: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the images of a domain that count: of a source domain those in `val`."""
    images = dataset.labelled(domain)
    seen = np.intersect1d(images, val)
    if len(seen):
        return seen
    data = config.data
    return in_split(dataset, domain, data.holdout, data.split_seed) if config.published.target_in_split else images


def validation(config: DataConfig, dataset: DomainDataset, sources: Sequence[str]) -> NDArray[np.int64]:
    """Return the source domains' validation images, the very ones of the run; none for other data."""
    if not sources:
        return np.zeros(0, np.int64)
    val = leave_out(dataset, config.target, fraction=config.holdout, trial_seed=config.split_seed).val
    return val[np.isin(dataset.domain_ids[val], [dataset.domain_index(name) for name in sources])]


def _labels(dataset: DomainDataset, images: NDArray[np.int64], classifier: Classifier) -> Tensor:
    index = {one_form(name): number for number, name in enumerate(classifier.classes)}
    return torch.tensor([index[dataset.classes[label]] for label in dataset.labels[images]])


def zero_shot_logits(classifier: Classifier, found: Audit, indices: NDArray[np.int64], store: Path) -> Tensor | None:
    """Return the teacher's logits [n, C] of images (dataset indices), if all its embeddings are cached; else None."""
    about = classifier.about
    if about["teacher"] is None or not (store / FILE_NAME).exists():
        return None
    fingerprint = about["teacher"]["fingerprint"]
    prompts = prompts_for(classifier.classes, PromptConfig(**about["prompts"]), about["sources"])
    with EmbeddingStore(store, read_only=True) as embeddings:
        view = clean_view(about["teacher"].get("fit", "own"))
        images = [image_key(found.contents[i], view) for i in indices]
        wanted: Sequence[bytes] = [*images, *(text_key(text) for group in prompts for text in group)]
        if not embeddings.cached(fingerprint, wanted).all():
            return None
        table = text_targets(embeddings, fingerprint, prompts)
        scale: float = about["teacher"]["scale"]
        return scale * torch.from_numpy(embeddings.get(fingerprint, images) @ table.T)


def _check_classes(dataset: DomainDataset, classifier: Classifier) -> None:
    unknown = sorted(set(dataset.classes) - set(map(one_form, classifier.classes)))
    if unknown:
        raise DataError(
            f"{dataset.root}: the student doesn't know the class {unknown[0]!r}; it knows "
            f"{', '.join(classifier.classes[:10])}; add it with `vl2v classes add`, or rename the folder"
        )


def _namesakes(domains: Collection[str], classifier: Classifier) -> list[str]:
    """Return a line if other images than the run's are in domains that are called as its sources are."""
    names = [domain for domain in domains if domain in classifier.about["sources"]]
    note = f"it was trained on domains called {', '.join(names)}; here every image of them counts, as unseen"
    return [note] if names else []


def _left_out(dataset: DomainDataset) -> list[str]:
    return [f"{len(dataset.excluded)} files set aside"] if dataset.excluded else []


def agreement_note(classifier: Classifier) -> str:
    """Return a line on a student whose accuracy nobody knows."""
    share, images = (classifier.about[f"validation_{what}"] for what in ("agreement", "images"))
    return (
        f"no labels, so accuracy isn't known: on {images:,} held-out images the student agrees with the teacher on "
        f"{100 * share:.1f}%; `vl2v evaluate RUN --data SAMPLE` measures its accuracy on a few images with labels"
    )


def sample_notes(rows: Sequence[Row], sample: Audit, learnt: AbstractSet[bytes]) -> list[str]:
    """Return how sure an accuracy is that was measured on a labelled sample, and whether its images were learnt from.

    Args:
        learnt: SHA-256 of the images without labels that the student learnt from.
    """
    images = sum(row.metrics.images for row in rows)
    right = sum(round(row.metrics.accuracy * row.metrics.images) for row in rows)
    if not images:
        return []
    low, high = wilson(right, images)
    notes = [
        f"{right} of {images} images right: {100 * right / images:.1f}%, 95% interval {100 * low:.1f} to "
        f"{100 * high:.1f}% if they were drawn at random"
    ]
    common = len(set(sample.sha256) & learnt)
    if common:
        notes.append(f"{common} of them are among the images that it learnt from, without their labels")
    return notes


CLIP_SCALE = 100.0  # of a teacher that reports none: calibration depends on it, accuracy doesn't


def measure_teacher(settings: Mapping[str, Any], out: Path, *, store: Path, progress: Progress = silent) -> Evaluation:
    """Measure the teacher on every domain from the embeddings that the store has; nothing is queried.

    Images that it refused or wasn't queried about aren't measured; the evaluation's notes say how many.

    Args:
        settings: as for `distill`; the target domains are marked unseen. With `teacher.adapt="auto"`, the teacher
            is adapted to the training images of the others.
        out: a folder for `evaluation.json` and `predictions.safetensors`.

    Raises:
        TeacherError: an embedding is missing.
    """
    config = resolve(settings)
    data = config.data
    dataset, found = usable(open_data(data), Session(store, progress=progress))
    teacher = the_teacher(config.teacher)
    sources = [name for name in dataset.domains if name not in data.target]
    val = validation(data, dataset, sources)
    rows: list[Row] = []
    notes: list[str] = []
    predictions = Predictions.nothing(dataset.classes, dataset.domains, content(dataset, found))
    with EmbeddingStore(store, read_only=True) as embeddings:
        views = clean_images(config)
        session = TeacherSession(
            config, embeddings, teacher, None, dataset, found, sources, views, progress, fit_scale=fit_scale
        )
        texts = session.texts()
        scale = config.teacher.logit_scale or teacher.logit_scale or CLIP_SCALE
        fitted = None
        if config.teacher.adapt == "auto":
            split = leave_out(dataset, data.target, fraction=data.holdout, trial_seed=data.split_seed)
            targets = TeacherTargets(dataset.labels, session.targets(split.train).images, texts, scale)
            fitted = adapted_teacher(targets, dataset, split.train)
        for number, domain in enumerate(dataset.domains):
            progress("evaluating", number, len(dataset.domains), domain)
            indices = measured(config, dataset, domain, val)
            keys = [image_key(found.contents[i], views.names[0]) for i in indices]
            there = embeddings.cached(teacher.fingerprint, keys)
            if not len(indices) or not there.any():
                if domain in data.target:
                    raise TeacherError(
                        f"{teacher.name}: has no embeddings of {domain} in the store; run `vl2v embed` first"
                    )
                continue
            if not there.all():
                notes.append(
                    f"{domain}: {(~there).sum():,} of {len(there):,} images have no embedding, and don't count"
                )
            indices = indices[there]
            images = embeddings.get(teacher.fingerprint, [key for key, one in zip(keys, there, strict=True) if one])
            scores = scale * (images @ texts.T) if fitted is None else fitted.logits(images)
            logits = torch.from_numpy(scores.astype(np.float32))
            labels = torch.from_numpy(dataset.labels[indices])
            role: Role = "unseen" if domain in data.target else "seen"
            rows.append(Row(TEACHER, domain, role, measure(logits, labels)))
            predictions.add(dataset, indices, labels, logits, 1.0, logits, data)
    evaluation = Evaluation(tuple(rows), tuple(notes), classes=dataset.classes)
    predictions.save(out)
    write_text(out / "evaluation.json", json.dumps(evaluation.to_json(), indent=2))
    return evaluation
