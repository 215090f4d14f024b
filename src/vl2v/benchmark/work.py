"""Doing a benchmark's jobs: one after another, in any number of processes that share the folder."""

from __future__ import annotations

import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from vl2v.benchmark.worklist import ADAPTED, TEACHERS, Job, WorkList
from vl2v.errors import RunError, VL2VError
from vl2v.io import locked, read_json, write_text
from vl2v.runs.folder import follow
from vl2v.runs.settings import resolve
from vl2v.session import Progress, silent
from vl2v.tree import merge

Notify = Callable[[dict[str, Any]], None]
SAVED_EVERY = 5  # seconds
SELDOM = 0.2  # seconds between two events of progress


def do(work: WorkList, job: Job, *, budget: float = 0, progress: Progress = silent) -> bool:
    """Do a job, or go on with it where it was interrupted; return whether there is a result now.

    A failure is saved in the job's folder (`failed.json`, `log.txt`) and is no exception.

    Args:
        work: the list that it is on; `store`, `shared_cache` and the job's run folder are in its folder.
        budget: of a paid teacher, in all.
    """
    from vl2v.runs.evaluate import measure_teacher
    from vl2v.runs.train import distill

    folder, start = work.folder_of(job), time.perf_counter()
    before = _spent(folder)

    def spent() -> float:
        return before + time.perf_counter() - start

    progress = _saving(folder, spent, progress)
    store, shared_cache = work.folder / "store", work.folder / "shelf"
    try:
        follow(folder, resolve(job.settings).data)
        if job.method in TEACHERS:
            adapt = {"teacher": {"adapt": "auto" if job.method == ADAPTED else "off"}}
            measure_teacher(merge(job.settings, adapt), folder, store=store, progress=progress)
        elif not work.trained(job):
            train = partial(distill, store=store, budget=budget, shared_cache=shared_cache, progress=progress)
            train(job.settings, folder, minutes=None)
        if math.isnan(work.seconds(job)):
            write_text(folder / "seconds.json", json.dumps(spent()))
        if kinds := work.unmeasured(job):
            _measure_corrupted(work, job, kinds, progress)
    except Exception as error:
        reason = str(error) if isinstance(error, VL2VError) else f"{type(error).__name__}: {error}"
        fail(work, job, reason, traceback.format_exc())
        write_text(folder / "spent.json", json.dumps(spent()))
        return False
    (folder / "failed.json").unlink(missing_ok=True)
    return True


def _saving(folder: Path, spent: Callable[[], float], progress: Progress) -> Progress:
    """Return `progress` that also saves, now and then, how long a job took so far: its process may be killed."""
    last = [0.0]

    def saving(what: str, done: int, total: int, words: str) -> None:
        progress(what, done, total, words)
        if time.monotonic() - last[0] > SAVED_EVERY and folder.is_dir():
            last[0] = time.monotonic()
            with suppress(RunError):  # no reason to fail: the next one may be saved
                write_text(folder / "spent.json", json.dumps(spent()))

    return saving


def _measure_corrupted(work: WorkList, job: Job, kinds: Sequence[str], progress: Progress) -> None:
    """Measure a trained student on the unseen domain corrupted; the images are written once for all jobs."""
    from vl2v.data.corrupted import corrupt_dataset
    from vl2v.runs.datasets import open_data
    from vl2v.runs.evaluate import STUDENT, evaluate
    from vl2v.runs.folder import Run

    assert work.corruptions is not None
    run, severity = Run(work.folder_of(job)), work.corruptions.severity
    data, images = run.config.data, work.corrupted(job)
    with locked(images.with_name(f"{images.name}.lock")):
        clean = open_data(data)
        levels = [severity]
        corrupt_dataset(clean, images, kinds=kinds, severities=levels, domains=[job.target], progress=progress)
    names = {f"{kind}-{severity}": kind for kind in kinds}
    rows = evaluate(run, images, domains=names, store=work.folder / "store", progress=progress).of(STUDENT)
    work.corruptions.save(work.folder_of(job), {names[row.domain]: row.metrics.accuracy for row in rows})


def fail(work: WorkList, job: Job, reason: str, log: str) -> None:
    """Save why a job failed."""
    folder = work.folder_of(job)
    write_text(folder / "failed.json", json.dumps({"error": reason, "at": time.time()}))
    write_text(folder / "log.txt", log)


@contextmanager
def claimed(work: WorkList, job: Job) -> Iterator[bool]:
    """Claim a job for this process while the block lasts; False: another process has it."""
    from filelock import FileLock, Timeout

    file = _claim(work, job)
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0.2, poll_interval=0.02)  # `status` holds one for a moment, to see whether it is free
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def under_way(work: WorkList, job: Job) -> bool:
    """Return whether a process is at the job just now; nothing is written."""
    if not _claim(work, job).is_file():
        return False
    with claimed(work, job) as free:
        return not free


def _claim(work: WorkList, job: Job) -> Path:
    """Return the file whose lock a process holds while it is at the job."""
    return work.folder / "claims" / f"{job.name}.lock"


def attempt(work: WorkList, job: Job, *, since: float, budget: float, notify: Notify) -> bool | None:
    """Do a job and return whether there is a result now.

    None: it was left alone, since it is done, has failed since then, or is another process's just now.
    """
    if given_up(work, job, since):
        return None
    with claimed(work, job) as mine:
        if not mine or given_up(work, job, since):
            return None
        notify({"event": "started", "job": job.name})

        def progress(what: str, done: int, total: int, words: str) -> None:
            notify({"event": "progress", "job": job.name, "what": what, "done": done, "total": total, "words": words})

        return do(work, job, budget=budget, progress=progress)


def work_through(work: WorkList, jobs: Iterable[Job], *, since: float, budget: float, notify: Notify) -> None:
    """Attempt every job in turn, as it is given here: the list may have been written where paths were others."""
    for job in jobs:
        good = attempt(work, job, since=since, budget=budget, notify=notify)
        if good is not None:
            notify({"event": "done" if good else "failed", "job": job.name})


def seldom(notify: Notify) -> Notify:
    """Return `notify` for a reader far away: progress that follows too soon on something else is left out."""
    last = [0.0]

    def notify_seldom(what: dict[str, Any]) -> None:
        now = time.monotonic()
        if what["event"] == "progress" and now - last[0] < SELDOM and what["done"] < what["total"]:
            return
        last[0] = now
        notify(what)

    return notify_seldom


def main() -> None:
    """Work through a folder's jobs given on standard input; write what happens to standard output, JSON a line."""
    order = json.loads(sys.stdin.readline())
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print, of whatever language, isn't for the one who reads
    sys.stdout = sys.stderr

    def notify(what: dict[str, Any]) -> None:
        try:
            out.write(json.dumps(what) + "\n")
            out.flush()
        except BrokenPipeError:  # the one who reads was killed; the job hasn't failed
            raise SystemExit(1) from None

    work, jobs = WorkList(Path(order["folder"])), map(Job.of_row, order["jobs"])
    work_through(work, jobs, since=order["since"], budget=order["budget"], notify=seldom(notify))


def given_up(work: WorkList, job: Job, since: float) -> bool:
    """Return whether nothing is to be done for a job: it is done, or has failed since then (seconds, the epoch's)."""
    failed = read_json(work.folder_of(job) / "failed.json")
    return (failed is not None and float(failed["at"]) >= since) or work.done(job)


def _spent(folder: Path) -> float:
    return float(read_json(folder / "spent.json", 0.0))


if __name__ == "__main__":
    main()
