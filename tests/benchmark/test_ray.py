"""A Ray cluster with a worker killed: what one process makes, and no more of it than was in flight."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import accuracies, of_one_seed
from little import processes
from stores import same_embeddings
from vl2v.benchmark.engine import Ray
from vl2v.benchmark.grid import Grid
from vl2v.benchmark.results import of, results
from vl2v.benchmark.run import plan, run
from vl2v.benchmark.table import as_table
from vl2v.benchmark.worklist import WorkList
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import ConfigError, DataError
from vl2v.runs.cluster import Cluster
from vl2v.runs.query import embed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    """Start a cluster of one processor for all tests: each of its workers takes seconds to import everything.

    Work at once is what tests/runs/test_cluster.py and tests/benchmark/test_engines.py have.
    """
    ray = pytest.importorskip("ray")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # else they wait for all other tests
        Cluster(1, {"num_cpus": 1}).start()
    yield
    ray.shutdown()
    signal.signal(signal.SIGTERM, before)  # Ray leaves its own


def test_a_teacher_is_queried_once_with_a_worker_killed(
    tiny: dict[str, Any], embedded: Path, shapes: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("vl2v.runs.cluster.PART", 12)  # nine parts
    killed: list[int] = []

    def kill_once(what: str, done: int, total: int, words: str) -> None:
        if "querying" in what and 3 < done < total and not killed and (workers := processes("ray::_query_part")):
            killed.append(workers[0])
            os.kill(workers[0], signal.SIGKILL)

    with pytest.raises(ConfigError, match="ray:3: this machine has 1 processors"):
        Cluster(3).check()
    embed(tiny, store=tmp_path, cluster=Cluster(1), progress=kill_once)
    assert killed and same_embeddings(tmp_path, embedded)
    with EmbeddingStore(tmp_path) as store:
        queried = [q.count for q in store.queries() if q.kind == "image"]
    assert sum(queried) <= 108 + 12, "the killed one's batch, and nothing else, was queried twice"
    assert not list((tmp_path / "shards").glob("[0-9]*"))
    assert embed(tiny, store=tmp_path, cluster=Cluster()).plan.queries == 0
    mine = shutil.copytree(shapes, tmp_path / "shapes")
    gone = next(mine.rglob("*.png"))
    data = gone.read_bytes()
    with pytest.raises(DataError, match="has changed since it was read"):
        embed(
            {**tiny, "data": {"path": str(mine)}},
            store=tmp_path / "other",
            cluster=Cluster(),
            progress=lambda what, *_: gone.write_bytes(data + b"x") if "querying" in what else None,
        )


def test_a_benchmark_ends_the_same_with_a_worker_killed(calm: WorkList, grid: Grid, tmp_path: Path) -> None:
    bench = plan(replace(grid, seeds=1), tmp_path / "bench")
    events: dict[str, list[str]] = {"started": [], "progress": [], "done": []}
    killed: list[int] = []

    def kill_once(event: dict[str, Any]) -> None:
        events[event["event"]].append(event["job"])
        if not killed and event["event"] == "progress" and (workers := processes("ray::_ray_task")):
            killed.append(workers[0])
            os.kill(workers[0], signal.SIGKILL)

    run(bench, engine=Ray(1), notify=kill_once)
    names = sorted(job.name for job in bench.jobs)
    assert killed and sorted(events["done"]) == names
    starts = sorted(Counter(events["started"]).values())
    assert set(events["started"]) == set(names) and starts[:-1] == [1] * (len(names) - 1) and starts[-1] <= 2
    assert accuracies(bench.work) == of_one_seed(calm)
    assert as_table(results(bench.work)).rows[0][:4] == as_table(of(results(calm), seed=0)).rows[0][:4]
