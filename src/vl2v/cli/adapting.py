"""`vl2v adapt`: a student that meets a new domain is trained further, without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vl2v.cli.learn import Budget, Set, Store
from vl2v.cli.show import say


def adapt(
    run: Annotated[Path, typer.Argument(help="The run folder of the student.")],
    images: Annotated[
        Path | None, typer.Option(help="A folder of images from the new domain; they need no labels.")
    ] = None,
    log: Annotated[
        Path | None, typer.Option("--from", help="In place of --images, the folder of `vl2v serve --log-images`.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The new run's folder; by default RUN-adapted.")] = None,
    select: Annotated[int, typer.Option(min=1, help="How many of them to query the teacher about.")] = 200,
    strategy: Annotated[str, typer.Option(help="Which: kcenter, uncertainty or random.")] = "kcenter",
    closed_form: Annotated[
        bool, typer.Option("--closed-form", help="Fit the last layer alone, in seconds; the backbone stays.")
    ] = False,
    budget: Budget = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be queried, and its price.")] = False,
    pairs: Set = None,
    store: Store = None,
) -> None:
    """Train a student further on images of a new domain without labels; print the accuracy before and after."""
    from vl2v.cli.benchmark import one_of
    from vl2v.cli.show import progress_bars
    from vl2v.config import assignments
    from vl2v.runs.adapting import adapt as adapted

    out = out or run.with_name(f"{run.resolve().name}-adapted")
    which = one_of(strategy, ("kcenter", "uncertainty", "random"), "--strategy")
    with progress_bars() as progress:
        found = adapted(
            run,
            images,
            out,
            log=log,
            select=select,
            strategy=which,
            closed_form=closed_form,
            settings=assignments(pairs or []),
            store=store,
            budget=budget,
            dry_run=dry_run,
            progress=progress,
        )
    if found.run is None:
        say(*found.queries.summary().split("\n"))
        return
    for refusal in found.queries.refused:
        say(f"{refusal.path}: refused by the teacher: {refusal.reason}", err=True)
    assert found.run.evaluation is not None
    if found.run.evaluation.rows:
        found.table().print()
    else:
        say(*found.run.evaluation.notes)
    bill = f"; the bill so far: {found.queries.bill}" if found.queries.bill else ""
    say(f"{found.queries.plan.queries:,} queries{bill}; the student is in {found.run.folder}")
