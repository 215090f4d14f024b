"""What a benchmark shows while it works: how much is done, what runs, what failed, time and money left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vl2v.benchmark.run import Benchmark
    from vl2v.session import Progress


@contextmanager
def watching(bench: Benchmark, progress: Progress, budget: float = 0) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a callback for events of jobs, which shows a bar for all jobs and one for each that runs."""
    total, start = len(bench.jobs), time.monotonic()
    before = total - len(bench.missing)
    counts = {"done": 0, "failed": 0}
    running: dict[str, str] = {}

    def overall() -> None:
        finished = counts["done"] + counts["failed"]
        words = [f"{len(running)} running"]
        if counts["failed"]:
            words.append(f"{counts['failed']} failed")
        if finished:
            left = (time.monotonic() - start) / finished * (total - before - finished)
            words.append(f"about {left / 60:.0f} min left")
        if bill := _bill(bench, budget):
            words.append(f"bill so far: {bill}")
        progress("jobs", before + counts["done"], total, ", ".join(words))

    def notify(event: dict[str, Any]) -> None:
        name, kind = event["job"], event["event"]
        if kind == "progress":
            running[name] = event["what"]
            progress(name, event["done"], event["total"], f"{event['what']} {event['words']}")
            return
        if kind == "started":
            running[name] = ""
        else:
            counts[kind] += 1
            running.pop(name, None)
            progress(name, 1, 1, kind)
        overall()

    overall()
    yield notify


def _bill(bench: Benchmark, budget: float) -> str:
    """Return what the benchmark's store has paid, and what is left of the budget; "" where nothing was paid."""
    from vl2v.embeddings.bill import read_bill, totals
    from vl2v.teachers.paid.teacher import micro_of, money

    lines = totals(read_bill(bench.work.folder / "store"))
    paid = {
        one: sum(line.micro for line in lines if line.currency == one)
        for one in sorted({line.currency for line in lines})
    }
    words = [money(micro, currency) for currency, micro in paid.items()]
    if budget and len(paid) == 1:
        ((currency, micro),) = paid.items()
        words.append(f"{money(max(0, micro_of(budget) - micro), currency)} left of the budget")
    return ", ".join(words)
