"""Hyperparameters that go by the results of the draws before, from what is in the benchmark's folder."""

from __future__ import annotations

import math

from vl2v.benchmark.draws import repeated, suggested
from vl2v.benchmark.grid import Draw, Grid
from vl2v.benchmark.jobs import Cell
from vl2v.benchmark.results import by_cell, merit
from vl2v.benchmark.worklist import WorkList
from vl2v.config import Tree
from vl2v.errors import need_extra
from vl2v.runs.settings import resolve


def searching(work: WorkList, grid: Grid) -> Draw:
    """Return what makes a grid's draws: one that is on the list already stays as it is, a new one is suggested.

    A draw is worth what the selection rule goes by: unless that is the oracle, the unseen domain decides nothing.

    Args:
        work: the folder's list.
        grid: whose draws are searched for.

    Raises:
        MissingExtra: Optuna isn't installed.
    """
    need_extra("optuna", "optuna")  # told before anything is trained
    cells = by_cell(work.shown(grid.variant)) if work.file.is_file() else {}

    def draw(cell: Cell, number: int) -> Tree:
        draws = cells.get(cell, {})
        if number in draws:
            return repeated(cell.method, resolve(next(iter(draws[number].values())).settings))
        results = []
        for jobs in (draws[known] for known in sorted(draws)):
            done = {held: job for held, job in jobs.items() if work.trained(job)}
            worth = merit(work, done, grid.selection) if "" in done else -math.inf
            if math.isfinite(worth):
                results.append((resolve(done[""].settings), worth))
        return suggested(cell.method, cell.seed, number, results)

    return draw
