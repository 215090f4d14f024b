"""Commands in processes of their own, without the seconds in which each start imports torch and what belongs to it.

A process that has imported it all forks for each command. What it forks has its own id, folder, environment and
streams, and can be killed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import dropwhile
from multiprocessing.connection import wait
from multiprocessing.process import _children  # type: ignore[attr-defined]
from multiprocessing.reduction import DupFd
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    [
        "torch",
        "torch._dynamo",
        "torchvision",
        "timm",
        "lightning_fabric",
        "open_clip",
        "vl2v.cli.app",
        "vl2v.runs.train",
    ]
)

# What stands for `vl2v` in a shell, or for Python: it hands on its words, folder, environment, streams and signals. It
# ends as the fork ends, and where it is killed the fork is killed, too.
CLIENT = """#!{python} -IS
import json, os, select, signal, socket, sys
caught, wake = socket.socketpair()
wake.setblocking(False)
signal.set_wakeup_fd(wake.fileno())
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: None)  # the number is in `caught`
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    order = json.dumps([[*{words!r}, *sys.argv[1:]], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(order).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(order)
    while server not in select.select([caught, server], [], [])[0]:
        try:
            server.sendall(caught.recv(1))
        except BrokenPipeError:
            pass  # it has just ended
    code = int(server.recv(4))
    if -code in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(-code, signal.SIG_DFL)
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)
"""
_starting = threading.Lock()
PROGRAMS = {"vl2v": ["-m", "vl2v"], "quick-python": []}


def forked(
    words: Sequence[str],
    folder: str,
    environment: Mapping[str, str],
    streams: Sequence[int],
    python: str = sys.executable,
) -> Any:
    """Start `python WORDS` with the files that are open as `streams` for its input, output and errors; return it."""
    given = (words, folder, dict(environment), [DupFd(fd) for fd in streams], python)
    process = context.Process(target=_become, args=given)
    with _starting:
        process.start()
        _children.discard(process)  # else any start in another thread could read its exit code, which comes only once
    return process


def _become(
    words: Sequence[str], folder: str, environment: dict[str, str], streams: Sequence[Any], python: str
) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream.detach(), number)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.executable = python
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # as in a process that was started
    first, *others = dropwhile(lambda word: word.startswith(("-u", "-X")), words)
    if first == "-c":
        code, *others = others
        sys.argv = ["-c", *others]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    elif [first, *others[:1]] == ["-m", "vl2v"]:
        sys.argv = ["vl2v", *others[1:]]
        from vl2v.cli import main

        main()
    elif first == "-m":
        sys.argv = ["-m", *others[1:]]
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *others]
        sys.path.insert(0, str(Path(first).parent))
        runpy.run_path(first, run_name="__main__")


def launched(count: int, words: Sequence[str], folder: Path) -> str:
    """Return what the `count` processes of `python WORDS` print, started with the variables that torchrun gives them.

    As with it, they meet in a store of this process, and if one of them fails the others are ended.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "tests",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    with open(os.devnull) as nothing, (folder / "printed.txt").open("w") as printed:
        streams, own = [nothing.fileno(), printed.fileno(), printed.fileno()], {**os.environ, **shared}
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        processes = [forked(words, os.getcwd(), own | rank, streams) for rank in ranks]
    while any(process.exitcode is None for process in processes):
        wait([process.sentinel for process in processes if process.exitcode is None])
        if any(process.exitcode for process in processes):
            for process in processes:
                process.kill()
    text = (folder / "printed.txt").read_text()
    assert [process.exitcode for process in processes] == [0] * count, text
    return text


class Forked:
    """`vl2v WORDS` in a process of its own; what it prints is dropped, what it says of errors is in a file.

    Args:
        words: of the command.
        errors: the file.
        program: what runs instead of `vl2v`, as code.
        environment: variables besides those of this process.
    """

    def __init__(self, *words: str | Path, errors: Path, program: str = "", **environment: str) -> None:
        self.errors = errors
        with open(os.devnull, "r+") as nothing, errors.open("w") as said:
            streams = [nothing.fileno(), nothing.fileno(), said.fileno()]
            command = [*(("-c", program) if program else ("-m", "vl2v")), *map(str, words)]
            self.process = forked(command, os.getcwd(), {**os.environ, **environment}, streams)

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def wait(self, seconds: float) -> int:
        """Return its exit code, and fail where it doesn't end."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"it doesn't end; so far: {self.errors.read_text()}"
        return int(self.process.exitcode)


@contextmanager
def quick_programs() -> Iterator[Path]:
    """Yield a folder for the PATH of a shell: its `vl2v` and `quick-python` are forked as long as the block lasts."""
    with TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        address = str(Path(folder) / "socket")
        for name, words in PROGRAMS.items():
            (Path(folder) / name).write_text(CLIENT.format(python=sys.executable, address=address, words=words))
            (Path(folder) / name).chmod(0o755)
        server.bind(address)
        server.listen()
        threading.Thread(target=_accept, args=(server, f"{folder}/quick-python"), daemon=True).start()
        yield Path(folder)
        server.shutdown(socket.SHUT_RDWR)


def _accept(server: socket.socket, python: str) -> None:
    with suppress(OSError):  # it was shut down
        while True:
            threading.Thread(target=_run, args=(server.accept()[0], python), daemon=True).start()


def _run(client: socket.socket, python: str) -> None:
    with client:
        head, streams, *_ = socket.recv_fds(client, 4, 3)
        length, order = int.from_bytes(head, "big"), b""
        while part := client.recv(length - len(order)):  # what follows are signals
            order += part
        process = forked(*json.loads(order), streams, python) if len(order) == length > 0 else None
        for stream in streams:
            os.close(stream)
        if process is None:
            return  # the client was killed
        ended = threading.Event()

        def hand_on() -> None:
            """Hand on signals; kill the process when what stands for it has been killed."""
            while not ended.is_set():
                try:
                    number = client.recv(1)
                except OSError:
                    number = b""
                if not ended.is_set():
                    with suppress(ProcessLookupError):
                        os.kill(process.pid, number[0] if number else signal.SIGKILL)
                if not number:
                    return

        threading.Thread(target=hand_on, daemon=True).start()
        process.join()
        ended.set()
        with suppress(OSError):  # the client was killed
            client.sendall(str(process.exitcode).encode())
            client.shutdown(socket.SHUT_RDWR)
