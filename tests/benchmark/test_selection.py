"""Draws of hyperparameters: their ranges, Optuna's suggestions, and the rules that select one."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import finish, flip
from little import DOMAINS, Here
from vl2v.benchmark.grid import Grid, Range, drawn, ranges, suggested
from vl2v.benchmark.results import gather, results
from vl2v.benchmark.run import plan, run
from vl2v.benchmark.worklist import WorkList
from vl2v.errors import ConfigError
from vl2v.methods import METHODS
from vl2v.runs.settings import resolve
from vl2v.tree import merge


def test_draws_are_selected_by_each_rule(grid: Grid, tmp_path: Path) -> None:
    bench = plan(replace(grid, methods=["erm"], seeds=1, draws=2, selection="leave-one-out"), tmp_path)
    assert [(job.draw, job.held) for job in bench.jobs] == [(d, h) for d in (0, 1) for h in ("", "chalk", "ink")]
    run(bench, engine=Here())
    assert not bench.missing
    for rule in ("training", "leave-one-out", "oracle"):
        (found,) = results(bench.work, rule)
        assert found.folder in {bench.work.folder_of(job) for job in bench.jobs if not job.held}
    assert drawn("erm", 0, 1) == drawn("erm", 0, 1) != drawn("erm", 0, 2)
    stage = drawn("erm", 0, 1)["stages"]["finetune"]
    assert 1e-5 <= stage["lr"] <= 10**-3.5 and 1e-6 <= stage["weight_decay"] <= 1e-2
    assert 8 <= stage["batch_per_domain"] <= 45


def test_optuna_goes_by_the_results_in_the_folder(grid: Grid, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    wanted = replace(grid, methods=["zero-shot", "kd"], seeds=1, draws=3, search="optuna", batch=None)
    first, second, _ = wanted.rounds
    for part in (first, second):
        run(plan(part, tmp_path), engine=Here())
    third = plan(wanted, tmp_path)
    assert [(job.method, job.draw) for job in third.missing] == [("kd", 2)]
    (suggestion,) = third.missing
    again = plan(wanted, tmp_path)  # it is on the list: another process, or a resumed one, takes the very same
    assert [job.name for job in again.jobs] == [job.name for job in third.jobs]
    (tmp_path / "jobs.jsonl").write_text("".join((tmp_path / "jobs.jsonl").read_text().splitlines(True)[:-1]))
    assert plan(wanted, tmp_path).missing[0].name == suggestion.name  # and from the results alone
    stage = suggestion.settings["stages"]["distill"]
    assert 1e-5 <= stage["lr"] <= 10**-3.5 and 1 <= suggestion.settings["loss"]["temperature"] <= 5
    random = plan(replace(wanted, search="random"), tmp_path)
    assert not {job.name for job in random.jobs if job.draw} & {job.name for job in third.jobs}


def test_optuna_looks_where_results_are_good(grid: Grid) -> None:
    pytest.importorskip("optuna")

    def worth(tree: dict[str, Any]) -> float:  # best at a learning rate of 1e-4
        return -abs(np.log10(tree["stages"]["finetune"]["lr"]) + 4)

    results: list[Any] = []
    for draw in range(1, 26):
        tree = suggested("erm", 0, draw, results)
        results.append((resolve(merge({"data": {"path": "x"}, "method": "erm"}, tree)), worth(tree)))
    at_random = np.mean([worth(drawn("erm", 0, draw)) for draw in range(1, 26)])
    assert np.mean([found for _, found in results[-10:]]) > at_random + 0.1
    assert suggested("erm", 0, 3, results[:2]) == suggested("erm", 0, 3, results[:2])


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if entry.stage_defaults])
def test_a_value_has_one_position_in_its_range(method: str) -> None:
    for found in ranges(method).values():
        middle = (found.low + found.high) / 2
        assert found.value(found.position(found.value(middle))) == pytest.approx(found.value(middle))
    assert Range(3, 5.5, 2, whole=True).value(5.0) == 32 and Range(3, 5.5, 2, whole=True).position(32) == pytest.approx(
        5
    )


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if entry.stage_defaults])
def test_a_methods_own_hyperparameters_are_in_its_ranges(method: str) -> None:
    own = resolve({"data": {"path": "x"}, "method": method}).model_dump(by_alias=True)
    for name, found in ranges(method).items():
        value = reduce(getitem, name.split("."), own)
        if value:  # a weight decay of nothing is on no scale of powers, and counts as the least
            assert found.value(found.position(value)) == pytest.approx(value), name
        assert found.low <= found.position(value) <= found.high


def test_optuna_knows_what_the_defaults_are_worth() -> None:
    pytest.importorskip("optuna")
    own = resolve({"data": {"path": "x"}, "method": "erm"})
    others = [(resolve(merge({"data": {"path": "x"}, "method": "erm"}, drawn("erm", 0, n))), 0.5) for n in range(1, 6)]
    suggestions = {worth: suggested("erm", 0, 6, [(own, worth), *others]) for worth in (0.1, 0.9)}
    assert suggestions[0.1] != suggestions[0.9]


def test_optuna_passes_over_runs_that_chose_for_themselves() -> None:
    pytest.importorskip("optuna")
    tree: dict[str, Any] = {"data": {"path": "x"}, "method": "kd", "loss": {"temperature": "auto"}}
    assert suggested("kd", 0, 1, [(resolve(tree), 0.9)]) == suggested("kd", 0, 1, [])


def test_a_batch_that_is_given_is_in_every_draw(grid: Grid) -> None:
    jobs = list(replace(grid, methods=["erm"], seeds=1, draws=4, batch=4).jobs())
    assert {job.settings["stages"]["finetune"]["batch_per_domain"] for job in jobs} == {4} and len(jobs) == 4


@pytest.mark.parametrize(("rule", "best"), [("training", 0), ("leave-one-out", 1), ("oracle", 2)])
def test_each_rule_selects_by_its_own_images(rule: str, best: int, grid: Grid, tmp_path: Path) -> None:
    bench = plan(replace(grid, methods=["erm"], seeds=1, draws=3, selection="leave-one-out"), tmp_path)
    right = {  # draw -> share right on: validation of the sources, a source left out, the target's 80%, its other 20%
        0: (0.9, 0.2, 0.5, 0.2),
        1: (0.2, 0.9, 0.6, 0.2),
        2: (0.2, 0.2, 0.7, 0.9),
    }
    for job in bench.jobs:
        seen, held, inside, outside = right[job.draw]
        sources = [(name, False, 10, held if name == job.held else seen) for name in ("chalk", "ink")]
        finish(bench.work, job, [("paint", True, 10, inside), ("paint", False, 10, outside), *sources])
    (found,) = results(bench.work, rule)
    assert found.folder == bench.work.folder_of(next(job for job in bench.jobs if job.draw == best and not job.held))
    assert found.in_split == pytest.approx(right[best][2])


def test_source_validation_is_the_mean_over_domains_however_large(grid: Grid, tmp_path: Path) -> None:
    bench = plan(replace(grid, methods=["erm"], seeds=1, draws=2), tmp_path)
    for job, chalk, ink in zip(bench.jobs, (0.5, 0.7), (1.0, 0.7), strict=True):
        finish(bench.work, job, [("paint", True, 10, 0.5), ("chalk", True, 90, chalk), ("ink", True, 10, ink)])
    (found,) = results(bench.work, "training")
    assert found.folder == bench.work.folder_of(bench.jobs[0]) and found.seen == pytest.approx(0.75)


def test_a_rule_whose_runs_are_missing_selects_nothing(grid: Grid, tmp_path: Path) -> None:
    wanted = replace(grid, methods=["erm"], seeds=1, draws=2)
    bench = plan(wanted, tmp_path)
    parts = [("paint", True, 10, 0.5), ("chalk", True, 10, 0.5), ("ink", True, 10, 0.5)]
    for job in bench.jobs:
        finish(bench.work, job, parts)
    with pytest.raises(ConfigError, match=r"there are draws, and no runs .* again with --selection leave-one-out"):
        results(bench.work, "leave-one-out")
    with pytest.raises(ConfigError, match="nothing is left of paint to select by"):
        results(bench.work, "oracle")
    larger = plan(replace(wanted, selection="leave-one-out"), tmp_path)
    first, second = ([job for job in larger.missing if job.draw == draw] for draw in (0, 1))
    for job in [*first, second[0]]:
        finish(larger.work, job, parts)
    (found,) = results(larger.work, "leave-one-out")  # the other draw can't be selected yet
    assert found.folder == larger.work.folder_of(bench.jobs[0])


def test_what_a_rule_cant_select_from_yet_is_left_out_with_a_note(grid: Grid, tmp_path: Path) -> None:
    wanted = replace(grid, methods=["erm"], seeds=2, draws=3)
    plan(wanted, tmp_path)
    plan(replace(wanted, seeds=1, draws=2, selection="leave-one-out"), tmp_path)
    work = WorkList(tmp_path)
    for job in work.shown():  # the third draw, which no rule can select, is the best
        finish(work, job, [(name, True, 10, 0.5 + job.draw / 10) for name in DOMAINS])
    (found,), (note,) = gather([tmp_path], "leave-one-out")
    assert found.seed == 0 and found.accuracy == pytest.approx(0.6)
    assert "1 more have students" in note and ", erm, " in note


def test_a_draw_that_cant_be_read_is_not_selected(grid: Grid, tmp_path: Path) -> None:
    bench = plan(replace(grid, methods=["erm"], seeds=1, draws=3, selection="leave-one-out"), tmp_path)
    for job in bench.jobs:
        shares = 0.9 - job.draw / 10
        finish(bench.work, job, [(name, True, 10, shares) for name in DOMAINS])
    folders = {(job.draw, job.held): bench.work.folder_of(job) for job in bench.jobs}
    flip(folders[0, ""] / "predictions.safetensors")
    flip(folders[1, "ink"] / "predictions.safetensors")
    (found,) = results(bench.work, "leave-one-out")
    assert found.folder == folders[2, ""]
    assert {(job.draw, job.held) for job in bench.missing} == {(0, ""), (1, "ink")}
