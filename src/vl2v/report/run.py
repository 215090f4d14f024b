"""The report of a run: what it was, how good it is, where it errs, whether it can be trusted, and how to use it."""

from __future__ import annotations

import json
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import tomli_w
from numpy.typing import NDArray
from PIL import Image

from vl2v.deploy.runtime import size_of
from vl2v.embeddings.bill import read_bill
from vl2v.embeddings.session import anchor_prompts
from vl2v.evaluation.alignment import accuracy_by_group, confusions
from vl2v.evaluation.compare import Share, paired_difference, wilson
from vl2v.evaluation.metrics import Row
from vl2v.io import read_json
from vl2v.methods import Task, task_of
from vl2v.report.charts import Chart, Heat, Series, Span, axis, calibration
from vl2v.report.evaluated_run import EvaluatedRun, confidence, open_evaluated, verdict
from vl2v.report.map import embedding_map, lit, occlusion
from vl2v.report.page import data_uri, duration, interval, lead, page, percent
from vl2v.runs.adapting import BEFORE
from vl2v.runs.datasets import gone
from vl2v.runs.evaluate import STUDENT, TEACHER
from vl2v.runs.folder import Run
from vl2v.runs.settings import without_paths
from vl2v.session import Progress, Session, derive
from vl2v.teachers.paid.teacher import money
from vl2v.teachers.prompts import prompts_for
from vl2v.training.batches import clean_pixels
from vl2v.training.loop import MetricsLog

CONFUSED = 40  # classes in the confusion matrix
WORST, MISTAKES = 6, 5  # classes with thumbnails, and thumbnails of each
SALIENT = 3  # right predictions, and wrong ones, whose saliency is shown

Indices = NDArray[np.int64]


def run_page(run: Run, session: Session) -> str:
    """Return the HTML of a finished run's report.

    Args:
        run: the run; its images have to be where they were.
        session: whose store has the teacher's embeddings.
    """
    evaluated = open_evaluated(run, session)
    config = run.config
    target = ", ".join(config.data.target) or "no domain"
    content = {
        "eyebrow": "Report of a run",
        "title": f"{config.method}: {target} unseen" if config.student.parent is None else f"{config.method}, adapted",
        "lead": _lead(evaluated),
        "tiles": list(_tiles(evaluated)),
        "verdict": verdict(evaluated),
        "sections": SECTIONS,
        "facts": list(_facts(evaluated)),
        "teacher": bool(evaluated.evaluation.of(TEACHER)),
        "notes": list(_notes(evaluated)),
        **_accuracy(evaluated),
        **_mistakes(evaluated),
        **confidence(evaluated),
        "map": embedding_map(evaluated, session.progress),
        "saliency": list(_saliency(evaluated, session.progress)),
        "curves": list(_curves(MetricsLog(run.folder).rows())),
        **_use(evaluated.name, opened=evaluated.classifier.texts is not None),
        "settings": tomli_w.dumps(without_paths(config.model_dump(by_alias=True, exclude_none=True))),
    }
    return page("run.html", content)


SECTIONS = [
    ("trained", "Trained"),
    ("accuracy", "Accuracy"),
    ("mistakes", "Mistakes"),
    ("confidence", "Confidence"),
    ("map", "Map"),
    ("looks", "What it looks at"),
    ("curves", "Curves"),
    ("use", "Use"),
    ("settings", "Settings"),
]


def _lead(evaluated: EvaluatedRun) -> str:
    about, config = evaluated.classifier.about, evaluated.run.config
    teacher = f"taught by {_teacher_name(evaluated)}" if about["teacher"] else "trained without a teacher"
    words = f"{config.student.name}, {teacher} on {', '.join(evaluated.sources)}"
    if not evaluated.unseen.any():
        return f"{words}. No domain was left out of training, so nothing here says how it does on a new one."
    saw = "which it never saw" if config.student.parent is None else "of which it saw no label"
    return f"{words}, and measured on {', '.join(config.data.target)}, {saw}."


