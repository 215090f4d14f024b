"""Large images, decoded in processes of their own: memory and processor time are bounded, and clients take turns."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import struct
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import numpy as np
from numpy.typing import NDArray

from vl2v.data.augment import Fit, evaluation_view
from vl2v.data.decoding import ImageError, decode, decoding_bytes
from vl2v.system import processors
from vl2v.web.batches import Busy, Waited

LIGHT = 8 * 2**20  # bytes of memory: what needs more is decoded elsewhere
MOST = 256 * 2**20  # bytes of memory that an image may need while it is decoded
SECONDS = 10.0  # of processor time that an image may take
REQUEST_SECONDS = 30.0  # that all images of a request may take
RECYCLED = 32  # images after which a process is replaced
WAITING = 16  # requests of a client that may wait
PATIENCE = 10.0  # seconds that one may wait for its turn
_SMALL_FILE = 32 * 1024  # bytes: its header is read at once

_REQUEST = struct.Struct("<Qd")  # bytes of the file, seconds
_HEAD = struct.Struct("<?Qd")  # whether it was decoded, bytes of pixels or of the reason, seconds used


class BadImage(Exception):
    """An image of a request can't be decoded."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"images[{index}] can't be decoded: {reason}")


Thing = bytes | NDArray[np.uint8]
"""An image file's bytes, or pixels [s, s, 3] as the network wants them."""


class Turns:
    """A few turns at a time, one after another by client.

    Args:
        at_once: how many.
        waiting: turns that a client may wait for.
    """

    def __init__(self, at_once: int, *, waiting: int = WAITING) -> None:
        self.free = at_once
        self.waiting = waiting
        self._clients: dict[str, deque[asyncio.Future[None]]] = {}  # whose turn is next comes first

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it.

        Raises:
            Busy: too many of this client's requests wait.
            Waited: it took too long.
        """
        if self.free and not self._clients:
            self.free -= 1
        else:
            await self._queued(client)
        try:
            yield
        finally:
            self._pass_on()

    async def _queued(self, client: str) -> None:
        queue = self._clients.setdefault(client, deque())
        if len(queue) >= self.waiting:
            raise Busy("too many large images are waiting")
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            async with asyncio.timeout(PATIENCE):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._pass_on()  # it came in the same moment
            elif turn in queue:
                queue.remove(turn)
                if not queue:
                    self._clients.pop(client, None)
            if isinstance(error, TimeoutError):
                raise Waited(f"waited for {PATIENCE:g} s") from None
            raise

    def _pass_on(self) -> None:
        while self._clients:
            client, queue = next(iter(self._clients.items()))
            del self._clients[client]
            turn = queue.popleft()
            if queue:
                self._clients[client] = queue  # behind the others
            if not turn.done():
                turn.set_result(None)
                return
        self.free += 1


class Decoders:
    """Decodes large images.

    Args:
        size: of the pixels that the network wants.
        fit: how an image becomes a square.
    """

    def __init__(self, size: int, fit: Fit) -> None:
        self.size = size
        self.fit = fit
        self.turns = Turns(max(1, min(4, processors() // 2)))
        self._idle: list[_Process] = []

    async def views(self, things: Sequence[bytes | NDArray[np.uint8]], client: str) -> list[bytes | NDArray[np.uint8]]:
        """Return the images, the large ones among them as pixels [s, s, 3].

        Raises:
            BadImage: one can't be decoded, needs too much memory, or too much processor time.
            Busy, Waited: too much to do.
        """
        views, left = list(things), REQUEST_SECONDS
        for index, thing in enumerate(things):
            if not isinstance(thing, bytes):
                continue
            try:
                if len(thing) <= _SMALL_FILE:
                    light = _is_light(thing)
                else:
                    light = await asyncio.to_thread(_is_light, thing)
                if light:
                    continue
                async with self.turns.turn(client):
                    views[index], used = await self._decoded(thing, min(SECONDS, left))
            except ImageError as error:
                raise BadImage(index, str(error)) from None
            left -= used
            if left <= 0:
                raise BadImage(index, f"the request's images took over {REQUEST_SECONDS:g} s of processor time")
        return views

    async def _decoded(self, image: bytes, seconds: float) -> tuple[NDArray[np.uint8], float]:
        process = self._idle.pop() if self._idle else await _Process.start(self.size, self.fit)
        try:
            found = await process.decode(image, seconds)
        except ImageError:
            self._give_back(process)
            raise
        except BaseException:
            process.kill()
            raise
        self._give_back(process)
        return found

    def _give_back(self, process: _Process) -> None:
        if process.decoded < RECYCLED and process.alive:
            self._idle.append(process)
        else:
            process.kill()

    async def close(self) -> None:
        """End the processes."""
        while self._idle:
            await self._idle.pop().end()


class _Process:
    """A process that decodes one image after another."""

    def __init__(self, process: asyncio.subprocess.Process, size: int) -> None:
        self._process = process
        self._size = size
        self.decoded = 0

    @classmethod
    async def start(cls, size: int, fit: Fit) -> _Process:
        program = "import sys; from vl2v.serving.decoders import run; run(int(sys.argv[1]), sys.argv[2])"
        pipe = asyncio.subprocess.PIPE
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
        command = (sys.executable, "-c", program, str(size), fit)
        return cls(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=environment), size)

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def decode(self, image: bytes, seconds: float) -> tuple[NDArray[np.uint8], float]:
        """Return pixels [s, s, 3], and the seconds of processor time used.

        Raises:
            ImageError: it can't be decoded, or not in that time or memory.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self.decoded += 1
        try:
            self._process.stdin.write(_REQUEST.pack(len(image), seconds))
            self._process.stdin.write(image)
            await self._process.stdin.drain()
            content = await self._process.stdout.readexactly(_HEAD.size)
            good, length, used = _HEAD.unpack(content)
            data = await self._process.stdout.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError, OSError):
            with suppress(TimeoutError):
                async with asyncio.timeout(5):  # it is ending
                    await self._process.wait()
            self.kill()
            if self._process.returncode == -signal.SIGPROF:
                raise ImageError(f"takes over {seconds:.3g} s of processor time to decode") from None
            raise ImageError("decoding it failed: too much memory is needed") from None
        if not good:
            raise ImageError(data.decode())
        return np.frombuffer(data, np.uint8).reshape(self._size, self._size, 3), used

    async def end(self) -> None:
        """End it, and wait until it has ended."""
        self.kill()
        await self._process.wait()

    def kill(self) -> None:
        """End it."""
        with suppress(ProcessLookupError):
            self._process.kill()


def run(size: int, fit: Fit) -> None:
    """Decode what comes on stdin until it ends, to stdout; see `_Process`."""
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends it
    os.nice(10)  # whoever sent something small goes first
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    most = own + MOST + 96 * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    gc.freeze()
    while head := sys.stdin.buffer.read(_REQUEST.size):
        length, seconds = _REQUEST.unpack(head)
        data = sys.stdin.buffer.read(length)
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, seconds)  # nobody handles it: the process ends, whatever it does
        try:
            good, content = True, evaluation_view(decode(data, most_bytes=MOST), size, fit).tobytes()
        except (ImageError, MemoryError) as error:
            good, content = False, (str(error) or "needs too much memory").encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(_HEAD.pack(good, len(content), time.process_time() - start) + content)
        sys.stdout.buffer.flush()


def _is_light(image: bytes) -> bool:
    """Return whether an image is decoded quickly and in little memory; what isn't an image is refused quickly.

    Raises:
        ImageError: it needs too much.
    """
    try:
        return decoding_bytes(image) <= LIGHT
    except ImageError:
        return True
