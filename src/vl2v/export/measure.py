"""Speed and memory of students, side by side: turn and turn about, each in a process of its own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vl2v.errors import StudentError

if TYPE_CHECKING:
    from torch import Tensor

TURNS = 7
SECONDS = 0.5  # of one turn, at least
SEED = 0  # of the pixels

Call = Callable[[NDArray[np.uint8]], object]


@dataclass(frozen=True)
class Way:
    """One way to compute a student.

    Attributes:
        name: for people.
        path: an export; or a folder that `Classifier.save` wrote, for eager PyTorch.
        image_size: pixels a side.
        precision: of eager PyTorch, "fp32" or "bf16" (autocast).
    """

    name: str
    path: Path
    image_size: int
    precision: str = "fp32"

    @property
    def bytes(self) -> int:
        """How large its files are, or the weights of the folder."""
        if self.path.is_dir():
            return (self.path / "student.safetensors").stat().st_size
        return sum(file.stat().st_size for file in files_of(self.path))

    def open(self, threads: int) -> Call:
        """Return what takes pixels [n, s, s, 3]."""
        return self._eager(threads) if self.path.is_dir() else self._exported(threads)

    def _exported(self, threads: int) -> Call:
        from vl2v.runtime import load

        return load(self.path, threads=threads).run

    def _eager(self, threads: int) -> Call:
        import torch

        from vl2v.students import Classifier

        torch.set_num_threads(threads)
        student = Classifier.load(self.path).student.eval()

        def call(pixels: NDArray[np.uint8]) -> Tensor:
            half = self.precision == "bf16"
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                out: Tensor = student(torch.from_numpy(pixels))
                return out

        return call


def files_of(path: Path) -> list[Path]:
    """Return the files of an export: OpenVINO keeps its weights in one of their own."""
    return [path.with_suffix(".bin"), path] if path.suffix == ".xml" else [path]


@dataclass(frozen=True)
class Speed:
    """Of one way and batch size, over all turns.

    Attributes:
        batch: pictures in a call.
        p50: median seconds of a call.
        p95: seconds that 95% of the calls stay under.
        gain: how many times as quick as the reference; the median of the turns, each against its own turn.
    """

    batch: int
    p50: float
    p95: float
    gain: float

    @property
    def rate(self) -> float:
        """Pictures a second."""
        return self.batch / self.p50


def side_by_side(
    callers: Mapping[str, Callable[[int, float], Sequence[float]]],
    reference: str,
    batch: int,
    *,
    turns: int = TURNS,
    seconds: float = SECONDS,
) -> dict[str, Speed]:
    """Return each way's speed.

    Args:
        callers: name -> what takes a batch size and how long to go on, and gives the seconds of each call.
        reference: the name that gains are counted from.
        batch: pictures in a call.
        turns: how often each of them has its turn.
        seconds: of one turn, at least.
    """
    found: dict[str, list[Sequence[float]]] = {name: [] for name in callers}
    for _ in range(turns):
        for name, caller in callers.items():
            found[name].append(caller(batch, seconds))
    speeds = {}
    for name, rounds in found.items():
        calls = np.concatenate([np.asarray(times) for times in rounds])
        pairs = zip(rounds, found[reference], strict=True)
        gain = statistics.median(statistics.median(base) / statistics.median(own) for own, base in pairs)
        speeds[name] = Speed(batch, float(np.quantile(calls, 0.5)), float(np.quantile(calls, 0.95)), gain)
    return speeds


def timed(call: Call, size: int, batch: int, seconds: float) -> list[float]:
    """Return the seconds of each call, after one that isn't counted."""
    pixels = np.random.default_rng(SEED).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    call(pixels)
    times: list[float] = []
    while sum(times) < seconds:
        start = time.perf_counter()
        call(pixels)
        times.append(time.perf_counter() - start)
    return times


class Worker:
    """A process that computes one way and nothing else, so that its memory is known."""

    def __init__(self, way: Way, pool: ProcessPoolExecutor) -> None:
        self.way, self._pool = way, pool

    def __call__(self, batch: int, seconds: float) -> list[float]:
        """Return the seconds of each call."""
        return self._pool.submit(_timed_here, batch, seconds).result()

    @property
    def peak(self) -> int | None:
        """The most bytes of memory that the process has had, libraries included; None where that can't be told."""
        return self._pool.submit(_peak_here).result()


@contextmanager
def workers(ways: Sequence[Way], threads: int) -> Iterator[dict[str, Worker]]:
    """Open a process for each way.

    Raises:
        StudentError: one of them can't be opened.
    """
    with ExitStack() as stack:
        found = {}
        for way in ways:
            pool = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
            found[way.name] = Worker(way, pool)
            if error := pool.submit(_open_here, way, threads).result():
                raise StudentError(f"{way.name}: {error}")
        yield found


_here: dict[str, tuple[Way, Call]] = {}  # of a worker's own process


def _open_here(way: Way, threads: int) -> str:
    from vl2v.errors import VL2VError

    try:
        _here["way"] = (way, way.open(threads))
    except VL2VError as error:
        return str(error)
    return ""


def _timed_here(batch: int, seconds: float) -> list[float]:
    way, call = _here["way"]
    return timed(call, way.image_size, batch, seconds)


def _peak_here() -> int | None:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), None)
