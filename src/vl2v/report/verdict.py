"""Whether a student is good enough, in a sentence: against chance, its teacher and a baseline, and where it fails."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vl2v.evaluation import Role
from vl2v.evaluation.alignment import accuracy_by_group
from vl2v.evaluation.intervals import paired_difference, wilson
from vl2v.report.evaluated_run import EvaluatedRun
from vl2v.report.page import lead, percent
from vl2v.runs.evaluate import STUDENT, TEACHER

NAMED = 3  # weak classes


def verdict(evaluated: EvaluatedRun) -> str:
    """Return the sentence: of unseen domains, or of the seen ones' validation images if there are none."""
    return "; ".join([*_against(evaluated), _fails(evaluated)]) + "."


def _against(evaluated: EvaluatedRun) -> Iterator[str]:
    focus, evaluation = evaluated.focus, evaluated.evaluation
    labels = evaluated.kept["label"][focus]
    right, count = int(evaluated.right[focus].sum()), int(focus.sum())
    usual = float(np.bincount(labels).max() / count)
    better = "better" if wilson(right, count)[0] > usual else "not surely better"
    where = "unseen domains" if evaluated.unseen.any() else "seen domains' validation images"
    yield (
        f"On {where} it is right about {percent(right / count)}% of {count:,} images, {better} than always naming the "
        f"most frequent class ({percent(usual)}%)"
    )
    asked = focus & (evaluated.teacher >= 0)
    if asked.any():
        gap = paired_difference(evaluated.right[asked], evaluated.teacher[asked] == evaluated.kept["label"][asked])
        level = "level with" if gap.low <= 0 <= gap.high else "better than" if gap.low > 0 else "worse than"
        points, interval = lead(gap.mean, gap.low, gap.high)
        yield f"{level} its teacher ({points} points; {interval})"
    role: Role = "unseen" if evaluated.unseen.any() else "seen"
    own = evaluation.mean(STUDENT, role)
    for who in evaluation.models():
        base = evaluation.mean(who, role)
        if who not in (STUDENT, TEACHER) and own is not None and base is not None:
            yield f"{100 * (own - base):+.1f} points against {who}"


def _fails(evaluated: EvaluatedRun) -> str:
    """Return the domain, of several, and the classes that are surely worse than the whole."""
    focus = evaluated.focus
    rows = evaluated.evaluation.of(STUDENT, "unseen" if evaluated.unseen.any() else "seen")
    whole = float(evaluated.right[focus].mean())
    shares = accuracy_by_group(tuple(evaluated.kept.classes), evaluated.kept["label"][focus], evaluated.right[focus])
    poor = sorted((share for share in shares if share.interval[1] < whole), key=lambda share: share.accuracy)
    worst = min(rows, key=lambda row: row.metrics.accuracy)
    named = [f"{worst.domain} ({percent(worst.metrics.accuracy)}%)"] if len(rows) > 1 else []
    named += [f"{share.name} ({percent(share.accuracy)}%)" for share in poor[:NAMED]]
    return f"it fails most on {', '.join(named)}" if named else "no class is surely worse than the others"