def _teacher_name(evaluated: EvaluatedRun) -> str:
    return str(without_paths(evaluated.classifier.about["teacher"]["spec"]))


def _tiles(evaluated: EvaluatedRun) -> Iterator[dict[str, str]]:
    """Yield the figures that matter most."""
    evaluation, classifier = evaluated.evaluation, evaluated.classifier
    for role, words in (("unseen", "unseen domains"), ("seen", "seen domains, validation")):
        for who, name in ((STUDENT, "student"), (TEACHER, "teacher")):
            rows = evaluation.of(who, role)  # type: ignore[arg-type]
            if rows and not (who == TEACHER and role == "seen"):
                yield {"label": f"{name} on {words}", "who": name, "value": f"{_mean(rows)}%", "note": _spread(rows)}
    focus = evaluated.focus
    found = calibration(evaluated.predictions["probability"][focus], evaluated.right[focus])
    before = calibration(evaluated.predictions["uncalibrated"][focus], evaluated.right[focus])
    where = "unseen" if evaluated.unseen.any() else "seen"
    errors = [row.metrics.ece for row in evaluation.of(STUDENT, where)]  # type: ignore[arg-type]
    apart = f"by domain {percent(min(errors))} to {percent(max(errors))}%; " if len(errors) > 1 else ""
    yield {
        "label": f"calibration error (ECE), {where} domains pooled",
        "who": "",
        "value": f"{percent(found.ece)}%",
        "note": f"{apart}{percent(before.ece)}% before the temperature",
    }
    weights = sum(value.numel() for value in classifier.student.parameters())
    size = size_of(evaluated.run.folder / "student")
    pixels = classifier.student.spec.image_size
    yield {
        "label": "student's size",
        "who": "",
        "value": f"{size / 1e6:.1f} MB",
        "note": f"{weights / 1e6:.1f} M parameters, {pixels} px",
    }


def _weights(evaluated: EvaluatedRun) -> str:
    """Return which weights the student started from, as the run saved it; earlier versions didn't."""
    setting = str(without_paths(evaluated.run.config.student.weights))
    saved = evaluated.classifier.about.get("weights", "")
    if setting == "auto":
        return f"auto: {saved}" if saved else "auto (an earlier version didn't save which those were)"
    return saved or setting


def _mean(rows: Sequence[Row]) -> str:
    return percent(sum(row.metrics.accuracy for row in rows) / len(rows))


def _spread(rows: Sequence[Row]) -> str:
    """Return the interval of a single domain, or between which domains' accuracies a mean is."""
    if len(rows) == 1:
        low, high = _wilson(rows[0])
        return f"{percent(low)} to {percent(high)}, {rows[0].metrics.images:,} images"
    shares = [row.metrics.accuracy for row in rows]
    return f"mean of {len(rows)} domains, {percent(min(shares))} to {percent(max(shares))}"


def _wilson(row: Row) -> tuple[float, float]:
    return wilson(round(row.metrics.accuracy * row.metrics.images), row.metrics.images)


