"""The tables of docs/findings.md and docs/trials.md, made from docs/findings.csv: a line a run.

    python tools/findings.py add NAME BENCH...   # add finished runs of benchmark folders to table NAME
    python tools/findings.py                     # write the tables between <!-- table NAME --> and <!-- end -->, draw
    python tools/findings.py --check             # exit with 1 if that would change a page

`<!-- table NAME reference=kd -->` counts leads from a method; `<!-- leads SET=NAME, ... reference=kd -->` those on all
targets of some tables, and `<!-- gains NAME, ... to NAME, ... -->` what methods have more in the second tables: both of
the seeds that both sides have, by Student's t over the targets, in whose spread the luck of the trainings is. Each line
of the CSV has the version that trained the run, and what it got right of its unseen domain, image by image (as the bits
of a hexadecimal number), so that intervals are computed anew. Of a folder, the runs of the settings that were given
last are taken, whichever version trained them; of several draws the first.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vl2v.benchmark.results import Result, of_same_images
from vl2v.benchmark.results import result_of as result_of_job
from vl2v.benchmark.table import as_table
from vl2v.benchmark.worklist import WorkList
from vl2v.evaluation.compare import Marks, student_t
from vl2v.io import read_json
from vl2v.table import Table

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES, DATA = (DOCS / "findings.md", DOCS / "trials.md"), DOCS / "findings.csv"
UNLABELLED, UNLABELLED_PLOT = DOCS / "unlabelled.csv", DOCS / "images" / "unlabelled.svg"
LEAD, PLOT = DOCS / "lead.csv", DOCS / "images" / "lead.svg"
FIGURES = ("accuracy", "in_split", "seen", "seconds")
HEADS = ("table", "dataset", "target", "student", "method", "seed", "version", *FIGURES, "images", "right")
LEADS = re.compile(r"(<!-- leads ([^>]+) reference=(\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
GAINS = re.compile(r"(<!-- gains ([^>]+?)\s+to\s+([^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
TABLE = re.compile(r"(<!-- table (\S+)(?: reference=(\S+))? -->\n).*?(<!-- end -->)", re.DOTALL)


def line_of(table: str, result: Result, version: str) -> dict[str, str]:
    """Return a run as a line of the CSV."""
    figures = {name: f"{getattr(result, name):.6g}" for name in FIGURES}
    marks = result.marks
    return {
        "table": table,
        **{name: str(getattr(result, name)) for name in HEADS[1:6]},
        "version": version,
        **figures,
        "images": "" if marks is None else _ranges(marks.images),
        "right": "" if marks is None else np.packbits(marks.right).tobytes().hex(),
    }


def result_of(line: dict[str, str]) -> Result:
    """Return the run of a line."""
    marks = None
    if line["images"]:
        images = np.concatenate([np.arange(a, b + 1) for a, b in map(_range, line["images"].split())])
        right = np.unpackbits(np.frombuffer(bytes.fromhex(line["right"]), np.uint8), count=len(images))
        marks = Marks(images.astype(np.int64), right.astype(np.bool_))
    names = {name: line[name] for name in HEADS[1:5]}
    figures = {name: float(line[name]) for name in FIGURES}
    return Result(**names, seed=int(line["seed"]), **figures, folder=DATA, marks=marks)


def _range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last or first)


def _ranges(images: np.ndarray) -> str:
    """Return rising numbers as ranges: "3-7 9"."""
    cuts = np.flatnonzero(np.diff(images) != 1) + 1
    return " ".join(
        f"{part[0]}-{part[-1]}" if len(part) > 1 else f"{part[0]}" for part in np.split(images, cuts) if len(part)
    )


def read() -> list[dict[str, str]]:
    """Return the lines of the CSV."""
    with DATA.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def add(table: str, benches: Sequence[Path]) -> None:
    """Add the runs of benchmark folders to a table, under its name of the dataset; the same runs are taken out."""
    found: dict[Path, tuple[Result, str]] = {}
    for work in map(WorkList, benches):
        shown = read_json(work.folder / "shown.json")
        names = set(shown["jobs"][shown["variant"]])
        for job in work.jobs():
            if job.name in names and not job.held and not job.draw and work.trained(job):
                result = result_of_job(work, job)
                if result is not None:
                    found[result.folder] = result, job.version
    same = of_same_images([result for result, _ in found.values()])[0]
    lines = read()
    own = [line for line in lines if line["table"] == table]
    named = {"dataset": own[0]["dataset"]} if own else {}
    own += [line_of(table, one, found[one.folder][1]) | named for one in same]
    runs = {tuple(line[name] for name in HEADS[1:6]): line for line in own}
    lines = [*(line for line in lines if line["table"] != table), *runs.values()]
    with DATA.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, HEADS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    print(f"{len(same)} runs in table {table}")


def page(file: Path) -> str:
    """Return a page with its tables made anew; what is under several of them stands under the first."""
    lines, said = read(), set[str]()

    def table(match: re.Match[str]) -> str:
        found = [result_of(line) for line in lines if line["table"] == match[2]]
        text = as_table(found, reference=match[3], published=False).render("md")
        parts = [part for part in text.split("\n\n") if part not in said]
        said.update(part for part in parts if not part.startswith("|"))
        filled = (part if part.startswith("|") else textwrap.fill(part, 120) for part in parts)
        return "\n\n".join((match[1].rstrip(), *filled, match[4]))

    def leads(match: re.Match[str]) -> str:
        sets = dict(one.split("=") for one in re.split(r",\s+", match[2]))
        return "\n\n".join((match[1].rstrip(), _leads(lines, sets, match[3]), match[4]))

    def gains(match: re.Match[str]) -> str:
        before, after = (re.split(r",\s+", match[number]) for number in (2, 3))
        return "\n\n".join((match[1].rstrip(), _gains(lines, before, after), match[4]))

    text = file.read_text(encoding="utf-8")
    return GAINS.sub(gains, LEADS.sub(leads, TABLE.sub(table, text)))


Runs = dict[str, dict[int, float]]  # accuracy %, by target and seed


def _runs(lines: Sequence[dict[str, str]], tables: Sequence[str]) -> dict[str, Runs]:
    """Return the runs of some tables, by method."""
    found: dict[str, Runs] = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        if line["table"] in tables:
            found[line["method"]][line["target"]][int(line["seed"])] = 100 * float(line["accuracy"])
    return found


def _mean(runs: Runs) -> float:
    return float(np.mean([np.mean(list(seeds.values())) for seeds in runs.values()]))


def _ahead(runs: Runs, others: Runs) -> tuple[str, str]:
    """Return how far runs are ahead of others, in points with the 95% interval, and on how many targets and not."""
    ahead = np.array([
        np.mean([seeds[seed] - others[target][seed] for seed in seeds.keys() & others[target].keys()])
        for target, seeds in runs.items()
    ])  # fmt: skip
    half = student_t(len(ahead) - 1) * ahead.std(ddof=1) / len(ahead) ** 0.5
    lead = f"{ahead.mean():+.1f} [{ahead.mean() - half:+.1f}, {ahead.mean() + half:+.1f}]"
    return lead, f"{(ahead > 0).sum()}/{(ahead < 0).sum()}"


def _seeds(runs: Runs) -> str:
    counts = sorted({len(seeds) for seeds in runs.values()})
    return " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))


def _leads(lines: Sequence[dict[str, str]], sets: Mapping[str, str], reference: str) -> str:
    """Return methods' mean accuracy % on some data sets and over all their targets, and their leads over one of them.

    Args:
        sets: the table of each.
    """
    methods = _runs(lines, list(sets.values()))
    base = methods[reference]
    full = {method: runs for method, runs in methods.items() if runs.keys() == base.keys()}
    heads = ["method", *sets, f"all {len(base)} targets", f"against {reference}, 95%", "wins/losses", "seeds"]
    rows = []
    for method, runs in sorted(full.items(), key=lambda one: -_mean(one[1])):
        means = [_mean(_runs(lines, [table])[method]) for table in sets.values()] + [_mean(runs)]
        compared = _ahead(runs, base) if method != reference else ("", "")
        rows.append([method, *(f"{mean:.1f}" for mean in means), *compared, _seeds(runs)])
    return Table(heads, rows, left=["method"]).render("md")


def _gains(lines: Sequence[dict[str, str]], before: Sequence[str], after: Sequence[str]) -> str:
    """Return what methods gain from some tables to others, over the same targets, of the seeds that both have."""
    then, now = _runs(lines, before), _runs(lines, after)
    rows = []
    for method in now.keys() & then.keys():
        shared = {target: seeds.keys() & then[method][target].keys() for target, seeds in now[method].items()}
        if not all(shared.values()) or now[method].keys() != then[method].keys():
            continue
        former, runs = (
            {target: {seed: side[target][seed] for seed in seeds} for target, seeds in shared.items()}
            for side in (then[method], now[method])
        )
        rows.append([method, f"{_mean(former):.1f}", f"{_mean(runs):.1f}", *_ahead(runs, former), _seeds(runs)])
    rows.sort(key=lambda row: -float(row[2]))
    return Table(["method", "before", "after", "gain, 95%", "wins/losses", "seeds"], rows, left=["method"]).render("md")


def draw() -> None:
    """Draw the plots."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "lead"
    _draw_lead()
    _draw_unlabelled()


