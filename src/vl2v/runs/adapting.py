"""A deployed student meets a new domain: it is trained further on images from there, without labels.

The teacher is queried about the most useful of them; the images that the run learnt from, and the embeddings in the
store, stay beside them in every batch. At last the weights go back towards the parent's as far as it takes to keep its
accuracy on the source domains' validation images (`vl2v.runs.heads.toward_parent`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vl2v.config import RunConfig
from vl2v.embeddings.bill import asker, cost, with_budget
from vl2v.embeddings.fetch import Refusal
from vl2v.embeddings.plan import fixed_views, k_center_order, random_order, uncertain_order
from vl2v.embeddings.session import TeacherSession
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import ConfigError, DataError, RunError
from vl2v.evaluation.metrics import Evaluation
from vl2v.io import read_json, write_text
from vl2v.methods import find_method
from vl2v.privacy import public_name
from vl2v.runs.datasets import Images, Sources, named_unlabelled, open_sources
from vl2v.runs.evaluate import STUDENT
from vl2v.runs.features import Features
from vl2v.runs.folder import ADAPTING, MOVED, Run, changed_settings, check_folder, held
from vl2v.runs.linking import ADAPTED, ended, linked
from vl2v.runs.predictions import content, predictions_of
from vl2v.runs.query import QueryReport, open_session, queries_online
from vl2v.runs.settings import resolve
from vl2v.runs.train import distill
from vl2v.session import Progress, Session, silent
from vl2v.table import Table
from vl2v.teachers import the_teacher
from vl2v.training.device import OneDevice
from vl2v.tree import Tree, merge

Strategy = Literal["random", "kcenter", "uncertainty"]

BEFORE = "before adapting"  # the parent's rows in an evaluation
STEPS, RATE = 0.5, 0.5  # of the parent's last stage: its steps and its learning rate
LEAST = 0.1  # of the images that a parent learnt from: a teacher may have refused the others, or they are new
ENOUGH, MOST = 600, 2  # steps: these, if they are more than that and not over twice the parent's (docs/findings.md)


@dataclass(frozen=True)
class Adapted:
    """A student that was trained further, and what was queried for it.

    Attributes:
        run: the new run, evaluated, with its parent's rows beside its own; None: a dry run.
        queries: what the teacher was queried about, and its price.
    """

    run: Run | None
    queries: QueryReport

    def table(self) -> Table:
        """Return the accuracy on every domain with labels, before and after."""
        assert self.run is not None and self.run.evaluation is not None
        evaluation = self.run.evaluation
        before = {row.domain: row for row in evaluation.of(BEFORE)}
        rows = []
        for row in evaluation.of(STUDENT):
            after, mark = 100 * row.metrics.accuracy, " *" if row.role == "unseen" else ""
            found = before.get(row.domain)
            then = None if found is None else 100 * found.metrics.accuracy
            change = ["", ""] if then is None else [f"{then:.1f}", f"{after - then:+.1f}"]
            rows.append([row.domain + mark, str(row.metrics.images), change[0], f"{after:.1f}", change[1]])
        heads = ["domain", "images", "before", "after", "points"]
        notes = [f"- {note}" for note in evaluation.notes]
        return Table(heads, rows, (), notes, "accuracy %, * without labels in training", left=["domain"])


def adapt(
    run: Run | Path | str,
    images: Path | str | None,
    out: Path | str,
    *,
    log: Path | str | None = None,
    select: int = 200,
    strategy: Strategy = "kcenter",
    closed_form: bool = False,
    settings: Mapping[str, Any] | None = None,
    store: Path | str | None = None,
    budget: float = 0,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Adapted:
    """Train a finished run's student further on images of a new domain, which need no labels; write a new run.

    Args:
        run: the parent; it stays as it is. Its images and the store with their embeddings have to be where they were.
        images: a folder of images from the new domain.
        out: the new run's folder; an interrupted one is resumed.
        log: in place of `images`, the folder of a server that saves what it predicts (`vl2v serve --log-images`). The
            images of now are linked, or copied, into a folder beside the new run: the server goes on deleting old ones.
        select: how many of the images the teacher is queried about; those in the store already come for nothing.
        strategy: which: far from one another to the parent's eye ("kcenter"), least certain to it, or any.
        closed_form: fit the last layer alone, which takes seconds; the backbone stays as it is.
        settings: laid over the parent's; by default its last stage has half of the rate, and half of the steps
            or up to 600.
        store: the folder of the embedding store; by default the one that all runs share.
        budget: lifetime spending limit of this store for a paid teacher, in the vendor's currency.
        dry_run: query nothing and train nothing; return the forecast.
        progress: called with the progress.

    Raises:
        BudgetReached: every embedding paid for is saved; the same call with a larger budget resumes.
        ConfigError: the parent's method learns nothing from images without labels; the store isn't the one with the
            embeddings that the parent learnt from.
        DataError: no usable image to learn from.
        RunError: the parent isn't finished; `out` holds what was adapted to other images, or by another selection.

    Examples:
        >>> found = adapt("runs/student", "new-camera/", "runs/adapted", select=200)  # doctest: +SKIP
        >>> found.table().print()  # doctest: +SKIP
    """
    parent, out = Run.of(run), Path(out)
    if (images is None) == (log is None):
        raise ConfigError("give either a folder of images (--images) or the folder of a server's log (--from)")
    _check(parent, select, closed_form=closed_form)
    given = merge({"train": {"head": "only"}} if closed_form else {}, settings or {})
    session = Session.of(store, budget, progress)
    asked: Tree = {"--select": select, "--strategy": strategy, "--from": str(Path(log).resolve()) if log else ""}
    with nullcontext() if dry_run else held(out):
        folder = Path(images or "") if log is None else linked(Path(log), out, dry_run=dry_run)
        tree = _settings(parent, folder, given)
        try:
            queried = _query(parent, resolve(tree), folder, out, session, asked, dry_run=dry_run)
        finally:
            if log is not None and not dry_run and not (out / ADAPTING).is_file():  # refused: nobody learns from them
                shutil.rmtree(folder, ignore_errors=True)
    if dry_run:
        return Adapted(None, queried)
    made = distill(tree, out, store=session.store, budget=budget, progress=progress)
    if made.evaluation is not None and not ended(made):
        made.save_evaluation(_beside(made, parent, session))
    return Adapted(made, queried)


def _check(parent: Run, select: int, *, closed_form: bool) -> None:
    """Refuse what can't be adapted, before anything is copied."""
    if not parent.finished:
        raise RunError(f"{parent.folder}: no student yet; give the same `vl2v distill` command again to finish it")
    if select < 1:
        raise ConfigError(f"select = {select}: a teacher is queried about 1 image or more")
    config, task = parent.config, find_method(parent.config.method)
    if task.queries != "images" or task.head == "stacked":
        raise ConfigError(
            f"{parent.folder}: method {config.method} learns nothing from images without labels that could be added "
            "to its student; adapt a run of adip, adip-plus, kd, fd, simkd, scmd, pseudo-labels or sd"
        )
    if not closed_form and task.head != parent.classifier.student.head:
        raise ConfigError(
            f"{parent.folder}: its last layer was fitted to the class embeddings (train.head), which {config.method} "
            "doesn't train; fit it again with --closed-form"
        )


