"""Images of all clients, decoded and put through the network batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from vl2v.data.decoding import ImageError
from vl2v.deploy.runtime import Exported
from vl2v.system import processors
from vl2v.web.batches import Batches

Rows = NDArray[np.float32]


class BadImage(Exception):
    """An image of a request can't be decoded."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"images[{index}] can't be decoded: {reason}")


Thing = bytes | NDArray[np.uint8]
"""An image file's bytes, or pixels [s, s, 3] as the network wants them."""


class Network:
    """A student's network behind a queue.

    A thread a core takes a batch, decodes it and puts it through the network, for which onnxruntime gets one thread: at
    saturation no core waits for another.

    Args:
        student: loaded with one thread.
        most: images in a batch.
        waiting: images that may wait.
        seconds: that a request may wait for its turn.
        observe: called with the size of each batch.
    """

    def __init__(
        self,
        student: Exported,
        *,
        most: int = 32,
        waiting: int = 128,
        seconds: float = 10.0,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.student = student
        self.batches: Batches[Sequence[Thing], Rows] = Batches(
            self._outputs, most=most, waiting=waiting, seconds=seconds, threads=processors(), observe=observe
        )

    async def outputs(self, things: Sequence[Thing], client: str = "") -> Rows:
        """Return what the network gives for each image [n, d]: logits or embeddings.

        Raises:
            BadImage: one can't be decoded.
            Busy, Waited: too much to do.
        """
        return await self.batches.submit(things, len(things), client)

    def _outputs(self, requests: list[Sequence[Thing]]) -> list[Rows | Exception]:
        decoded = [self._pixels(things) for things in requests]
        good = [pixels for pixels in decoded if not isinstance(pixels, Exception)]
        rows = iter(np.split(self._run(np.concatenate(good)), np.cumsum([len(p) for p in good])[:-1]) if good else ())
        return [pixels if isinstance(pixels, Exception) else next(rows) for pixels in decoded]

    def _pixels(self, things: Sequence[Thing]) -> NDArray[np.uint8] | BadImage:
        views = []
        for index, thing in enumerate(things):
            try:
                views.append(self.student.view(thing) if isinstance(thing, bytes) else thing)
            except ImageError as error:
                return BadImage(index, str(error))
        return np.stack(views)

    def _run(self, pixels: NDArray[np.uint8]) -> Rows:
        most = self.batches.most
        return np.concatenate([self.student.run(pixels[i : i + most]) for i in range(0, len(pixels), most)])
