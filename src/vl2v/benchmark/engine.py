"""Where jobs run: processes of this machine, or a Ray cluster. Both do the very same work on the same folder."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vl2v.benchmark.work import Notify, attempt, fail, given_up, seldom
from vl2v.benchmark.worklist import Job, WorkList
from vl2v.errors import ConfigError
from vl2v.runs.cluster import Cluster, settle_in
from vl2v.system import heeding, processors, signals_raised

CRASHES = 2  # a job at which the process died so often is given up


class Engine(Protocol):
    """Runs jobs."""

    @property
    def processes(self) -> int:
        """How many jobs it does at once."""
        ...

    def run(self, work: WorkList, jobs: Sequence[Job], budget: float, notify: Notify) -> None:
        """Do the jobs, all of them or until each has failed; notify of what happens as it happens."""
        ...


def engine_named(spec: str) -> Engine:
    """Return the engine of "local", "local:N" (N processes), "ray" or "ray:N" (N processors a job).

    Raises:
        ConfigError: another name, or a number that isn't one.
    """
    kind, _, number = spec.partition(":")
    if kind not in ("local", "ray") or (number and not number.isdecimal()) or number == "0":
        raise ConfigError(f"engine {spec!r}: choose one of local, local:N, ray and ray:N")
    if kind == "ray":
        return Ray(int(number or 1))
    return Local(int(number)) if number else Local()


def _gpus() -> list[str]:
    """Return the GPUs that may be used, as CUDA names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name]
    return sorted(device.name.removeprefix("nvidia") for device in Path("/dev").glob("nvidia[0-9]*"))


@dataclass
class Local:
    """Processes of this machine. One that dies is restarted and resumes the job that it died at.

    Attributes:
        processes: how many; by default one a GPU, or one a processor.
    """

    processes: int = field(default_factory=lambda: len(_gpus()) or processors())

    def run(self, work: WorkList, jobs: Sequence[Job], budget: float, notify: Notify) -> None:
        """Do the jobs; see `Engine`."""
        events: queue.Queue[tuple[Worker, dict[str, Any]]] = queue.Queue()
        since = time.time()
        order = {
            "folder": str(work.folder),
            "jobs": [job.row for job in jobs],
            "since": since,
            "budget": budget,
        }
        by_name = {job.name: job for job in jobs}
        crashes: dict[str, int] = {}
        count = min(self.processes, len(jobs))
        workers: list[Worker] = []

        def start(number: int) -> None:
            with heeding() as stop:  # a process that isn't on the list yet would outlive a signal
                workers.append(Worker(number, count, order, events))
            if stop.signal is not None:
                signal.raise_signal(stop.signal)

        with signals_raised(), _ending(workers):
            for number in range(count):
                start(number)
            while workers:
                worker, event = events.get()
                if event["event"] == "ended":
                    workers.remove(worker)
                    if event["code"] and worker.job:
                        crashes[worker.job] = crashes.get(worker.job, 0) + 1
                        if crashes[worker.job] >= CRASHES:
                            reason = f"its process died {CRASHES} times (exit code {event['code']})"
                            fail(work, by_name[worker.job], reason, worker.last_errors())
                            notify({"event": "failed", "job": worker.job})
                        start(worker.number)
                    elif event["code"] and worker.started:  # it died between two jobs
                        start(worker.number)
                    elif event["code"] and not workers and any(not given_up(work, job, since) for job in jobs):
                        raise RuntimeError(f"a worker can't start: {worker.last_errors()}")
                    continue
                worker.started = True
                worker.job = event["job"] if event["event"] in ("started", "progress") else None
                notify(event)


@contextmanager
def _ending(workers: Sequence[Worker]) -> Iterator[None]:
    """End the processes with the block; one that pays for something gets the time to note it."""
    try:
        yield
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.wait()


