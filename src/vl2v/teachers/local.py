"""What all teachers with weights at hand share: batches, decoding beside the model, precision, fingerprints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vl2v.data.decoding import ImageError, decode
from vl2v.errors import TeacherError
from vl2v.system import best_device, has_bfloat16, reuse_freed_memory
from vl2v.teachers.protocol import EMBEDDING_VERSION, BackboneSpec, EncodedImage, Vectors

if TYPE_CHECKING:
    from PIL import Image

Precision = Literal["auto", "fp32", "bf16"]
ReadTexts = Callable[[Sequence[str]], list[tuple[tuple[int, ...], bool]]]
"""Of each text the tokens that the model reads, and whether more were cut off."""

BATCH = 64
LANES = 4
# Tokenised for the fingerprint: another vocabulary, case, length or padding is another teacher.
PROBE = ("a photo of a dog", "An UMBRELLA, 12 zebras & the naïve café!", "x" * 400)


class LocalTeacher:
    """A vision-language model in this process.

    Args:
        model: the whole model; hashed for the fingerprint.
        preprocess: a decoded image -> the model's input [3, s, s], as the model's own makers do it.
        encode_images: input [n, 3, s, s] -> [n, d], not yet normalised.
        encode_texts: texts -> [n, d], not yet normalised.
        tower: makes a copy of the image encoder, and what rebuilds it.
        size: s, in pixels.
        mean: the model's own, of pixels between 0 and 1.
        std: likewise.
        about: what else could change the embeddings: preprocessing, versions.
        read_texts: how it reads texts; None: it doesn't say.
        precision: "bf16" computes in bfloat16, "auto" where the device is quick in it.
        device: for example "cuda"; by default the best there is.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        *,
        preprocess: Callable[[Image.Image], Tensor],
        encode_images: Callable[[Tensor], Tensor],
        encode_texts: Callable[[Sequence[str]], Tensor],
        tower: Callable[[], tuple[nn.Module, BackboneSpec]],
        logit_scale: float,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        about: dict[str, Any],
        read_texts: ReadTexts | None = None,
        precision: Precision = "auto",
        device: str = "auto",
    ) -> None:
        if precision not in get_args(Precision):
            raise TeacherError(f"{name}: precision {precision!r}: choose one of {', '.join(get_args(Precision))}")
        self.name = name
        self.device = best_device() if device == "auto" else device
        self._kind = torch.device(self.device).type
        if self._kind == "cpu":
            reuse_freed_memory()
        self.bfloat16 = has_bfloat16(self._kind) if precision == "auto" else precision == "bf16"
        facts = {**about, "bfloat16": self.bfloat16, "version": EMBEDDING_VERSION, "weights": digest(model)}
        self.fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]
        self.model = model.eval().requires_grad_(False).to(self.device)
        # Autocast would round all weights anew for each batch: on CPUs that takes longer than the batch (2.3 times
        # slower in all, ViT-B/32). On GPUs it doesn't show, and the exact weights would take up their memory.
        self._exact = _round_weights(self.model) if self.bfloat16 and self._kind == "cpu" else []
        self.logit_scale: float | None = logit_scale
        self._preprocess = preprocess
        self._encode_images = encode_images
        self._encode_texts = encode_texts
        self._tower = tower
        self.read_texts = read_texts
        self._size, self._mean, self._std = size, tuple(mean), tuple(std)
        self.dim = self._encode(encode_texts, ["a photo"]).shape[1]

    def embed_images(self, images: Sequence[EncodedImage]) -> Vectors:
        """Return I(x) [n, d], unit rows; a few batches are decoded and embedded side by side.

        Raises:
            TeacherError: an image that can't be decoded, or an embedding that isn't finite.
        """
        (vectors,) = self.embed_stream([images], len(images))
        return vectors

    def embed_stream(self, chunks: Iterable[Sequence[EncodedImage]], total: int) -> Iterator[Vectors]:
        """Yield I(x) [n, d] of each chunk of n images, in order; the next chunk is being embedded meanwhile.

        What was begun when `chunks` raises, is yielded first.

        Args:
            chunks: in any number.
            total: how many images there are in all of them.

        Raises:
            TeacherError: as `embed_images` does.
        """

        def encoded(images: Sequence[EncodedImage]) -> Tensor:
            return self._encode(self._encode_images, self._inputs(images))

        with _lanes(-(-total // BATCH), self._kind) as lanes:
            before: list[Future[Tensor]] | None = None
            try:
                for images in chunks:
                    batches = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
                    last, before = before, [lanes.submit(encoded, batch) for batch in batches]
                    if last is not None:
                        yield self._checked([batch.result() for batch in last])
            except Exception:
                if before is not None:
                    yield self._checked([batch.result() for batch in before])
                raise
            if before is not None:
                yield self._checked([batch.result() for batch in before])

    def prepare_image(self, image: EncodedImage) -> Tensor:
        """Return the model's input [3, s, s] of an image, for `embed_prepared`; may run beside it in other threads.

        Raises:
            ImageError: it can't be decoded.
        """
        return self._preprocess(decode(image.data))

    def embed_prepared(self, inputs: Sequence[Tensor]) -> Vectors:
        """Return I(x) [n, d], unit rows, of what `prepare_image` returned."""
        chunks = [inputs[start : start + BATCH] for start in range(0, len(inputs), BATCH)]
        return self._checked(
            [self._encode(self._encode_images, torch.stack(list(chunk)).to(self.device)) for chunk in chunks]
        )

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Return the texts' embeddings [n, d], unit rows."""
        chunks = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        return self._checked([self._encode(self._encode_texts, chunk) for chunk in chunks])

    def embed_pixels(
        self, pixels: Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> Tensor:
        """Return I(x) [n, d] of uint8 pixels [n, 3, h, w], squeezed to the model's size.

        Args:
            pixels: 0 to 255.
            mean: instead of the model's own (the authors' code feeds ImageNet's).
            std: likewise.
        """
        x = pixels.to(self.device).float() / 255
        if x.shape[-2:] != (self._size, self._size):
            x = functional.interpolate(x, (self._size, self._size), mode="bicubic", antialias=True).clamp(0, 1)
        shift, scale = (
            torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (mean or self._mean, std or self._std)
        )
        return self._encode(self._encode_images, (x - shift) / scale)

    def image_tower(self) -> tuple[nn.Module, BackboneSpec]:
        """Return a copy of the image encoder, normalised pixels [n, 3, s, s] -> [n, d], and what rebuilds it."""
        with _swapped(self._exact):
            tower, spec = self._tower()
        return tower.requires_grad_(True).train(), spec

    def _inputs(self, images: Sequence[EncodedImage]) -> Tensor:
        return torch.stack([self._input(image) for image in images]).to(self.device)

    def _input(self, image: EncodedImage) -> Tensor:
        try:
            return self.prepare_image(image)
        except ImageError as error:
            raise TeacherError(f"{image.name}: {error}") from None

    def _encode(self, encode: Callable[[Any], Tensor], inputs: Any) -> Tensor:
        with torch.inference_mode(), torch.autocast(self._kind, torch.bfloat16, enabled=self.bfloat16):
            embeddings = encode(inputs)
        return functional.normalize(embeddings.float(), dim=-1).clone()  # a normal tensor, for training

    def _checked(self, parts: list[Tensor]) -> Vectors:
        if not parts:
            return np.zeros((0, self.dim), np.float32)
        vectors: Vectors = torch.cat(parts).cpu().numpy()
        if vectors.shape[1] != self.dim:
            raise TeacherError(
                f"{self.name}: embeds images in {vectors.shape[1]} dimensions, texts in {self.dim}; "
                "take a model whose two halves share one space"
            )
        if not np.isfinite(vectors).all() or (np.abs(vectors).sum(1) == 0).any():
            raise TeacherError(f"{self.name}: gives NaN or zeros; try precision fp32, or other weights")
        return vectors


@contextmanager
def _lanes(batches: int, kind: str) -> Iterator[ThreadPoolExecutor]:
    """Open threads for batches; on a CPU they share out its cores.

    One batch on all cores leaves them waiting for one another at every layer, and for decoders that were put in
    between: 0.70 of the bare forward's speed with the tiny model on 2 cores, against 0.9 and more this way.
    """
    threads = torch.get_num_threads()
    count = max(1, min(LANES, batches, threads if kind == "cpu" else LANES))
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(threads // count or 1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _round_weights(model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """Put to bfloat16 what autocast would compute in it; return the parameters with their exact values."""
    kinds = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
    modules = (module for module in model.modules() if isinstance(module, kinds))
    exact = [(parameter, parameter.data) for module in modules for parameter in module.parameters(recurse=False)]
    for parameter, values in exact:
        parameter.data = values.bfloat16()
    return exact


@contextmanager
def _swapped(exact: list[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """Replace rounded weights by exact ones for a while."""
    rounded = [parameter.data for parameter, _ in exact]
    try:
        for parameter, values in exact:
            parameter.data = values
        yield
    finally:
        for (parameter, _), values in zip(exact, rounded, strict=True):
            parameter.data = values


def digest(model: nn.Module) -> str:
    """Return a hash of all weights: names, types, shapes and values."""
    sha = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        sha.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()
