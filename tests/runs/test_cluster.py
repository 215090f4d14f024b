"""A teacher that nodes query apart: the very store that one process fills. (tests/benchmark/test_ray.py has Ray.)"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from little import DOMAINS
from stores import same_embeddings
from vl2v.embeddings.maintain import merge
from vl2v.errors import ConfigError
from vl2v.runs.cluster import Cluster, cluster_named
from vl2v.runs.query import embed


def test_what_a_killed_call_left_in_shards_is_taken_over(tiny: dict[str, Any], embedded: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    merge(embedded, tmp_path / "shards" / "000000012")
    (tmp_path / "shards" / "000000024").mkdir()  # killed before it had anything
    cluster = Cluster(options={"num_cpus": "none is started"})
    embed(tiny, store=tmp_path, cluster=cluster)
    assert same_embeddings(tmp_path, embedded) and not list((tmp_path / "shards").glob("[0-9]*"))


def test_two_nodes_with_their_own_stores(shapes: Path, recording: Path, quick_python: str, tmp_path: Path) -> None:
    teacher = f"recorded:{recording}"
    embed({"data": {"path": str(shapes)}, "teacher": {"spec": teacher}}, store=tmp_path / "calm")
    command = [quick_python, "-m", "vl2v", "embed", "--data", str(shapes), "--teacher", teacher]
    chalk, ink, paint = DOMAINS
    first = [*command, "--target", chalk, "--target", ink, "--store", str(tmp_path / "a")]
    second = [*command, "--target", paint, "--store", str(tmp_path / "b")]
    nodes = [subprocess.Popen(node, stdout=subprocess.DEVNULL) for node in (first, second)]
    assert [node.wait() for node in nodes] == [0, 0]
    assert merge(tmp_path / "a", tmp_path / "all").embeddings == 36 + 3
    assert merge(tmp_path / "b", tmp_path / "all").embeddings == 72
    assert same_embeddings(tmp_path / "all", tmp_path / "calm")


def test_clusters_have_names() -> None:
    assert cluster_named("local") is None and cluster_named("ray:4") == Cluster(4)
    for wrong in ("slurm", "ray:", "ray:0", "local:2"):
        with pytest.raises(ConfigError, match="choose one of local, ray and ray:N"):
            cluster_named(wrong)