def _facts(evaluated: EvaluatedRun) -> Iterator[tuple[str, str]]:
    """Yield what was trained on what, and what it cost."""
    run, config, about = evaluated.run, evaluated.run.config, evaluated.classifier.about
    sources = evaluated.images.sources
    task = task_of(config)
    name, images, classes = config.data.path.resolve().name, len(evaluated.dataset), len(evaluated.dataset.classes)
    yield "Data", f"{name}: {images:,} images of {classes} classes"
    training = f"{len(sources.split.train):,} images of {', '.join(sources.names)}"
    more = f", and {len(sources.split.unlabelled):,} without labels" if len(sources.split.unlabelled) else ""
    if gone(config.data):
        more += ", and images without labels whose folders are gone"
    yield "Learnt from", f"{training}{more}; {len(sources.split.val):,} more to validate on"
    yield "Unseen", ", ".join(config.data.target) or "none"
    stages = [(stage.name, config.stages[stage.key]) for stage in task.stages]
    steps = "; ".join(
        f"{name}: {s.steps:,} steps, learning rate {s.lr:g}, {s.batch_per_domain} a domain" for name, s in stages
    )
    yield "Method", f"{config.method} ({steps})"
    yield "Student", f"{config.student.name}, weights at the start: {_weights(evaluated)}"
    if about["teacher"]:
        yield "Teacher", _teacher_name(evaluated)
        yield "Queries", _queries(evaluated, task, sources.with_others.classes, len(sources.training))
        yield "Bill", _bill(evaluated)
    else:
        yield "Teacher", "none: nothing was queried"
    seconds = sum(row["seconds"] for row in MetricsLog(run.folder).rows())
    yield "Time", f"{duration(seconds)} in the optimiser's steps and their validation"
    yield "Seed", f"{config.seed}, split {config.data.split_seed}"
    yield (
        "Selected by",
        f"validation images of the seen domains ({percent(about['validation_accuracy'])}%)",
    )


def _queries(evaluated: EvaluatedRun, task: Task, classes: Sequence[str], training: int) -> str:
    """Return what the teacher was queried about, for this run or an earlier one."""
    config, folder = evaluated.run.config, evaluated.run.folder
    groups = prompts_for(classes, config.prompts, evaluated.sources)
    if task.anchors:
        groups += chain.from_iterable(anchor_prompts(classes, config.prompts, evaluated.sources))
    texts = len({text for group in groups for text in group})
    if task.queries == "texts":
        return f"{texts:,} texts"
    chosen = read_json(folder / "asked.json")
    images = training if chosen is None else len(chosen)
    views = f", {1 + config.teacher.views} views of each" if config.teacher.views else ""
    return f"{images:,} training images{views}, and {texts:,} texts"


def _bill(evaluated: EvaluatedRun) -> str:
    """Return what the run paid."""
    paid: dict[str, int] = defaultdict(int)
    for entry in read_bill(evaluated.store, evaluated.run.folder):
        paid[entry.currency] += entry.micro
    bill = ", ".join(money(micro, currency) for currency, micro in paid.items())
    return bill or "nothing: the teacher costs nothing, or its embeddings had been bought before"


def _notes(evaluated: EvaluatedRun) -> Iterator[str]:
    yield from evaluated.evaluation.notes
    measured = {row.domain for row in evaluated.evaluation.of(TEACHER)}
    missing = [row.domain for row in evaluated.evaluation.of() if row.domain not in measured]
    if missing and evaluated.classifier.about["teacher"]:
        said = f"The teacher has no embedding in the store of some images of {', '.join(missing)}."
        folder = shlex.quote(evaluated.name)
        how = f"With this, the next report has it: vl2v embed --config {folder}/config.toml --set 'data.target=[]'"
        yield said if evaluated.run.config.teacher.select else f"{said} {how}"


