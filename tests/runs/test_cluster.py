"""A teacher asked on a cluster, and by nodes apart: the very store that one calm process fills."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from little import DOMAINS, processes
from vl2v.embeddings.maintain import merge
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import ConfigError, DataError
from vl2v.runs.cluster import Cluster, cluster_named
from vl2v.runs.query import embed


@pytest.fixture(scope="module")
def settings(shapes: Path) -> dict[str, Any]:
    return {"data": {"path": str(shapes)}, "teacher": {"spec": "tiny", "precision": "fp32"}}


@pytest.fixture(scope="module")
def calm(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of one process that nothing happened to."""
    store = tmp_path_factory.mktemp("calm")
    assert embed(settings, store=store).plan.queries == 108 + 3
    return store


def answers(path: Path) -> dict[bytes, np.ndarray]:
    with EmbeddingStore(path, read_only=True) as store:
        (teacher,) = store.teachers()
        keys = [key for rows in store._saved(teacher.fingerprint) for key, *_ in rows]
        return dict(zip(keys, store.get(teacher.fingerprint, keys), strict=True))


def same(one: Path, other: Path) -> bool:
    """Whether two stores have the same answers, up to the rounding of batches of another size."""
    first, second = answers(one), answers(other)
    return first.keys() == second.keys() and all(np.allclose(first[key], second[key], atol=2e-3) for key in first)


def test_on_ray_with_a_worker_killed(
    settings: dict[str, Any], calm: Path, shapes: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr("vl2v.runs.cluster.PART", 12)  # nine parts
    killed: list[int] = []

    def kill_once(what: str, done: int, total: int, words: str) -> None:
        if "querying" in what and 3 < done < total and not killed and (workers := processes("ray::_query_part")):
            killed.append(workers[0])
            os.kill(workers[0], signal.SIGKILL)

    try:
        with pytest.raises(ConfigError, match="ray:3: this machine has 2 processors"):
            Cluster(3, {"num_cpus": 2}).check()
        embed(settings, store=tmp_path, cluster=Cluster(1, {"num_cpus": 2}), progress=kill_once)
        assert killed and same(tmp_path, calm)
        with EmbeddingStore(tmp_path) as store:
            asked = [q.count for q in store.queries() if q.kind == "image"]
        assert sum(asked) <= 108 + 12, "the killed one's batch, and nothing else, was queried twice"
        assert not list((tmp_path / "shards").glob("[0-9]*"))
        assert embed(settings, store=tmp_path, cluster=Cluster()).plan.queries == 0
        mine = shutil.copytree(shapes, tmp_path / "shapes")
        gone = next(mine.rglob("*.png"))
        data = gone.read_bytes()
        with pytest.raises(DataError, match="has changed since it was read"):
            embed(
                {**settings, "data": {"path": str(mine)}},
                store=tmp_path / "other",
                cluster=Cluster(),
                progress=lambda what, *_: gone.write_bytes(data + b"x") if "querying" in what else None,
            )
    finally:
        ray.shutdown()


def test_what_a_killed_call_left_in_shards_is_taken_over(settings: dict[str, Any], calm: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    merge(calm, tmp_path / "shards" / "000000012")
    (tmp_path / "shards" / "000000024").mkdir()  # killed before it had anything
    cluster = Cluster(options={"num_cpus": "none is started"})
    embed(settings, store=tmp_path, cluster=cluster)
    assert same(tmp_path, calm) and not list((tmp_path / "shards").glob("[0-9]*"))


def test_two_nodes_with_their_own_stores(shapes: Path, recording: Path, tmp_path: Path) -> None:
    teacher = f"recorded:{recording}"
    embed({"data": {"path": str(shapes)}, "teacher": {"spec": teacher}}, store=tmp_path / "calm")
    command = [sys.executable, "-m", "vl2v", "embed", "--data", str(shapes), "--teacher", teacher]
    chalk, ink, paint = DOMAINS
    first = [*command, "--target", chalk, "--target", ink, "--store", str(tmp_path / "a")]
    second = [*command, "--target", paint, "--store", str(tmp_path / "b")]
    nodes = [subprocess.Popen(node, stdout=subprocess.DEVNULL) for node in (first, second)]
    assert [node.wait() for node in nodes] == [0, 0]
    assert merge(tmp_path / "a", tmp_path / "all").embeddings == 36 + 3
    assert merge(tmp_path / "b", tmp_path / "all").embeddings == 72
    assert same(tmp_path / "all", tmp_path / "calm")


def test_clusters_have_names() -> None:
    assert cluster_named("local") is None and cluster_named("ray:4") == Cluster(4)
    for wrong in ("slurm", "ray:", "ray:0", "local:2"):
        with pytest.raises(ConfigError, match="there are local, ray and ray:N"):
            cluster_named(wrong)
