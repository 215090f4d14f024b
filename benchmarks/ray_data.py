"""Images embedded on Ray by tasks of our own, and by Ray Data.

    pip install pandas  # which Ray Data wants, and vl2v doesn't
    python benchmarks/ray_data.py icondg
    python benchmarks/ray_data.py icondg --gpus 1 --images 1024

In turns, each in a Ray of its own on this machine: `Cluster.fetch` as `vl2v embed --engine ray` calls it, and a Ray
Data pipeline that writes its embeddings into shards, too. With GPUs the pipeline decodes in tasks that have a processor
each and embeds in an actor for each GPU; without, one actor for each processor does both. `--gpus` declares GPUs, there
or not. Prints the images per second of the whole call, start of the workers included, the seconds to the first saved
batch, and the images per second from then on.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vl2v.config import TeacherConfig
from vl2v.data.archives import icondg
from vl2v.data.auditing import audit
from vl2v.data.decoding import decode
from vl2v.data.layouts import open_dataset
from vl2v.embeddings.fetch import CHUNK, _encoded, fetch
from vl2v.embeddings.plan import Plan, Views, plan
from vl2v.embeddings.schema import image_key
from vl2v.embeddings.store import EmbeddingStore
from vl2v.runs.cluster import Cluster, _take_over, settle_in
from vl2v.session import silent
from vl2v.teachers import the_teacher
from vl2v.teachers.local import BATCH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("teacher", nargs="?", default="tiny")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--images", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")  # else 15: last in the queue of a machine that does other work

    config = TeacherConfig(spec=given.teacher)
    dataset = open_dataset(icondg() if given.data == "icondg" else Path(given.data))
    found = audit(dataset)
    each = max(1, given.cpus // given.gpus) if given.gpus else 1
    cluster = Cluster(each, {"num_cpus": given.cpus, "num_gpus": given.gpus})
    ratios = []
    for _ in range(given.repeats):
        speeds = []
        for name, way in (("tasks", tasks), ("Ray Data", ray_data)):
            with tempfile.TemporaryDirectory() as folder, EmbeddingStore(Path(folder)) as store:
                teacher = the_teacher(config)
                planned = plan(store, teacher, dataset, found, [], Views())
                planned = replace(planned, pending=planned.pending[: given.images])
                ray = cluster.start()
                began, wall = time.perf_counter(), time.time()
                way(cluster, planned, store, teacher, config)
                speeds.append(len(planned.pending) / (time.perf_counter() - began))
                ray.shutdown()
                first, *rest = sorted((q.asked_at, q.count) for q in store.queries())
                rate = sum(count for _, count in rest) / (rest[-1][0] - first[0])
                print(f"{name:8} {speeds[-1]:6.1f}/s   first batch {first[0] - wall:5.1f} s, then {rate:6.1f}/s")
        ratios.append(speeds[1] / speeds[0])
    print(f"Ray Data / tasks: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


def tasks(cluster: Cluster, planned: Plan, store: EmbeddingStore, teacher: Any, config: TeacherConfig) -> None:
    cluster.fetch(planned, store, teacher, silent, config=config)


def ray_data(cluster: Cluster, planned: Plan, store: EmbeddingStore, teacher: Any, config: TeacherConfig) -> None:
    import ray

    logging.getLogger("ray.data").setLevel("ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    gpus = int(ray.cluster_resources().get("GPU", 0))
    cpus = int(ray.cluster_resources()["CPU"])
    shards = store.path / "shards"
    shards.mkdir()
    whole = [ray.put(replace(planned, pending=()))]
    blocks = -(-len(planned.pending) // (BATCH if gpus else CHUNK))
    queries = ray.data.from_items([{"index": i, "view": v} for i, v in planned.pending], override_num_blocks=blocks)
    if gpus:
        queries = queries.map_batches(decoding(whole, teacher._preprocess), batch_size=None, num_cpus=1)
    embedded = queries.map_batches(
        Embedding if gpus else TeacherSession,
        fn_constructor_args=(whole, str(shards), config.model_dump_json(), str(cluster.processors)),
        batch_size=BATCH if gpus else None,
        num_cpus=0 if gpus else 1,
        num_gpus=1 if gpus else 0,
        compute=ray.data.ActorPoolStrategy(size=gpus or cpus),
    )
    assert sum(int(block["count"].sum()) for block in embedded.iter_batches(batch_size=None)) == len(planned.pending)
    for shard in shards.iterdir():
        _take_over(shard, store)


class TeacherSession:
    """Decodes and embeds: an actor."""

    def __init__(self, whole: list[Any], shards: str, config: str, threads: str) -> None:
        import ray

        settle_in(threads, os.getcwd())
        self.whole = ray.get(whole[0])
        self.teacher = the_teacher(TeacherConfig.model_validate_json(config))
        self.shard = Path(shards) / uuid.uuid4().hex

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        with EmbeddingStore(self.shard) as store:
            fetch(replace(self.whole, pending=pairs(batch)), store, self.teacher)
        return {"count": np.array([len(batch["index"])])}


class Embedding(TeacherSession):
    """Embeds what a task decoded."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import torch

        inputs = torch.from_numpy(np.array(batch["input"])).to(self.teacher.device)
        vectors = self.teacher._checked([self.teacher._encode(self.teacher._encode_images, inputs)])
        with EmbeddingStore(self.shard) as store:
            store.register(self.teacher)
            store.put(self.teacher.fingerprint, [bytes.fromhex(key) for key in batch["key"]], vectors, kind="image")
        return {"count": np.array([len(vectors)])}


def decoding(whole: list[Any], preprocess: Any) -> Any:
    def decoded(batch: dict[str, Any]) -> dict[str, Any]:
        import ray
        import torch

        torch.set_num_threads(1)
        part = replace(ray.get(whole[0]), pending=pairs(batch))
        images = [(part.contents[index], part.views.names[view], image) for (index, view), image in _encoded(part)]
        keys = [image_key(sha256, name).hex() for sha256, name, _ in images]
        return {"key": keys, "input": np.stack([preprocess(decode(image.data)).numpy() for *_, image in images])}

    return decoded


def pairs(batch: dict[str, Any]) -> tuple[tuple[int, int], ...]:
    return tuple(zip(batch["index"].tolist(), batch["view"].tolist(), strict=True))


if __name__ == "__main__":
    main()