def _settings(parent: Run, images: Path, given: Mapping[str, Any]) -> Tree:
    """Return the new run's settings."""
    config, task = parent.config, find_method(parent.config.method)
    *_, last = task.stage_defaults
    stage = config.stages[last]
    steps = max(1, round(STEPS * stage.steps), min(MOST * stage.steps, ENOUGH))
    folders = named_unlabelled(config.data)
    own: Tree = {
        "data": {"unlabelled": [str(folder) for folder in dict.fromkeys([*folders, images.resolve()])]},
        "teacher": {"select": "known", "strategy": "kcenter", "select_from": "all"},
        "student": {"parent": str(parent.folder.resolve())},
        "stages": {last: {"steps": steps, "lr": RATE * stage.lr}},
    }
    tree = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    tree["stages"] = {last: {**tree["stages"][last], "warmup": round(STEPS * stage.warmup)}}
    tree["stages"][last].pop("eval_every", None)
    train = given.get("train")
    if isinstance(train, Mapping) and train.get("head") == "only":  # no block is trained, lower or upper
        tree["train"] = {key: value for key, value in tree["train"].items() if not key.startswith("quick")}
    return merge(tree, own, given)


def _query(
    parent: Run,
    config: RunConfig,
    folder: Path,
    out: Path,
    session: Session,
    asked: Tree,
    *,
    dry_run: bool,
) -> QueryReport:
    """Query the teacher about the most useful images of the new domain.

    Args:
        asked: how many of them, chosen how, and whose log they come from, by the names of the options.
    """
    sources = open_sources(config, session)
    teacher = the_teacher(config.teacher)
    views = fixed_views(config, parent.classifier.student.spec.image_size)
    with EmbeddingStore(session.store) as opened, with_budget(teacher, session, asker(out)) as spending:
        querying = open_session(config, opened, teacher, spending, sources, views, session.progress)
        new = _new(sources, folder)
        if not queries_online(config):
            _check_store(parent, querying, _before(sources, folder), session.progress)
        adapting = _adapting(parent, out, config, querying.contents(new), asked)
        if (known := adapting.get("chosen")) is not None:
            chosen = new[np.isin(querying.contents(new), known)]
        else:
            chosen = _chosen(parent, config, sources, new, asked["--select"], asked["--strategy"], session.progress)
        if not dry_run:
            if known is None:  # nothing is trained yet: this selection takes the place of another
                (out / "asked.json").unlink(missing_ok=True)
            write_text(out / ADAPTING, json.dumps(adapting | {"chosen": querying.contents(chosen)}))
        if (out / "student" / "student.json").is_file():  # it learns nothing any more
            chosen = chosen[querying.cached(chosen)]
        queries = querying.plan(chosen)
        forecast = cost(queries, teacher, spending)
        refused: list[Refusal] = [] if dry_run else querying.query(chosen)
        return QueryReport(queries, forecast, tuple(refused), spending.bill() if spending else "")


