"""A finished run on pictures: every domain, the unseen ones marked, the zero-shot teacher beside the student."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vl2v.config import DataConfig, PromptConfig, RunConfig
from vl2v.data import Audit, DomainDataset, domainbed_split, leave_out, seed_hash
from vl2v.devices import keep_freed_memory
from vl2v.embeddings import EmbeddingStore, image_key, text_key, text_targets
from vl2v.embeddings.store import FILE_NAME
from vl2v.errors import DataError
from vl2v.evaluation import Evaluation, Role, Row, measure
from vl2v.runs.folder import Run
from vl2v.runs.predictions import Predictions, content
from vl2v.runs.report import Report, silent
from vl2v.runs.sources import open_data, usable
from vl2v.runs.teaching import default_store
from vl2v.runs.use import load
from vl2v.students import Classifier, is_on_hub
from vl2v.teachers import prompts_for
from vl2v.training import clean_pixels

STUDENT, TEACHER = "student", "teacher, zero-shot"


def evaluate_run(
    student: Run | Path | str,
    data: Path | str | None = None,
    *,
    domains: Collection[str] = (),
    store: Path | str | None = None,
    keep: bool = False,
    report: Report = silent,
) -> Evaluation:
    """Return how well a student does on every domain.

    On a source domain of the run's own data, its validation pictures count; on others, and on other data, all.

    Args:
        student: a finished run, its folder, or hf:USER/REPO[@REVISION] for one on the Hugging Face hub.
        data: a dataset; by default the run's own, which a student on the hub doesn't have.
        domains: on these only; by default on all.
        store: of the teacher's answers; the zero-shot row is there for domains whose answers are all known.
        keep: write every answer into the run folder, too; only for the run's own data.
        report: told how far it is.

    Raises:
        DataError: the data has classes that the student doesn't know, or none is given for a student on the hub.
        VL2VError: as `load` does.
    """
    store = Path(store) if store else default_store()
    data = Path(data) if data else None
    run = None if is_on_hub(student) else student if isinstance(student, Run) else Run(Path(student))
    if run is None and data is None:
        raise DataError(f"{student}: comes without its pictures; give some (--data)")
    keep_freed_memory()
    classifier = load(run or student)
    config = run.config if run else RunConfig(data=DataConfig(path=data or Path()))
    own = run is not None and (data is None or data.resolve() == config.data.path.resolve())
    dataset = open_data(config.data if own or data is None else DataConfig(path=data))
    _check_classes(dataset, classifier)
    dataset, found = usable(dataset, store, report)
    sources = classifier.about["sources"] if own else []
    val = validation(config.data, dataset, sources)
    rows: list[Row] = []
    kept = Predictions.nothing(classifier.classes, dataset.domains, content(dataset, found))
    wanted = [domain for domain in dataset.domains if not domains or domain in domains]
    for number, domain in enumerate(wanted):
        pictures = measured(config, dataset, domain, val)
        report("evaluating", number, len(wanted), domain)
        if not len(pictures):
            continue
        role: Role = "seen" if domain in sources else "unseen"
        labels = _labels(dataset, pictures, classifier)
        logits = classifier_logits(classifier, dataset, pictures, config.data.workers)
        rows.append(Row(STUDENT, domain, role, measure(logits / classifier.temperature, labels, classifier.threshold)))
        teacher = zero_shot_logits(classifier, found, pictures, store)
        if teacher is not None:
            rows.append(Row(TEACHER, domain, role, measure(teacher, labels)))
        kept.add(dataset, pictures, labels, logits, classifier.temperature, teacher, config.data)
    report("evaluating", len(wanted), len(wanted), "")
    if keep and own and run is not None:
        kept.save(run.folder)
    notes = (*_leakage(dataset, found, sources), *_left_out(dataset))
    return Evaluation(tuple(rows), notes, tuple(classifier.classes))


def classifier_logits(
    classifier: Classifier, dataset: DomainDataset, pictures: NDArray[np.int64], workers: int
) -> Tensor:
    """Return logits [n, C] of pictures (dataset indices), before the temperature."""
    size = classifier.student.spec.image_size
    return torch.cat([classifier.logits(x) for x in clean_pixels(dataset, pictures, size, workers=workers)])


def measured(config: RunConfig, dataset: DomainDataset, domain: str, val: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the pictures of a domain that count: of a source domain those in `val`."""
    pictures = dataset.indices(domain)
    pictures = pictures[dataset.labels[pictures] >= 0]
    seen = np.intersect1d(pictures, val)
    if len(seen) or not config.published.target_in_split:
        return seen if len(seen) else pictures
    seed = seed_hash(config.data.split_seed, dataset.domain_index(domain))
    return np.sort(pictures[domainbed_split(len(pictures), config.data.holdout, seed)[0]])


def validation(config: DataConfig, dataset: DomainDataset, sources: Sequence[str]) -> NDArray[np.int64]:
    """Return the source domains' validation pictures, the very ones of the run; none for other data."""
    if not sources:
        return np.zeros(0, np.int64)
    return leave_out(dataset, config.target, fraction=config.holdout, trial_seed=config.split_seed).val


def _labels(dataset: DomainDataset, pictures: NDArray[np.int64], classifier: Classifier) -> Tensor:
    place = {name: index for index, name in enumerate(classifier.classes)}
    return torch.tensor([place[dataset.classes[label]] for label in dataset.labels[pictures]])


def zero_shot_logits(classifier: Classifier, found: Audit, pictures: NDArray[np.int64], store: Path) -> Tensor | None:
    """Return the teacher's logits [n, C] of pictures (dataset indices), if the store knows all answers; else None."""
    about = classifier.about
    if about["teacher"] is None or not (store / FILE_NAME).exists():
        return None
    fingerprint = about["teacher"]["fingerprint"]
    prompts = prompts_for(classifier.classes, PromptConfig(**about["prompts"]), about["sources"])
    with EmbeddingStore(store, read_only=True) as answers:
        images = [image_key(found.sha256[i]) for i in pictures]
        wanted: Sequence[bytes] = [*images, *(text_key(text) for group in prompts for text in group)]
        if not answers.known(fingerprint, wanted).all():
            return None
        table = text_targets(answers, fingerprint, prompts)
        return classifier.scale * torch.from_numpy(answers.get(fingerprint, images) @ table.T)


def _check_classes(dataset: DomainDataset, classifier: Classifier) -> None:
    unknown = sorted(set(dataset.classes) - set(classifier.classes))
    if unknown:
        raise DataError(
            f"{dataset.root}: the student doesn't know the class {unknown[0]!r}; it knows "
            f"{', '.join(classifier.classes[:10])}; add it with `vl2v classes add`, or rename the folder"
        )


def _leakage(dataset: DomainDataset, found: Audit, sources: Sequence[str]) -> list[str]:
    """Return a line if pictures of source domains are in unseen ones, too."""
    of = [dataset.domains[i] in sources for i in dataset.domain_ids]
    seen = {digest for digest, source in zip(found.sha256, of, strict=True) if source}
    count = sum(digest in seen for digest, source in zip(found.sha256, of, strict=True) if not source)
    return [f"leakage: {count} pictures of unseen domains are in source domains, too"] if count else []


def _left_out(dataset: DomainDataset) -> list[str]:
    return [f"{len(dataset.excluded)} files set aside"] if dataset.excluded else []