def _accuracy(evaluated: EvaluatedRun) -> dict[str, Any]:
    """Return the table of domains, unseen ones first; of an adapted run, with what its parent predicted rightly."""
    evaluation, predictions = evaluated.evaluation, evaluated.predictions
    teachers, before = ({row.domain: row for row in evaluation.of(who)} for who in (TEACHER, BEFORE))
    rows, differs = [], False
    for row in sorted(evaluation.of(), key=lambda row: row.role == "seen"):
        metrics, (low, high) = row.metrics, _wilson(row)
        found = [Span(metrics.accuracy, low, high, "student")]
        made = {
            "name": row.domain,
            "unseen": row.role == "unseen",
            "images": f"{metrics.images:,}",
            "before": ("not measured", ""),
            "student": interval(metrics.accuracy, low, high),
            "teacher": ("not queried", ""),
            "difference": ("", ""),
            "balanced": percent(metrics.balanced_accuracy),
            "ece": percent(metrics.ece),
            "known": percent(metrics.known),
            "spans": found,
        }
        if row.domain in before:
            parent = before[row.domain]
            made["before"] = interval(parent.metrics.accuracy, *_wilson(parent))
        if row.domain in teachers:
            other = teachers[row.domain]
            low, high = _wilson(other)
            made["teacher"] = interval(other.metrics.accuracy, low, high)
            found.append(Span(other.metrics.accuracy, low, high, "teacher"))
            mine = predictions.in_domain(row.domain)
            if (evaluated.teacher[mine] >= 0).all():
                gap = paired_difference(evaluated.right[mine], evaluated.teacher[mine] == predictions["label"][mine])
                made["difference"] = lead(gap.mean, gap.low, gap.high)
                differs = True
        rows.append(made)
    return {"domains": rows, "before": bool(before), "differs": differs, "span_axis": "0 to 100%"}


def _mistakes(evaluated: EvaluatedRun) -> dict[str, Any]:
    """Return the confusion matrix, the worst classes and all of them: on unseen domains, if there are any."""
    predictions, indices = evaluated.predictions, np.flatnonzero(evaluated.focus)
    labels, predicted, right = predictions["label"][indices], predictions["answer"][indices], evaluated.right[indices]
    teacher = evaluated.teacher[indices]
    by_class = accuracy_by_group(tuple(predictions.classes), labels, right)
    known = teacher >= 0
    of_known = accuracy_by_group(tuple(predictions.classes), labels[known], (teacher == labels)[known])
    of_teacher = {share.name: share for share in of_known}
    taken: dict[str, list[str]] = defaultdict(list)
    for pair in confusions(labels, predicted):
        taken[predictions.classes[pair.label]].append(f"{predictions.classes[pair.predicted]} ({pair.count})")
    weakest = sorted(by_class, key=lambda share: share.accuracy)
    classes = [
        {
            "name": share.name,
            "images": f"{share.images:,}",
            "student": percent(share.accuracy),
            "teacher": percent(of_teacher[share.name].accuracy) if share.name in of_teacher else "",
            "spans": [Span(share.accuracy, *share.interval, "student")],
            "taken": ", ".join(taken[share.name][:3]),
        }
        for share in weakest
    ]
    worst = [_worst(evaluated, share, indices) for share in weakest[:WORST] if share.correct < share.images]
    where = "unseen domains' images" if evaluated.unseen.any() else "seen domains' validation images"
    domains = ", ".join(dict.fromkeys(np.array(predictions.domains)[predictions["domain"][indices]].tolist()))
    shown = weakest if len(weakest) <= CONFUSED else [s for s in weakest if s.correct < s.images][:CONFUSED]
    words = "" if len(shown) == len(weakest) else f"The matrix has the {len(shown)} weakest of {len(weakest)} classes."
    return {
        "focus": f"{where} ({domains})",
        "matrix_words": words,
        "matrix": _matrix(predictions.classes, sorted(share.name for share in shown), labels, predicted),
        "classes": classes,
        "worst": worst,
    }


def _worst(evaluated: EvaluatedRun, share: Share, indices: Indices) -> dict[str, Any]:
    """Return a class with the mistakes that the student was surest of."""
    predictions = evaluated.predictions
    mine = indices[(predictions["label"][indices] == predictions.classes.index(share.name)) & ~evaluated.right[indices]]
    surest = mine[np.argsort(-predictions["probability"][mine], kind="stable")][:MISTAKES]
    images = []
    for index in surest:
        said, sure = predictions.classes[predictions["answer"][index]], f"{predictions['probability'][index]:.0%}"
        images.append(
            {
                "image": evaluated.thumbnail(index),
                "alt": f"{share.name}, taken for {said} with {sure}",
                "lines": [(f"{said} {sure}", "wrong")],
            }
        )
    return {
        "name": share.name,
        "words": f"{percent(share.accuracy)}%, {share.correct} of {share.images} right",
        "images": images,
    }