def _new(sources: Sources, folder: Path) -> NDArray[np.int64]:
    """Return the images of a folder to learn from (dataset indices, sorted); of copies, one.

    Those that the parent learnt from without labels aren't among them, unless they are in the folder, too.

    Raises:
        DataError: there are none.
    """
    images = _within(sources, sources.split.unlabelled, folder)
    if not len(images):
        raise DataError(f"{folder}: no image in it that can be learnt from; `vl2v data inspect {folder}` says why")
    _, first = np.unique(np.array([sources.audit.sha256[i].hex() for i in images]), return_index=True)
    return images[np.sort(first)]


def _within(sources: Sources, images: NDArray[np.int64], folder: Path) -> NDArray[np.int64]:
    """Return those of some images that lie in a folder; of a file that lists images, all."""
    if not folder.is_dir():
        return images
    new = Path(os.path.realpath(folder))
    there = [Path(os.path.realpath(sources.dataset.file(i).parent)).is_relative_to(new) for i in images.tolist()]
    return images[np.array(there, np.bool_)]


def _before(sources: Sources, folder: Path) -> NDArray[np.int64]:
    """Return the images that a parent has learnt from: those with labels, or where none has, those not in a folder."""
    if sources.labelled:
        return sources.split.train
    here = {sources.audit.sha256[i] for i in _within(sources, sources.queried, folder)}
    return np.array([i for i in sources.queried if sources.audit.sha256[i] not in here], np.int64)


def _check_store(parent: Run, querying: TeacherSession, old: NDArray[np.int64], progress: Progress) -> None:
    """Refuse a store without the embeddings that a parent learnt from: its student would forget what they taught.

    Where some are missing, that is said.

    Args:
        old: the images that the parent may have learnt from.
    """
    asked = read_json(parent.folder / "asked.json")
    if asked is not None:
        old = old[np.isin(querying.contents(querying.same(old)), asked)]
    there = int(querying.cached(old).sum())
    has = f"has the teacher's embeddings of {there:,} of the {len(old):,} images that {parent.folder} learnt from"
    if there < LEAST * len(old):
        raise ConfigError(
            f"{querying.store.path}: {has}, and without them it would forget; give the --store of that run"
        )
    if there < len(old):
        progress(f"the store {has}", 1, 1, "")


