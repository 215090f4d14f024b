"""Speed and memory of students, side by side: turn and turn about, each in a process of its own."""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vl2v.deploy.runtime import load, size_of
from vl2v.errors import StudentError, VL2VError
from vl2v.system import peak_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure
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
        """How large all of its files are."""
        return size_of(self.path)

    def open(self, threads: int) -> Call:
        """Return what takes pixels [n, s, s, 3]."""
        return self._eager(threads) if self.path.is_dir() else load(self.path, threads=threads).run

    def _eager(self, threads: int) -> Call:
        import torch

        from vl2v.students.classifier import Classifier

        torch.set_num_threads(threads)
        student = Classifier.load(self.path).student.eval()

        def call(pixels: NDArray[np.uint8]) -> Tensor:
            half = self.precision == "bf16"
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                out: Tensor = student(torch.from_numpy(pixels))
                return out

        return call


@dataclass(frozen=True)
class Speed:
    """Of one way and batch size, over all turns.

    Attributes:
        batch: images in a call.
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
        """Images a second."""
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
        batch: images in a call.
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


def png(figure: Figure) -> bytes:
    """Return a plot as a file's bytes."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130)
    return out.getvalue()


class Worker:
    """A process that computes one way and nothing else, so that its memory is known.

    Raises:
        StudentError: the way can't be opened.
    """

    def __init__(self, way: Way, threads: int) -> None:
        self._name = way.name
        given = json.dumps({**asdict(way), "path": str(way.path), "threads": threads})
        command = [sys.executable, "-m", "vl2v.export.measure", given]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._reply()

    def __call__(self, batch: int, seconds: float) -> list[float]:
        """Return the seconds of each call."""
        times: list[float] = self._call({"batch": batch, "seconds": seconds})
        return times

    @property
    def peak(self) -> int | None:
        """The most bytes of memory that the process has had, libraries included; None where the system doesn't say."""
        peak: int | None = self._call({})
        return peak

    def close(self) -> None:
        """End the process."""
        self._process.communicate()  # it ends with its input

    def _call(self, call_settings: dict[str, float]) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(call_settings) + "\n")
        self._process.stdin.flush()
        return self._reply()

    def _reply(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise StudentError(f"{self._name}: its process ended with code {self._process.wait()}")
        reply = json.loads(line)
        if "error" in reply:
            raise StudentError(f"{self._name}: {reply['error']}")
        return reply["value"]


@contextmanager
def workers(ways: Sequence[Way], threads: int) -> Iterator[dict[str, Worker]]:
    """Open a process for each way.

    Raises:
        StudentError: one of them can't be opened.
    """
    with ExitStack() as stack:
        yield {way.name: stack.enter_context(closing(Worker(way, threads))) for way in ways}


def _work(given: dict[str, Any]) -> None:
    """Serve a worker's calls until there are no more."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply

    def reply(**found: Any) -> None:
        replies.write(json.dumps(found) + "\n")
        replies.flush()

    threads = given.pop("threads")
    way = Way(**{**given, "path": Path(given["path"])})
    try:
        call = way.open(threads)
    except VL2VError as error:
        reply(error=str(error))
        return
    reply(value=None)
    for line in sys.stdin:
        call_settings = json.loads(line)
        reply(value=timed(call, way.image_size, **call_settings) if call_settings else peak_bytes() or None)


if __name__ == "__main__":
    _work(json.loads(sys.argv[1]))