def _lines(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def _draw_lead() -> None:
    """Draw the lead of adip-plus over the best other method against training steps, with 95% intervals."""
    from matplotlib import pyplot

    lines = _lines(LEAD)
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for number, dataset in enumerate(dict.fromkeys(line["dataset"] for line in lines)):
        steps, lead, low, high = (
            np.array([float(line[name]) for line in lines if line["dataset"] == dataset])
            for name in ("steps", "lead", "low", "high")
        )
        beside = steps * 1.04**number  # so that bars don't hide one another
        axes.errorbar(beside, lead, (lead - low, high - lead), fmt="o-", capsize=4, color=f"C{number}", label=dataset)
    axes.axhline(0, color="0.5", linewidth=1)
    axes.set(xscale="log", xlabel="training steps", ylabel="lead on unseen domains, points")
    axes.set_xticks([60, 160, 300, 1200, 4800], ["60", "160", "300", "1,200", "4,800"])
    axes.minorticks_off()
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    figure.savefig(PLOT, metadata={"Date": None})


def _draw_unlabelled() -> None:
    """Draw accuracy on unseen domains against the images without labels that were queried, and its mean."""
    from matplotlib import pyplot

    lines = _lines(UNLABELLED)
    counts = sorted({int(line["images"]) for line in lines})
    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    for number, method in enumerate(dict.fromkeys(line["method"] for line in lines)):
        targets = dict.fromkeys(line["target"] for line in lines if line["method"] == method)
        table = np.array([
            [next(float(line["accuracy"]) for line in lines
                  if (line["method"], line["target"], int(line["images"])) == (method, target, count))
             for count in counts]
            for target in targets
        ])  # fmt: skip
        for row in table:
            axes.plot(range(len(counts)), row, ":", color=f"C{number}", linewidth=1)
        axes.plot(range(len(counts)), table.mean(0), "o-", color=f"C{number}", label=method)
    axes.set_xticks(range(len(counts)), [f"{count:,}" for count in counts])
    axes.set(xlabel="images without labels queried", ylabel="accuracy on unseen domains, %")
    axes.legend(frameon=False)
    figure.savefig(UNLABELLED_PLOT, metadata={"Date": None})


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    verbs = parser.add_subparsers(dest="verb")
    adding = verbs.add_parser("add")
    adding.add_argument("table")
    adding.add_argument("benches", type=Path, nargs="+")
    given = parser.parse_args()
    if given.verb == "add":
        add(given.table, given.benches)
    made = {file: page(file) for file in PAGES}
    if given.check:
        return int(any(text != file.read_text(encoding="utf-8") for file, text in made.items()))
    for file, text in made.items():
        file.write_text(text, encoding="utf-8")
    draw()
    return 0


if __name__ == "__main__":
    sys.exit(main())
