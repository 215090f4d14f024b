"""`vl2v teacher`: check a teacher before paying for all of its embeddings."""

from typing import TYPE_CHECKING, Annotated

import typer

from vl2v.cli import Commands, progress_bars, say
from vl2v.cli.options import Budget, ConfigFile, Data, Set, Store, Target, TeacherSpec
from vl2v.table import Table

if TYPE_CHECKING:
    from vl2v.evaluation.compare import Share
    from vl2v.runs.teacher_verdict import Check

app = typer.Typer(cls=Commands, help="Check a teacher before paying for all of its embeddings.", no_args_is_help=True)

ROWS = 10  # of long tables; --json has all


@app.callback()
def _group() -> None:
    """Check a teacher before paying for all of its embeddings."""


@app.command("check")
def check(
    data: Data = None,
    teacher: TeacherSpec = None,
    images: Annotated[int, typer.Option(help="Maximum number of labelled images to query.")] = 200,
    target: Target = None,
    budget: Budget = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be queried and what it would cost, then stop.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: ConfigFile = None,
    pairs: Set = None,
    store: Store = None,
) -> None:
    """Query a small labelled sample and report whether the teacher is worth it for these images."""
    import json as as_json

    from vl2v.runs.check import check_cost, check_teacher
    from vl2v.runs.settings import settings_of

    settings = settings_of(config, pairs or (), data=data, teacher=teacher, target=target)
    if dry_run:
        with progress_bars() as progress:
            queried = check_cost(settings, images=images, store=store, progress=progress)
        say(*queried.summary().split("\n"))
        return
    with progress_bars() as progress:
        before = lambda lines: say(*lines.split("\n"), err=True)  # noqa: E731
        found = check_teacher(settings, images=images, store=store, budget=budget, before=before, progress=progress)
    if json:
        typer.echo(as_json.dumps(found.to_json(), indent=2))
    else:
        _show(found)


def _show(found: "Check") -> None:
    domains = [*found.domains, found.everything]
    _print_shares("domain", domains, len(domains))
    worst = sorted(found.classes, key=lambda share: share.accuracy)
    _print_shares("class", worst[:ROWS], len(worst))
    _print_alignment(found)
    _print_swaps(found)
    _print_prompts(found)
    for name in found.names:
        say(f"- {name.advice()}")
    for refusal in found.refused:
        say(f"- {refusal.path}: refused by the teacher: {refusal.reason}")
    for note in found.notes:
        say(f"- {note}")
    say(found.verdict())


def _print_shares(what: str, shares: "list[Share]", total: int) -> None:
    part = f", the worst {len(shares)} of {total}" if total > len(shares) else ""
    rows = []
    for share in shares:
        low, high = share.interval
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
        rows.append([share.name, str(share.images), f"{100 * share.accuracy:.1f}", interval])
    heads = [what, "images", "accuracy", "95% interval"]
    Table(heads, rows, title=f"zero-shot accuracy % by {what}{part}").print()


def _print_alignment(found: "Check") -> None:
    fit = found.alignment
    say(
        f"cosine of an image with its class's text: {fit.own:.3f}; with the best other: {fit.other:.3f}; "
        f"margin: {fit.margin:.3f}; modality gap: {fit.gap:.2f}"
    )
    probes = [
        ("linear probe on the untrained student's features", found.student),
        ("linear probe on the teacher's own embeddings", found.own),
        ("the teacher adapted to its own embeddings", found.adapted),
    ]
    for what, probed in probes:
        if probed is not None:
            low, high = probed.share.interval
            say(
                f"{what}, {probed.images} labelled images, {found.held_out}: "
                f"{100 * probed.share.accuracy:.1f}% ({100 * low:.1f} to {100 * high:.1f})"
            )


def _print_swaps(found: "Check") -> None:
    if not found.swaps:
        return
    shown = found.swaps[:ROWS]
    part = f", the first {len(shown)} of {len(found.swaps)} pairs" if len(found.swaps) > len(shown) else ""
    rows = [[swap.label, swap.predicted, str(swap.count), swap.example] for swap in shown]
    left = ("class", "taken for", "for example")
    heads = ["class", "taken for", "images", "for example"]
    Table(heads, rows, title=f"taken for another class{part}", left=left).print()


def _print_prompts(found: "Check") -> None:
    rows = []
    for wording in found.wordings:
        gain = wording.gain
        interval = f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}"
        rows.append([wording.setting, f"{100 * wording.accuracy:.1f}", f"{100 * gain.mean:+.1f}", interval])
    notes = [f"- not measured: {skip.setting}: {skip.reason}" for skip in found.skipped]
    title = f"other prompts than {', '.join(found.prompts)}, on the same images"
    Table(["--set", "accuracy %", "points more", "interval"], rows, (), notes, title).print()
