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
from multiprocessing.connection import wait
from multiprocessing.reduction import DupFd
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    ["torch", "torchvision", "timm", "lightning_fabric", "open_clip", "vl2v.cli.app", "vl2v.runs.train"]
)

# What stands for `vl2v` in a shell: it hands on its words, folder, environment and streams, and ends as the fork ends.
CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    order = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(order).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(order)
    sys.exit(int(server.recv(3)))
"""


def forked(words: Sequence[str], folder: str, environment: Mapping[str, str], streams: Sequence[int]) -> Any:
    """Start `vl2v WORDS` with the files that are open as `streams` for its input, output and errors; return it.

    Where the first word is the path of a program, start that.
    """
    process = context.Process(target=_become, args=(words, folder, dict(environment), [DupFd(fd) for fd in streams]))
    process.start()
    return process


def _become(words: Sequence[str], folder: str, environment: dict[str, str], streams: Sequence[Any]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream.detach(), number)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # as in a process that was started
    if words[0].endswith(".py"):
        sys.argv = [*words]
        runpy.run_path(words[0], run_name="__main__")
    else:
        sys.argv = ["vl2v", *words]
        from vl2v.cli import main

        main()


def launched(count: int, words: Sequence[str], folder: Path) -> str:
    """Return what the `count` processes of a run print, started with the variables that torchrun gives them.

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
        environment: variables besides those of this process.
    """

    def __init__(self, *words: str | Path, errors: Path, **environment: str) -> None:
        self.errors = errors
        with open(os.devnull, "r+") as nothing, errors.open("w") as said:
            streams = [nothing.fileno(), nothing.fileno(), said.fileno()]
            self.process = forked([*map(str, words)], os.getcwd(), {**os.environ, **environment}, streams)

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
def quick_command() -> Iterator[Path]:
    """Yield a folder for the PATH of a shell, with a program `vl2v` that is forked as long as the block lasts."""
    with TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        address, program = str(Path(folder) / "socket"), Path(folder) / "vl2v"
        program.write_text(CLIENT.format(python=sys.executable, address=address))
        program.chmod(0o755)
        server.bind(address)
        server.listen()
        threading.Thread(target=_accept, args=(server,), daemon=True).start()
        yield Path(folder)
        server.shutdown(socket.SHUT_RDWR)


def _accept(server: socket.socket) -> None:
    with suppress(OSError):  # it was shut down
        while True:
            threading.Thread(target=_run, args=(server.accept()[0],), daemon=True).start()


def _run(client: socket.socket) -> None:
    with client:
        head, streams, *_ = socket.recv_fds(client, 4, 3)
        order = b""
        while len(order) < int.from_bytes(head, "big"):
            order += client.recv(2**20)
        process = forked(*json.loads(order), streams)
        for stream in streams:
            os.close(stream)
        ended = threading.Event()

        def end() -> None:
            """End the process when whoever typed its command has ended."""
            client.recv(1)
            if not ended.is_set():
                os.kill(process.pid, signal.SIGTERM)

        threading.Thread(target=end, daemon=True).start()
        process.join()
        ended.set()
        with suppress(OSError):  # the client was killed
            client.sendall(str(process.exitcode % 256).encode())
            client.shutdown(socket.SHUT_RDWR)
