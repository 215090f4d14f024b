"""Images read and decoded ahead in other processes, from disks that fail for a moment, in containers of any size."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing import ProcessError
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from vl2v.data.dataset import DomainDataset
from vl2v.data.decoding import ImageError, decode
from vl2v.errors import RunError, VL2VError, VL2VWarning
from vl2v.io import retried

BROKEN = (RuntimeError, OSError, EOFError, ProcessError)  # how a connection to a worker that is gone breaks off


def read_image(dataset: DomainDataset, index: int) -> Image.Image:
    """Return a decoded image that could be read before; read again a few times if it can't be now.

    Raises:
        RunError: it still can't be.
    """
    try:
        return retried(lambda: decode(dataset.read(index)), OSError, ImageError)
    except (OSError, ImageError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise RunError(
            f"{dataset.file(index)}: can't be read any more ({why}); put it back, "
            "then give the same command again: it resumes where it stopped"
        ) from None


def loaded(items: Dataset[Any], numbers: Sequence[int], *, workers: int, ahead: int | None = None) -> Iterator[Any]:
    """Yield `items[number]` in order, made by `workers` processes, `ahead` items each.

    Where these can't go on (too little shared memory, killed for want of memory), this process makes the rest.

    Raises:
        VL2VError: as an item does; never as a worker's traceback.
    """
    made, guarded = 0, _Guarded(items)
    while made < len(numbers):
        left = numbers[made:]
        loader = DataLoader(
            guarded,
            batch_size=None,
            sampler=left,
            num_workers=workers,
            prefetch_factor=ahead if workers else None,
            collate_fn=_as_it_is,
        )
        try:
            for item in _started(loader):
                if isinstance(item, VL2VError):
                    raise item
                made += 1
                yield item
        except BROKEN as error:
            if not workers:
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]  # EOFError has no words
            warnings.warn(
                f"data.workers = {workers}: decoding in other processes fails, as it does with a small /dev/shm or too "
                f"little memory ({reason}); decoding continues in this one, more slowly: data.workers=0 avoids this",
                VL2VWarning,
                stacklevel=2,
            )
            workers = 0


def _started(loader: DataLoader[Any]) -> Iterator[Any]:
    """Return a loader's iterator, without PyTorch's handler of SIGCHLD: it would raise anywhere in the main thread."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if main and hasattr(signal, "SIGCHLD") else None
    items = iter(loader)
    if before is not None and signal.getsignal(signal.SIGCHLD) is not before:
        signal.signal(signal.SIGCHLD, before)
    return items


class _Guarded(Dataset[Any]):
    """Items, or the error instead of one: a worker's exception would come with its traceback."""

    def __init__(self, items: Dataset[Any]) -> None:
        self.items = items

    def __getitem__(self, number: int) -> Any:
        try:
            item = self.items[number]
        except VL2VError as error:
            return error
        if get_worker_info() is not None:  # here a lack of shared memory is an error; in the queue's thread it is lost
            for part in item if isinstance(item, tuple) else (item,):
                if isinstance(part, Tensor):
                    part.share_memory_()
        return item


def _as_it_is(item: Any) -> Any:
    return item
