"""Images that vanish, helpers that die: a line and a run that can be resumed, or the same items, only more slowly."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from multiprocessing import current_process
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, get_worker_info

from little import no_file_larger_than
from vl2v.data import open_dataset
from vl2v.errors import RunError, VL2VWarning
from vl2v.training import batches
from vl2v.training.batches import clean_pixels, loaded, read_again, read_image


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vl2v.io.WAITS", (0.01, 0.01))


def gone(file: Path) -> None:
    file.unlink()


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:60])


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("spoil", [gone, cut_off, a_folder])
def test_an_image_that_vanishes_is_one_line(
    workers: int, spoil: Callable[[Path], None], images: Path, tmp_path: Path
) -> None:
    dataset = open_dataset(images)
    spoil(dataset.file(7))
    with pytest.raises(RunError, match=r"can't be read any more .*give the same command again: it resumes") as error:
        list(clean_pixels(dataset, np.arange(12), 16, workers=workers, chunk=4))
    assert "\n" not in str(error.value) and str(dataset.file(7)) in str(error.value)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("spoil", [gone, a_folder])
def test_what_is_made_of_an_image_that_vanishes_is_the_same_line(
    spoil: Callable[[Path], None], images: Path, tmp_path: Path
) -> None:
    """As exports, plans and reports read images."""
    dataset = open_dataset(images)
    assert read_again(dataset, 7, len) == dataset.file(7).stat().st_size
    spoil(dataset.file(7))
    with pytest.raises(RunError, match=r"can't be read any more .*give the same command again"):
        read_again(dataset, 7, len)


@pytest.fixture
def images(shapes: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shapes, tmp_path / "shapes"))


def test_an_image_that_comes_back_is_read(images: Path) -> None:
    dataset = open_dataset(images)
    expected, file = read_image(dataset, 0), dataset.file(0)
    file.rename(file.with_suffix(".away"))
    back = threading.Timer(0.2, file.with_suffix(".away").rename, [file])
    back.start()
    assert read_image(dataset, 0).tobytes() == expected.tobytes()
    back.join()


class Squares(Dataset[torch.Tensor]):
    """Squares of numbers; in a helper one of them ends badly."""

    def __init__(self, end: Callable[[], object]) -> None:
        self.end = end

    def __getitem__(self, number: int) -> torch.Tensor:
        if number == 5 and get_worker_info() is not None:
            self.end()
        return torch.tensor([number**2])


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def memory_that_is_not_there() -> None:
    os.kill(os.getpid(), signal.SIGBUS)


def no_shared_memory() -> None:
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


@pytest.mark.parametrize("end", [killed, memory_that_is_not_there, no_shared_memory])
@pytest.mark.parametrize("workers", [1, 3])
def test_helpers_that_fail_are_done_without(end: Callable[[], object], workers: int) -> None:
    with pytest.warns(VL2VWarning, match=f"^data.workers = {workers}: .*/dev/shm.*data.workers=0") as said:
        found = [int(item) for item in loaded(Squares(end), range(2, 12), workers=workers)]
    assert found == [number**2 for number in range(2, 12)]
    assert len([one for one in said if one.category is VL2VWarning]) == 1


def test_a_small_shared_memory_is_done_without(images: Path) -> None:
    """As in a container with little of /dev/shm: a file of it can't be made large enough."""
    dataset, numbers = open_dataset(images), np.arange(12)
    with no_file_larger_than(10_000), pytest.warns(VL2VWarning, match=r"^data.workers = 1: .*/dev/shm.*data.workers=0"):
        found = torch.cat(list(clean_pixels(dataset, numbers, 64, workers=1, chunk=4)))
    assert torch.equal(found, torch.cat(list(clean_pixels(dataset, numbers, 64, workers=0))))


def test_without_a_temporary_folder_no_helper_is_waited_for(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(images / "none"))
    monkeypatch.delitem(current_process()._config, "tempdir", raising=False)  # type: ignore[attr-defined]
    with pytest.warns(VL2VWarning, match=r"^data.workers = 1: .*data.workers=0"):
        assert len(list(clean_pixels(open_dataset(images), np.arange(12), 64, workers=1, chunk=4))) == 3


def hung_up_on() -> None:
    """Let somebody begin to take a file and leave, as the main process does at a Ctrl-C; the next one takes it."""
    with open(os.devnull, "rb") as nothing:
        abandoned, taken = DupFd(nothing.fileno()), DupFd(nothing.fileno())
    address, _ = abandoned._id
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)
        client.recv(1)  # of the greeting
    os.close(taken.detach())  # one is served after the other


def test_a_helper_that_is_hung_up_on_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert [int(item) for item in loaded(Squares(hung_up_on), range(4, 7), workers=1)] == [16, 25, 36]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("error", [EOFError, ConnectionResetError])
def test_a_connection_that_breaks_off_without_a_word_is_named(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    started, broken = batches._started, iter([error()])

    def breaking_once(loader: Any) -> Iterator[Any]:
        for wordless in broken:
            raise wordless
        return started(loader)

    monkeypatch.setattr(batches, "_started", breaking_once)
    with pytest.warns(VL2VWarning, match=error.__name__):
        assert [int(item) for item in loaded(Squares(killed), range(3), workers=1)] == [0, 1, 4]


def test_a_fault_of_the_items_is_not_taken_for_the_helpers() -> None:
    class Faulty(Dataset[torch.Tensor]):
        def __getitem__(self, number: int) -> torch.Tensor:
            raise RuntimeError("a fault")

    with pytest.warns(VL2VWarning), pytest.raises(RuntimeError, match="a fault"):
        list(loaded(Faulty(), range(3), workers=1))
