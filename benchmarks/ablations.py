"""One thing changed at a time: the same methods, targets and seeds under several settings.

    python benchmarks/ablations.py icondg=ICONS --teacher tiny --targets emoji outline --steps 300 --batch 8 \\
        --set student.image_size=64 --try "without Align: stages.align.steps=1" --try "SWAD: train.swad=true"

`--try` is "WORDS: KEY=VALUE KEY=VALUE ..."; the first row is without any. Besides settings there is steps=N, of the
last stage. Finished runs stay in --out and are not trained again. Prints, for each method, accuracy % on unseen domains
and the leads over the first row.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.progress import Progress

from vl2v.benchmark.engine import engine_named
from vl2v.benchmark.grid import Grid
from vl2v.benchmark.results import Result, result_of
from vl2v.benchmark.run import plan, run
from vl2v.benchmark.table import as_table
from vl2v.tree import assignments, merge

AS_IT_IS = "as it is"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="NAME=PATH")
    parser.add_argument("--teacher", default="tiny")
    parser.add_argument("--methods", nargs="*", default=["adip"])
    parser.add_argument("--student", default="lite0")
    parser.add_argument("--targets", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8, help="a domain")
    parser.add_argument("--set", action="append", default=[], dest="pairs")
    parser.add_argument("--try", action="append", default=[], dest="tries", metavar="WORDS: KEY=VALUE ...")
    parser.add_argument("--engine", default="local")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    given = parser.parse_args()
    tries = [(AS_IT_IS, []), *map(parsed, given.tries)]
    found = [(words, result) for words, pairs in tries for result in results(given, words, pairs)]
    for method in given.methods:
        rows = [replace(result, student=method, method=words) for words, result in found if result.method == method]
        print(as_table(rows, reference=AS_IT_IS, published=False).render("md"), end="\n\n")


def parsed(text: str) -> tuple[str, list[str]]:
    """Return the words and the pairs of a --try."""
    words, _, pairs = text.partition(":")
    return words.strip(), shlex.split(pairs)


def results(given: argparse.Namespace, words: str, pairs: list[str]) -> Iterator[Result]:
    """Do what is missing under a setting; yield its results."""
    name, _, path = given.data.partition("=")
    changes = assignments(pairs)
    steps = changes.pop("steps", given.steps)
    settings = merge({"teacher": {"spec": given.teacher}}, merge(assignments(given.pairs), changes))
    student = settings.get("student", {}).pop("name", given.student)
    grid = Grid(
        {name: path},
        given.targets,
        given.methods,
        [student],
        given.seeds,
        settings=settings,
        steps=steps,
        batch=given.batch,
    )
    bench = plan(grid, given.out)
    with Progress(transient=True) as bars:
        bar = bars.add_task(words, total=len(bench.missing))
        done = lambda event: bars.advance(bar, event["event"] in ("done", "failed"))  # noqa: E731
        run(bench, engine=engine_named(given.engine), notify=done)
    for job in bench.jobs:
        if bench.work.trained(job):
            yield result_of(bench.work, job)


if __name__ == "__main__":
    main()
