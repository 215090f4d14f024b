"""A Ray cluster: how work gets there, and a teacher queried by many of its processes at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from vl2v.config import TeacherConfig
from vl2v.embeddings.fetch import Refusal, fetch
from vl2v.embeddings.maintain import merge
from vl2v.embeddings.plan import Plan
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import ConfigError, StoreError, TeacherError, VL2VError, need_extra
from vl2v.io import locked
from vl2v.session import Progress
from vl2v.teachers import the_teacher
from vl2v.teachers.paid.teacher import as_paid
from vl2v.teachers.protocol import Teacher

RETRIES = 2  # of a task whose process or node died
PART = 4096  # queries a task: minutes of work, a few megabytes of embeddings


@dataclass
class Cluster:
    """The Ray cluster that RAY_ADDRESS names, or one of this machine.

    A task has a GPU of its own where the cluster has any. One whose process or node dies is done again elsewhere.

    Attributes:
        options: of `ray.init`.
    """

    processors: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def start(self) -> Any:
        """Return the module, connected.

        Raises:
            MissingExtra: Ray isn't installed.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports what it is used for
        ray = need_extra("ray", "ray")
        if not ray.is_initialized():
            own = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
            ray.init(log_to_driver=False, logging_level="ERROR", **own, **self.options)
        return ray

    def check(self) -> None:
        """Check that tasks can start at all; a cluster may grow, one of this machine alone doesn't.

        Raises:
            ConfigError: it hasn't as many processors as a task is to have.
        """
        nodes = [node["Resources"].get("CPU", 0) for node in self.start().nodes() if node["Alive"]]
        if len(nodes) == 1 and 0 < nodes[0] < self.processors and not os.environ.get("RAY_ADDRESS"):
            raise ConfigError(f"--engine ray:{self.processors}: this machine has {nodes[0]:.0f} processors for Ray")

    def task(self, work: Callable[..., Any]) -> Any:
        """Return what starts a function as a task: `cluster.task(work).remote(...)`."""
        ray = self.start()
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        return ray.remote(num_cpus=self.processors, num_gpus=gpus, max_retries=RETRIES)(work)

    def fetch(
        self,
        plan: Plan,
        store: EmbeddingStore,
        teacher: Teacher,
        progress: Progress,
        check_texts: Callable[[], None] = lambda: None,
        *,
        config: TeacherConfig,
    ) -> list[Refusal]:
        """Do what `vl2v.embeddings.fetch` does, the images in many processes.

        Each task decodes its part of the images on its processors, queries the teacher on its GPU (or processors), and
        saves the embeddings in a store of its own in `shards/`, a batch at a time; a restarted task resumes there.
        Shards join the store as they are finished. The store's folder, and the images, have to be on a disk that
        all nodes share. A paid teacher is queried by this process alone, so that its budget can't be passed.

        Args:
            plan: from `vl2v.embeddings.plan`.
            store: of the plan.
            teacher: of the plan.
            progress: called with the queries done.
            check_texts: as for `fetch`.
            config: what opens the teacher elsewhere.

        Raises:
            TeacherError: it can't be queried, or is another one elsewhere.
            StoreError: another process fills the same store on a cluster.
            ConfigError: no task can start.
        """
        if as_paid(teacher) is not None:
            return fetch(plan, store, teacher, progress, check_texts)
        shards = store.path.absolute() / "shards"
        with _alone(shards):
            for shard in sorted(shards.glob("[0-9]*")):  # of a call that was killed
                _take_over(shard, store)
            plan = plan.left(store, teacher)
            fetch(replace(plan, pending=()), store, teacher)
            if plan.pending:
                check_texts()
            done = len(plan.pending_texts)
            for count in self._shards(plan, store, teacher, shards, config):
                done += count
                progress(f"querying {teacher.name}", done, plan.queries, "")
        return []

    def _shards(
        self, plan: Plan, store: EmbeddingStore, teacher: Teacher, shards: Path, config: TeacherConfig
    ) -> Iterator[int]:
        """Query a plan's images; yield each part's number of queries once its embeddings are in the store."""
        if not plan.pending:
            return
        self.check()
        ray = self.start()
        at_once = max(1, int(ray.cluster_resources().get("CPU", 1)) // self.processors)
        size = min(PART, -(-len(plan.pending) // at_once))
        whole = ray.put(replace(plan, pending=(), pending_texts=()))
        given = (config.model_dump_json(), teacher.fingerprint, str(self.processors), os.getcwd())
        task, parts = self.task(_query_part), {}
        for start in range(0, len(plan.pending), size):
            part = plan.pending[start : start + size]
            shard = shards / f"{start:09d}"
            parts[task.remote(whole, part, str(shard), *given)] = shard, len(part)
        waiting = list(parts)
        try:
            while waiting:
                (first, *_), waiting = ray.wait(waiting, num_returns=1)
                ray.get(first)
                shard, count = parts[first]
                _take_over(shard, store)
                yield count
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, VL2VError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            raise TeacherError(
                f"{teacher.name}: Ray gave up ({type(error).__name__}); what arrived is saved: run it again to resume"
            ) from error
        finally:
            for ref in waiting:
                ray.cancel(ref, force=True)


def cluster_named(spec: str) -> Cluster | None:
    """Return the cluster of "ray" or "ray:N" (N processors a task); None for "local".

    Raises:
        ConfigError: another name, or a number that isn't one.
    """
    kind, colon, number = spec.partition(":")
    if spec == "local":
        return None
    if kind != "ray" or (colon and not number.isdecimal()) or number == "0":
        raise ConfigError(f"engine {spec!r}: choose one of local, ray and ray:N")
    return Cluster(int(number or 1))


def _query_part(
    whole: Plan, part: Sequence[tuple[int, int]], shard: str, config: str, fingerprint: str, threads: str, where: str
) -> None:
    """Query a part of the images, in a process of the cluster."""
    settle_in(threads, where)
    teacher = _opened(config)
    if teacher.fingerprint != fingerprint:
        raise TeacherError(
            f"{teacher.name}: isn't the same on all nodes; set teacher.precision to fp32 or bf16, and install the same "
            "versions everywhere"
        )
    with EmbeddingStore(Path(shard)) as store:
        fetch(replace(whole, pending=tuple(part)).left(store, teacher), store, teacher)


def settle_in(threads: str, where: str) -> None:
    """Make a process of the cluster like the one that sent the work: its folder, and its share of the processors."""
    os.chdir(where)
    os.environ |= {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}


@cache
def _opened(config: str) -> Teacher:
    return the_teacher(TeacherConfig.model_validate_json(config))


def _take_over(shard: Path, store: EmbeddingStore) -> None:
    if (shard / store.file.name).is_file():
        merge(shard, store.path)
    shutil.rmtree(shard)


@contextmanager
def _alone(shards: Path) -> Iterator[None]:
    from filelock import Timeout

    try:
        with locked(shards / "claim.lock", wait=False):
            yield
    except Timeout:
        raise StoreError(f"{shards.parent}: another process fills it on a cluster; wait for it to end") from None
