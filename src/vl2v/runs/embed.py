"""Asking a teacher about a dataset, apart from any training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vl2v.config import RunConfig
from vl2v.data import audit, open_dataset, set_aside
from vl2v.embeddings import EmbeddingStore, Plan, Views, fetch
from vl2v.runs.report import Report, silent
from vl2v.runs.settings import resolve
from vl2v.runs.teaching import class_prompts, default_store, make_plan, the_teacher
from vl2v.students.backbone import image_size_of


def embed(
    settings: Mapping[str, Any], *, store: Path | str | None = None, dry_run: bool = False, report: Report = silent
) -> Plan:
    """Ask about every picture of a dataset (`data.target` left out) and every class, once.

    Args:
        settings: as for `distill`.
        store: the folder of the embedding store; by default the one that all runs share.
        dry_run: ask nothing, only plan.
        report: told how far it is.

    Returns:
        What was to be asked, and what had been known.
    """
    config: RunConfig = resolve(settings)
    store = Path(store) if store else default_store()
    data = config.data
    dataset = open_dataset(data.path, layout=data.layout, exclude=data.exclude, unlabelled=data.unlabelled)
    unseen = {dataset.domain_index(name) for name in data.target}
    dataset = dataset.subset([i for i, domain in enumerate(dataset.domain_ids) if domain not in unseen])
    found = audit(dataset, cache=store / "audit.sqlite", progress=lambda d, n: report("reading pictures", d, n, ""))
    if found.problems:
        dataset = set_aside(dataset, found)
        found = audit(dataset, cache=store / "audit.sqlite")
    teacher = the_teacher(config.teacher)
    learnt = sorted(set(dataset.domain_ids[dataset.labels >= 0].tolist()))
    sources = [dataset.domains[i] for i in learnt]
    prompts = class_prompts(dataset.classes, config.prompts, sources)
    size = image_size_of(config.student.name, config.student.image_size)
    views = Views(k=config.teacher.views, seed=config.seed, size=size)
    with EmbeddingStore(store) as answers:
        questions = make_plan(answers, teacher, dataset, found, prompts, views)
        if not dry_run:
            fetch(questions, answers, teacher, lambda d, n: report(f"asking {teacher.name}", d, n, ""))
    return questions