def _adapting(parent: Run, out: Path, config: RunConfig, contents: list[str], asked: Tree) -> Tree:
    """Return what a run is adapted to: which images, chosen how, by whom, and `chosen`, if they were already.

    Raises:
        RunError: the folder holds what was trained with other settings, on other images or by another selection, or
            by a version that didn't save what that was.
    """
    images = hashlib.sha256("".join(sorted(contents)).encode()).hexdigest()
    eye = hashlib.sha256((parent.folder / "student" / "student.safetensors").read_bytes()).hexdigest()
    now = {"--images": images, **asked, "RUN": eye, "seed": config.seed}
    trained, before = check_folder(out), read_json(out / ADAPTING)
    changed = [name for name, value in now.items() if before is not None and before.get(name, value) != value]
    if trained:
        if before is None:
            raise RunError(f"{out}: holds a student, but not which images it was adapted to; choose another --out")
        # images that lie elsewhere by now are compared, too
        settings = changed_settings(Run(out).config, config)
        changed += [name for name in settings if name not in (*changed, *MOVED)]
        if changed:
            raise RunError(f"{out}: holds a run with other settings ({', '.join(changed)}); choose another --out")
    return now if before is None or changed else {"chosen": read_json(out / "asked.json"), **before, **now}


def _chosen(
    parent: Run,
    config: RunConfig,
    sources: Sources,
    images: NDArray[np.int64],
    select: int,
    strategy: Strategy,
    progress: Progress,
) -> NDArray[np.int64]:
    """Return which of some images to query about, sorted."""
    count = min(select, len(images))
    if strategy == "random":
        return np.sort(images[random_order(len(images), config.seed)[:count]])
    fabric = OneDevice(config.train)
    student = parent.classifier.student.to(fabric.device)
    found = Features(student, sources.dataset, fabric, config.data.processes, progress).of(images)
    if strategy == "kcenter":
        return np.sort(images[k_center_order(found.numpy(), count)])
    logits = student.logits(found, parent.classifier.texts, parent.classifier.scale).detach().cpu().numpy()
    return np.sort(images[uncertain_order(logits)[:count]])


def _beside(made: Run, parent: Run, session: Session) -> Evaluation:
    """Return a run's evaluation with the parent's rows, where it was evaluated, and what is to be known of them."""
    evaluation, before = made.evaluation, parent.evaluation
    assert evaluation is not None
    rows = [replace(row, who=BEFORE) for row in (before.of(STUDENT) if before is not None else ())]
    name = public_name(parent.folder.name)
    notes = [f"{ADAPTED} {name} on images without labels"]
    try:
        notes += _known(made, parent, name, session)
    except DataError as error:
        notes.append(f"whether {name} was trained on images that validate here can't be checked: {error}")
    return replace(evaluation, rows=(*evaluation.rows, *rows), notes=(*evaluation.notes, *notes))


def _known(made: Run, parent: Run, name: str, session: Session) -> list[str]:
    """Return a note where a run's validation images are such that a parent was trained on."""
    data = parent.config.data.model_copy(update={"path": made.config.data.path})
    images, mine = Images(data, session), open_sources(made.config, session)
    theirs, predictions = images.sources, predictions_of(parent)
    if predictions is not None and predictions.content != content(*images.all):
        return [f"images have changed since {name} was trained: it may know some that validate here"]
    learnt = (theirs.with_validation() if _retrained(parent) else theirs).training
    known = {theirs.audit.sha256[i] for i in learnt}
    count = sum(mine.audit.sha256[i] in known for i in mine.split.val)
    return [f"{name} was trained on {count:,} of the {len(mine.split.val):,} images that validate here"] * bool(count)


def _retrained(run: Run) -> bool:
    """Whether a run, or one that it descends from, was at last trained on the validation images, too."""
    if "retrained" in run.classifier.about:
        return True
    before = run.config.student.parent  # which may be gone
    if before is None or not (before / "config.toml").is_file():
        return False
    parent = Run(before)
    return parent.finished and _retrained(parent)
