"""What `vl2v adapt` brings: finished runs of a benchmark, adapted to their unseen domain without labels.

    python benchmarks/adapt.py bench/icondg --method adip-plus --select 200 --out adapted/

Half of the unseen domain's images, drawn at random, are the new domain's; the teacher is queried about some of them,
and students and teacher are measured on the other half. Embeddings of the source domains come from the benchmark's
store; what is queried goes into a store beside the new runs. Prints accuracy % before and after, on the unseen and the
seen domains, the share of the gap to the teacher that is closed, and the minutes. What has been done is not done again.

With --control the new domain's images are of the source domains instead, as many: what more training alone brings.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import time
from pathlib import Path

import numpy as np

from vl2v.benchmark.worklist import WorkList
from vl2v.data.layouts import open_dataset
from vl2v.runs.adapting import BEFORE, adapt
from vl2v.runs.folder import Run
from vl2v.runs.predictions import Predictions
from vl2v.runs.query import embed
from vl2v.tree import assignments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path)
    parser.add_argument("--method", default="adip-plus")
    parser.add_argument("--select", type=int, default=200)
    parser.add_argument("--strategy", default="kcenter")
    parser.add_argument("--control", action="store_true", help="adapt to images of the source domains")
    parser.add_argument("--set", action="append", default=[], dest="pairs")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    work, rows = WorkList(given.bench), []
    for job in sorted(work.jobs(), key=lambda job: (job.target, job.seed)):
        if job.method == given.method and work.trained(job):
            rows.append(measured(Run(work.folder_of(job)), given))
            print(*(f"{value:.1f}" if isinstance(value, float) else value for value in rows[-1].values()), flush=True)
    with (given.out / f"{given.bench.name}.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def measured(run: Run, given: argparse.Namespace) -> dict[str, object]:
    """Return the figures of one run, adapted to half of its unseen domain and measured on the other half."""
    (target,) = run.config.data.target
    kind = "control" if given.control else given.strategy
    name = f"{run.folder.name}-{given.select}-{kind}"
    out, new = given.out / (name + "".join(f"-{pair}" for pair in given.pairs)), given.out / f"{name}-images"
    dataset = open_dataset(run.config.data.path, layout=run.config.data.layout, exclude=run.config.data.exclude)
    images = dataset.indices(target)
    generator = np.random.default_rng(run.config.seed)
    pool = generator.permutation(images)[: len(images) // 2]
    sources = np.setdiff1d(np.arange(len(dataset.paths)), images)
    new.mkdir(parents=True, exist_ok=True)
    for index in generator.permutation(sources)[: len(pool)] if given.control else pool:
        copy = new / f"{index}{Path(dataset.paths[index]).suffix}"
        if not copy.exists():
            shutil.copyfile(dataset.root / dataset.paths[index], copy)
    own = given.out / f"{name}-store"
    embed(run.config.model_dump(mode="json", by_alias=True, exclude_none=True), store=own)  # of the sources alone
    start = time.monotonic()
    settings = assignments(given.pairs)
    found = adapt(run, new, out, select=given.select, strategy=given.strategy, settings=settings, store=own).run
    assert found is not None and found.evaluation is not None
    minutes = (time.monotonic() - start) / 60
    rest = np.setdiff1d(images, pool)
    before, after = (_accuracy(one, "answer", rest) for one in (run, found))
    teacher = _accuracy(run, "teacher", rest)
    seen = [100 * (found.evaluation.mean(who, "seen") or 0) for who in (BEFORE, "student")]
    return {
        "target": target, "seed": run.config.seed, "images": len(rest), "teacher": teacher, "before": before,
        "after": after, "closed %": 100 * (after - before) / (teacher - before), "seen before": seen[0],
        "seen after": seen[1], "minutes": minutes,
    }  # fmt: skip


def _accuracy(run: Run, who: str, images: np.ndarray) -> float:
    """Return the accuracy % of a run's student ("answer") or its teacher on images (dataset indices)."""
    found = Predictions.load(run.folder)
    mine = np.isin(found["index"], images)
    return 100 * float((found[who][mine] == found["label"][mine]).mean())


if __name__ == "__main__":
    main()
