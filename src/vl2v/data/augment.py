"""What the student sees: how an image becomes a square, DomainBed's augmentation, the plain view for evaluation."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

Fit = Literal["stretch", "crop", "pad"]
"""How an image becomes a square: squeezed whole, cut to its central square, or laid on a square of one colour."""

PADDING = (124, 116, 104)  # ImageNet's mean colour: about zero once it is normalised
SCALE = (0.7, 1.0)
RATIO = (3 / 4, 4 / 3)
JITTER = 0.3
GRAY = 0.1

_LEVELS = np.arange(256)


def fitted(image: Image.Image, fit: Fit) -> Image.Image:
    """Return what of an image is resized to a square: a square already, or for "stretch" the image as it is.

    The only function that decides this, in training, evaluation, prediction and every export.

    Args:
        image: RGB.
        fit: "stretch" keeps everything but the ratio of the sides, as DomainBed does; "crop" keeps the ratio and the
            central square; "pad" keeps both, in the middle of a square of the longer side in ImageNet's mean colour.

    Examples:
        >>> from PIL import Image
        >>> wide = Image.new("RGB", (300, 100))
        >>> [fitted(wide, fit).size for fit in ("stretch", "crop", "pad")]
        [(300, 100), (100, 100), (300, 300)]
    """
    width, height = image.size
    if fit == "stretch" or width == height:
        return image
    if fit == "crop":
        side = min(image.size)
        left, top = (width - side) // 2, (height - side) // 2
        return image.crop((left, top, left + side, top + side))
    side = max(image.size)
    square = Image.new("RGB", (side, side), PADDING)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def evaluation_view(image: Image.Image, size: int, fit: Fit = "stretch") -> NDArray[np.uint8]:
    """Return pixels [size, size, 3] of an image made square (see `fitted`), without augmentation."""
    return np.array(fitted(image, fit).resize((size, size), Image.Resampling.BILINEAR))


def domainbed_augment(image: Image.Image, size: int, seed: int, fit: Fit = "stretch") -> NDArray[np.uint8]:
    """Return pixels [size, size, 3] of one augmentation: a function of the image and the seed alone.

    RandomResizedCrop(size, scale 0.7 to 1), flip, ColorJitter(0.3, 0.3, 0.3, 0.3), RandomGrayscale(0.1), with
    torchvision's distributions, of the image as `fitted` leaves it.
    """
    image = fitted(image, fit)
    rng = np.random.default_rng(seed)
    view = image.resize((size, size), Image.Resampling.BILINEAR, box=random_box(image.width, image.height, rng))
    if rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    view = jitter(view, rng)
    if rng.random() < GRAY:
        view = view.convert("L").convert("RGB")
    return np.array(view)


def random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Return torchvision's RandomResizedCrop box: ten tries, else the largest central one of a fitting ratio."""
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for _ in range(10):
        area = width * height * rng.uniform(*SCALE)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def jitter(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return torchvision's ColorJitter: brightness, contrast, saturation and hue in a random order."""
    brightness, contrast, saturation = rng.uniform(1 - JITTER, 1 + JITTER, 3)
    hue = rng.uniform(-JITTER, JITTER)
    for which in rng.permutation(4):
        if which == 0:
            image = _blend(image, 0, brightness)
        elif which == 1:
            image = _blend(image, _mean_gray(image), contrast)
        elif which == 2:
            image = Image.blend(image.convert("L").convert("RGB"), image, saturation)
        else:
            image = turn_hue(image, hue)
    return image


def _blend(image: Image.Image, gray: int, factor: float) -> Image.Image:
    """Return what PIL.ImageEnhance does: a plain gray at factor 0, the image at 1, more of it beyond."""
    return Image.blend(Image.new("RGB", image.size, (gray, gray, gray)), image, factor)


def _mean_gray(image: Image.Image) -> int:
    counts = image.convert("L").histogram()
    return int(np.dot(counts, _LEVELS) / (image.width * image.height) + 0.5)


def turn_hue(image: Image.Image, turn: float) -> Image.Image:
    """Return the image with its hue turned by a share of the full circle."""
    shift = Image.new("HSV", image.size, (int(turn * 255) % 256, 0, 0))
    return ImageChops.add_modulo(image.convert("HSV"), shift).convert("RGB")