def _matrix(classes: list[str], shown: list[str], labels: Indices, predicted: Indices) -> Heat:
    """Return how many images of each of the shown classes were taken for which."""
    ids = [classes.index(name) for name in shown]
    cells: list[list[tuple[str, float, str] | None]] = []
    for row, name in zip(ids, shown, strict=True):
        counts = Counter(predicted[labels == row].tolist())
        total = max(counts.total(), 1)
        cells.append(
            [
                (str(counts[column]), counts[column] / total, f"{name}, taken for {said}: {counts[column]} of {total}")
                if counts[column]
                else None
                for column, said in zip(ids, shown, strict=True)
            ]
        )
    return Heat(shown, shown, cells)


def _saliency(evaluated: EvaluatedRun, progress: Progress) -> Iterator[dict[str, str]]:
    """Yield images with the part that the prediction depends on: some right, some wrong, drawn by lot."""
    predictions, focus = evaluated.predictions, evaluated.focus
    rng = np.random.default_rng(derive(0, "saliency"))
    chosen = [rng.permutation(np.flatnonzero(focus & right))[:SALIENT] for right in (evaluated.right, ~evaluated.right)]
    indices = np.concatenate(chosen)
    size, fit = evaluated.classifier.image_size, evaluated.classifier.fit
    (pixels,) = clean_pixels(evaluated.dataset, predictions["index"][indices], size, workers=0, fit=fit)
    drops, least = occlusion(evaluated.classifier, pixels, progress)
    for number, index in enumerate(indices):
        truth, said = (
            predictions.classes[predictions["label"][index]],
            predictions.classes[predictions["answer"][index]],
        )
        right = truth == said
        image = pixels[number].numpy()
        sure = float(predictions["probability"][index])
        yield {
            "image": data_uri(Image.fromarray(image)),
            "lit": data_uri(Image.fromarray(lit(image, drops[number]))),
            "alt": f"An image of {truth}",
            "first": truth if right else f"{truth}, taken for {said}",
            "tone": "right" if right else "wrong",
            "second": f"{sure:.0%} sure; {least[number]:.0%} with the part covered that it needs most",
        }


def _use(folder: str, *, opened: bool) -> dict[str, Any]:
    """Return what to type to use a run: commands with what they do."""
    quoted = shlex.quote(folder)
    commands = {
        f"vl2v predict {quoted} IMAGE": 'class and probability, or "unknown"',
        f"vl2v export {quoted} --int8": "one ONNX file that needs nothing of vl2v",
        f"vl2v serve {quoted}": "an HTTP API, and a page to drop images on",
    }
    if opened:
        commands[f"vl2v classes add {quoted} NAME"] = "one more class, by its name alone"
    width = max(map(len, commands))
    lines = [f"{command:{width}}  # {words}" for command, words in commands.items()]
    python = f"import vl2v\n\nstudent = vl2v.load({json.dumps(folder)})\nprint(student.predict(['image.jpg'])[0])"
    return {"folder": folder, "quoted": quoted, "commands": "\n".join(lines), "python": python, "opened": opened}


def _curves(rows: Sequence[dict[str, Any]]) -> Iterator[Chart]:
    """Yield the loss and the validation accuracy of each stage."""
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    for stage in stages:
        mine = [row for row in rows if row["stage"] == stage]
        steps = axis("steps", [0, *(row["step"] for row in mine)], low=0)
        for key, name, unit in (("loss", "training loss", 1), ("val_accuracy", "validation accuracy, %", 100)):
            line = [(row["step"], unit * row[key], f"step {row['step']}: {unit * row[key]:.4g}") for row in mine]
            y = axis(name, [value for _, value, _ in line])
            yield Chart(f"{stage.capitalize()}: {name.split(',')[0]}", steps, y, [Series(name, "student", line)])
