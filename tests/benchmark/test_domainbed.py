"""DomainBed's own results, in the same table by the same rules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vl2v.benchmark.domainbed import read_domainbed
from vl2v.benchmark.results import results
from vl2v.benchmark.table import as_table
from vl2v.benchmark.worklist import Selection, WorkList
from vl2v.errors import DataError
from vl2v.evaluation.compare import Marks


def domainbed_line(
    step: int,
    accuracies: Sequence[float],
    *,
    targets: Sequence[int] = (3,),
    seed: int = 0,
    draw: int = 0,
    inside: float | None = None,
    **hparams: object,
) -> str:
    """Return a line of DomainBed's: each environment's accuracies; of the target `inside` on its 80%."""
    columns = {f"env{i}_{part}_acc": accuracy for i, accuracy in enumerate(accuracies) for part in ("in", "out")}
    if inside is not None:
        columns[f"env{targets[0]}_in_acc"] = inside
    arguments = {"algorithm": "ERM", "dataset": "PACS", "test_envs": list(targets), "trial_seed": seed}
    line = {"args": {**arguments, "hparams_seed": draw, "holdout_fraction": 0.2}, "step": step, "loss": 0.3}
    return json.dumps({**line, "hparams": {"resnet18": False, **hparams}, **columns}) + "\n"


def test_domainbeds_own_results_stand_in_the_same_table(calm: WorkList, tmp_path: Path) -> None:
    for seed in (0, 1):
        file = tmp_path / f"sweep/{seed}/results.jsonl"
        file.parent.mkdir(parents=True)
        steps = [(300, 0.8, 0.9), (600, 0.9, 0.7 + seed / 10), (900, 0.7, 0.95)]
        file.write_text(
            "".join(domainbed_line(s, [seen] * 3 + [new + 0.1], seed=seed, inside=new) for s, seen, new in steps)
        )
    found, notes = read_domainbed(tmp_path / "sweep")
    assert [(r.method, r.target, r.in_split) for r in found] == [
        ("ERM (DomainBed)", "sketch", 0.7),
        ("ERM (DomainBed)", "sketch", pytest.approx(0.8)),
    ]
    assert found[0].accuracy == pytest.approx(0.8 * 0.7 + 0.2 * 0.8) and not notes
    text = as_table(found).render("md")
    assert "77.0 ± 3.5" in text and "over n seeds, not n - 1" in text  # theirs: np.std of 72 and 82, over root 2
    ours = as_table([replace(result, theirs=False) for result in found]).render("md")
    assert "77.0 ± 5.0" in ours and "not n - 1" not in ours
    (tmp_path / "other.jsonl").write_text('{"loss": 1}\n')
    with pytest.raises(DataError, match=r"other.jsonl, line 1: not DomainBed's"):
        read_domainbed(tmp_path / "other.jsonl")


def test_a_sweep_of_domainbeds_is_selected_by_the_rule_of_the_table(tmp_path: Path) -> None:
    """Two draws with runs that leave one and two environments out, as its sweep makes them by default."""
    lines = []
    for draw, seen, held, last in ((0, 0.9, 0.3, 0.2), (1, 0.5, 0.8, 0.4)):
        lines += [domainbed_line(300, [seen] * 3 + [0.9], draw=draw, inside=0.6 + draw / 10)]
        lines += [domainbed_line(600, [seen - 0.1] * 3 + [last], draw=draw, inside=0.8 + draw / 10)]
        for other in range(3):
            pair = [held if i == other else 0.5 for i in range(4)]
            lines += [domainbed_line(300, pair, targets=[other, 3], draw=draw)]
    file = tmp_path / "results.jsonl"
    file.write_text("".join(lines))
    (found,), notes = read_domainbed(file, "training")
    assert found.in_split == 0.6 and "6 lines with several test environments aren't in the table" in notes[0]
    (found,), notes = read_domainbed(file, "leave-one-out")
    assert found.in_split == pytest.approx(0.7) and not notes
    (found,), _ = read_domainbed(file, "oracle")  # the last step of each run only
    assert found.in_split == pytest.approx(0.9)
    coral = domainbed_line(300, [0.5] * 4, inside=0.4).replace('"ERM"', '"CORAL"')
    file.write_text("".join([*lines, coral]))
    (_, single), notes = read_domainbed(file, "leave-one-out")
    assert single.method == "CORAL (DomainBed)" and "no runs to select CORAL by leaving" in notes[0]
    file.write_text("".join(line for line in lines if '"test_envs": [3]' in line))
    (found,), notes = read_domainbed(file, "leave-one-out")
    assert found.in_split == 0.6 and "selected by source validation" in notes[0]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("selection", ["training", "leave-one-out", "oracle"])
def test_of_equal_validation_accuracies_domainbed_takes_the_last_hparams_seed(
    selection: Selection, order: Sequence[int], tmp_path: Path
) -> None:
    """Its runs are sorted by hparams_seed, then by accuracy, stably, and reversed; within a run the first step wins."""
    lines = []
    for draw in order:
        steps = [(300, 0.1), (600, 0.2)] if selection != "leave-one-out" else [(600, 0.2), (300, 0.1)]  # theirs sorts
        for step, more in steps:
            lines += [domainbed_line(step, [0.5] * 4, draw=draw, inside=0.4 + draw / 10 + more / 10)]
            lines += [domainbed_line(step, [0.5] * 4, targets=[other, 3], draw=draw) for other in range(3)]
    file = tmp_path / "results.jsonl"
    file.write_text("".join(lines))
    (found,), _ = read_domainbed(file, selection)
    assert found.in_split == pytest.approx(0.62 if selection == "oracle" else 0.61)  # the oracle's step is the last


def test_domainbeds_students_are_distinguished_and_stop_no_bold_row(calm: WorkList, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    kinds = [{"resnet18": True}, {}, {"vit": True, "dinov2": True}, {"vit": True}]
    file.write_text("".join(domainbed_line(300, [0.5] * 4, seed=seed, **kind) for seed, kind in enumerate(kinds)))
    imported, _ = read_domainbed(file)
    alike = [domainbed_line(300, [0.5] * 4, **kind) for kind in kinds]  # the same seed: nothing but the student differs
    (tmp_path / "alike.jsonl").write_text("".join(alike))
    assert len(read_domainbed(tmp_path / "alike.jsonl", "oracle")[0]) == 4
    assert [result.student for result in imported] == ["resnet18", "resnet50", "dinov2", "vit"]
    rng = np.random.default_rng(0)
    right = {"erm": 0.5, "adip": 0.9}
    ours = [
        replace(r, marks=Marks(np.arange(1000), rng.random(1000) < right[r.method]))
        for r in results(calm)
        if r.method in right
    ]
    theirs = [replace(imported[0], dataset="shapes", target="paint", student=ours[0].student)]
    table = as_table([*ours, *theirs])
    assert [table.rows[i][1] for i in table.bold] == ["adip"] and "trained its student here" in table.notes[-1]