class Worker:
    """A process that works through the list, and the threads that listen to it."""

    def __init__(
        self,
        number: int,
        count: int,
        order: dict[str, Any],
        events: queue.Queue[tuple[Worker, dict[str, Any]]],
    ) -> None:
        self.number = number
        self.job: str | None = None
        self.started = False
        self.errors: list[str] = []
        self.events = events
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vl2v.benchmark.work"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=_environment(number, count),
        )
        listeners = [threading.Thread(target=listen, daemon=True) for listen in (self._hear, self._keep_errors)]
        for thread in (*listeners, threading.Thread(target=self._give, args=(order,), daemon=True)):
            thread.start()
        threading.Thread(target=self._wait, args=(listeners,), daemon=True).start()

    def last_errors(self) -> str:
        """Return the last of what the process printed as errors."""
        return "".join(self.errors[-50:])

    def _give(self, order: dict[str, Any]) -> None:
        """Write the order, which may be more than a pipe holds, to a process that may have died already."""
        assert self.process.stdin is not None
        with suppress(OSError), self.process.stdin as file:
            file.write(json.dumps(order, default=str) + "\n")

    def _hear(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.put((self, json.loads(line)))

    def _keep_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors = [*self.errors[-200:], line]

    def _wait(self, listeners: Sequence[threading.Thread]) -> None:
        for listener in listeners:
            listener.join()
        self.events.put((self, {"event": "ended", "code": self.process.wait()}))


def _environment(number: int, count: int) -> dict[str, str]:
    """Return a worker's environment: its share of the processors, and its GPU where there is one for each."""
    own = {"OMP_NUM_THREADS": str(max(1, processors() // count)), "OMP_WAIT_POLICY": "PASSIVE"}
    gpus = _gpus()
    pinned = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
    return {**own, **os.environ, **pinned}


class Ray(Cluster):
    """Tasks on a Ray cluster, which go on from the last checkpoint when they are done again.

    The benchmark's folder has to be on a disk that all nodes share.
    """

    @property
    def processes(self) -> int:
        """How many jobs it does at once: one a GPU, or as the processors allow."""
        there = self.start().cluster_resources()
        return max(1, int(there.get("GPU", 0) or there.get("CPU", 1) // self.processors))

    def run(self, work: WorkList, jobs: Sequence[Job], budget: float, notify: Notify) -> None:
        """Do the jobs; see `Engine`."""
        ray, task = self.start(), self.task(_ray_task)
        sink = ray.remote(num_cpus=0)(_Events).remote()
        folder, threads, since = str(work.folder.absolute()), str(self.processors), time.time()
        by_ref: dict[Any, Job] = {}
        for job in jobs:
            by_ref[task.remote(folder, job, since, budget, threads, os.getcwd(), sink)] = job
        waiting = list(by_ref)
        while waiting:
            finished, waiting = ray.wait(waiting, num_returns=1, timeout=0.3)
            with suppress(ray.exceptions.RayError):
                for event in ray.get(sink.take.remote()):
                    notify(event)
            for ref in finished:
                job = by_ref[ref]
                try:
                    good = ray.get(ref)
                except ray.exceptions.RayError as error:
                    fail(work, job, f"Ray gave up: {type(error).__name__}", str(error))
                    good = False
                if good is None:  # another command has it, or had it
                    good = work.done(job) or None
                if good is not None:
                    notify({"event": "done" if good else "failed", "job": job.name})


class _Events:
    """An actor that tasks send their events to. With its node the view of them is lost, not the work."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def add(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def take(self) -> list[dict[str, Any]]:
        events, self.events = self.events, []
        return events


def _ray_task(folder: str, job: Job, since: float, budget: float, threads: str, where: str, sink: Any) -> bool | None:
    import ray

    settle_in(threads, where)
    sent: list[Any] = []
    notify = lambda event: sent.append(sink.add.remote(event))  # noqa: E731 (nothing waits: who waits lends its processor)
    good = attempt(WorkList(Path(folder)), job, since=since, budget=budget, notify=seldom(notify))
    with suppress(ray.exceptions.RayError):
        ray.get(sent)
    return good
