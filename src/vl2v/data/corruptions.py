"""ImageNet-C's corruptions as one more shift: noise, blur, weather and digital, at five severities.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (ICLR 2019).
The severities are those of their public code, for ImageNet-C (224 px) and for its 64 px version; the code is ours.

Left out: frost, which is photos of frost laid on the image, and spatter, whose water is drawn by OpenCV's edge and
distance operators; anything else under these names would be another benchmark.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vl2v.errors import ConfigError
from vl2v.session import derive

Pixels = NDArray[np.floating[Any]]
"""[height, width, 3], 0 to 1."""

SEVERITIES = (1, 2, 3, 4, 5)
SMALL = 120
"""Images whose shorter side has fewer pixels get the 64 px version's severities; 120 is halfway, by ratio."""

_Corruption = Callable[..., Any]
_KINDS: dict[str, tuple[_Corruption, tuple[Any, ...], tuple[Any, ...]]] = {}
"""name -> (the corruption, its parameters of severity 1 to 5 at 224 px, and at 64 px)"""


def corrupt(image: Image.Image, kind: str, severity: int, seed: int) -> Image.Image:
    """Return the image corrupted: a function of the image, the kind, the severity and the seed alone.

    Args:
        image: RGB, of any shape. The severities are for about 224 px (or 64, see SMALL): shrink larger images.

    Raises:
        ConfigError: an unknown kind or severity.
    """
    check(kind, severity)
    rng = np.random.default_rng(derive(seed, "corrupt", kind, severity))
    large = min(image.size) >= SMALL
    change, at_224, at_64 = _KINDS[kind]
    given = (at_224 if large else at_64)[severity - 1]
    given = given if isinstance(given, tuple) else (given,)
    if kind in _OF_IMAGES:
        return cast("Image.Image", change(image, *given))
    changed = change(np.asarray(image, np.float32) / 255, rng, *given)
    return Image.fromarray((np.clip(changed, 0, 1) * 255).astype(np.uint8))


def check(kind: str, severity: int) -> None:
    """Raise a ConfigError where there is no such corruption."""
    if kind in ("frost", "spatter"):
        raise ConfigError(f"corruption {kind!r} is left out: it can't be made faithfully without what it was made with")
    if kind not in CORRUPTIONS:
        raise ConfigError(f"no corruption is called {kind!r}; choose from {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ConfigError(f"severity {severity}: must be a whole number from 1 to 5")


def kinds_named(names: str) -> tuple[str, ...]:
    """Return the corruptions of "all", "benchmark" (ImageNet-C without the extra ones) or names with commas between.

    Raises:
        ConfigError: one that there isn't.
    """
    kinds = {"all": CORRUPTIONS, "benchmark": BENCHMARK}.get(names) or tuple(name.strip() for name in names.split(","))
    for kind in kinds:
        check(kind, SEVERITIES[0])
    return kinds


def _corruption(at_224: tuple[Any, ...], at_64: tuple[Any, ...] = ()) -> Callable[[_Corruption], _Corruption]:
    """Enter a corruption under its function's name, with its parameters of severity 1 to 5; by default one for both."""

    def enter(change: _Corruption) -> _Corruption:
        _KINDS[change.__name__.removeprefix("_")] = change, at_224, at_64 or at_224
        return change

    return enter


@_corruption((0.08, 0.12, 0.18, 0.26, 0.38), (0.04, 0.08, 0.12, 0.15, 0.18))
def _gaussian_noise(x: Pixels, rng: np.random.Generator, deviation: float) -> Pixels:
    return x + deviation * rng.standard_normal(x.shape, np.float32)


@_corruption((60, 25, 12, 5, 3), (250, 100, 50, 30, 15))
def _shot_noise(x: Pixels, rng: np.random.Generator, photons: float) -> Pixels:
    return (rng.poisson(x * photons) / photons).astype(np.float32)


@_corruption((0.03, 0.06, 0.09, 0.17, 0.27), (0.01, 0.02, 0.05, 0.08, 0.14))
def _impulse_noise(x: Pixels, rng: np.random.Generator, share: float) -> Pixels:
    """Salt and pepper, channel by channel."""
    hit, salt = rng.random(x.shape, np.float32) < share, rng.random(x.shape, np.float32) < 0.5
    return np.where(hit, salt.astype(np.float32), x)


@lru_cache(maxsize=64)
def _smoothing(size: int, sigma: float, truncate: float, reflect: bool) -> NDArray[np.float32]:
    """Return [size, size]: the matrix that smooths a row by a Gaussian; beyond its end it is mirrored, or goes on."""
    radius = int(truncate * sigma + 0.5)
    steps = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2) if sigma > 0 else np.ones(1)
    source = np.arange(size)[:, None] + steps
    if reflect:
        source %= 2 * size
        source = np.minimum(source, 2 * size - 1 - source)
    else:
        source = source.clip(0, size - 1)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], source), weights / weights.sum())
    return matrix.astype(np.float32)


def _across(down: NDArray[np.float32], right: NDArray[np.float32], x: Pixels) -> Pixels:
    """Apply one matrix to the columns and one to the rows of [h, w, c]."""
    return np.stack([down @ x[:, :, c] @ right.T for c in range(x.shape[2])], axis=2)


def blurred(x: Pixels, sigma: float, truncate: float = 4, reflect: bool = False) -> Pixels:
    """Return an image under a Gaussian, as SciPy's `gaussian_filter` gives it."""
    height, width = x.shape[:2]
    return _across(_smoothing(height, sigma, truncate, reflect), _smoothing(width, sigma, truncate, reflect), x)


@lru_cache(maxsize=16)
def disk(radius: float, alias: float) -> NDArray[np.float32]:
    """Return a disk's kernel, its rim softened by a small Gaussian; of 10 px it fills its grid and sums to 1.01."""
    reach = max(8, math.ceil(radius))
    steps = np.arange(-reach, reach + 1)
    disk = (steps[:, None] ** 2 + steps**2 <= radius**2).astype(np.float64)
    disk /= disk.sum()
    soft = np.exp(-0.5 * (np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)) ** 2 / alias**2)
    soft /= soft.sum()
    padded = np.pad(disk, len(soft) // 2, "reflect")
    for _ in range(2):
        padded = np.apply_along_axis(np.convolve, 0, padded, soft, "valid").T
    return padded.astype(np.float32)


@_corruption(
    ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)), ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1))
)
def defocus_blur(x: Pixels, _rng: np.random.Generator, radius: float, alias: float) -> Pixels:
    """The disk, by Fourier; the image is mirrored beyond its edge."""
    kernel = disk(radius, alias)
    reach = kernel.shape[0] // 2
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), "reflect" if min(x.shape[:2]) > reach else "edge")
    shape = tuple(side + 2 * reach for side in padded.shape[:2])
    spectrum = np.fft.rfft2(padded, shape, (0, 1)) * np.fft.rfft2(kernel, shape)[..., None]
    full = np.fft.irfft2(spectrum, shape, (0, 1))
    return full[2 * reach :, 2 * reach :][: x.shape[0], : x.shape[1]].astype(np.float32)


@_corruption(
    ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
)
def _glass_blur(x: Pixels, rng: np.random.Generator, sigma: float, reach: int, times: int) -> Pixels:
    """Pixels take their neighbours' colour, in a blurred image that is blurred again.

    ImageNet-C's code means to swap two pixels but copies one over the other; its published images are made so.
    """
    height, width = x.shape[:2]
    soft = np.floor(blurred(x, sigma).clip(0, 1) * 255) / 255
    source = list(range(height * width))
    for _ in range(times):
        moves = rng.integers(-reach, reach, (height, width, 2))
        offsets = (moves[..., 1] * width + moves[..., 0]).tolist()
        for row in range(height - reach, reach, -1):
            line = offsets[row - 1]
            for column in range(width - reach, reach, -1):
                here = row * width + column
                source[here] = source[here + line[column - 1]]
    shuffled = soft.reshape(-1, x.shape[2])[source].reshape(x.shape)
    return blurred(shuffled.astype(np.float32), sigma)


def _moved(x: Pixels, radius: int, sigma: float, angle: float) -> Pixels:
    """Return ImageMagick's motion blur: half a Gaussian along a line; beyond the edge the image goes on."""
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    weights /= weights.sum()
    down = np.ceil(steps * math.sin(math.radians(angle)) - 0.5).astype(int)
    right = np.ceil(steps * math.cos(math.radians(angle)) - 0.5).astype(int)
    reach = 2 * radius + 1
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), "edge")
    height, width = x.shape[:2]
    out = np.zeros_like(x)
    for weight, dy, dx in zip(weights.tolist(), down.tolist(), right.tolist(), strict=True):
        out += weight * padded[reach + dy : reach + dy + height, reach + dx : reach + dx + width]
    return out


@_corruption(((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)), ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)))
def _motion_blur(x: Pixels, rng: np.random.Generator, radius: int, sigma: float) -> Pixels:
    return _moved(x, radius, sigma, rng.uniform(-45, 45))


@lru_cache(maxsize=128)
def _zooming(size: int, factor: float) -> NDArray[np.float32]:
    """Return [size, size]: the matrix that zooms into a row's middle, with straight lines between its points."""
    shown = math.ceil(size / factor)
    whole = round(shown * factor)
    at = np.arange(size) + (whole - size) // 2
    position = at * (shown - 1) / max(whole - 1, 1)
    left = np.minimum(position.astype(int), max(shown - 2, 0))
    share = position - left
    matrix = np.zeros((size, size))
    top = (size - shown) // 2
    matrix[np.arange(size), top + left] += 1 - share
    matrix[np.arange(size), np.minimum(top + left + 1, size - 1)] += share
    return matrix.astype(np.float32)


def zoomed(x: Pixels, factor: float) -> Pixels:
    """Return the middle of an image, enlarged to its size."""
    return _across(_zooming(x.shape[0], factor), _zooming(x.shape[1], factor), x)


@_corruption(
    ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
)
def _zoom_blur(x: Pixels, _rng: np.random.Generator, most: float, step: float) -> Pixels:
    factors = np.arange(1, most, step).tolist()
    return np.asarray(np.mean([x, *(zoomed(x, factor) for factor in factors)], axis=0))


@_corruption(
    (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
    ),
)
def _snow(x: Pixels, rng: np.random.Generator, *given: Any) -> Pixels:
    mean, deviation, zoom, threshold, radius, sigma, share = given  # radius, sigma: of the motion
    flakes = mean + deviation * rng.standard_normal((*x.shape[:2], 1), np.float32)
    flakes = zoomed(flakes, zoom)
    flakes = np.where(flakes < threshold, 0, flakes).clip(0, 1).astype(np.float32)
    flakes = _moved(flakes, radius, sigma, rng.uniform(-135, -45))
    gray = (x @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    paler = share * x + (1 - share) * np.maximum(x, gray * 1.5 + 0.5)
    return np.asarray(paler + flakes + flakes[::-1, ::-1])


def fractal(size: int, decay: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return [size, size], 0 to 1, of plasma: diamond-square on a torus; size is a power of two.

    As in ImageNet-C the wobble is scaled twice, so that it falls by the square of `decay` at each step.
    """
    plane = np.zeros((size, size))
    step, wobble = size, 100.0

    def settle(corners: NDArray[np.float64]) -> NDArray[np.float64]:
        return corners / 4 + wobble * rng.uniform(-wobble, wobble, corners.shape)

    while step >= 2:
        half = step // 2
        corners = plane[::step, ::step]
        pairs = corners + np.roll(corners, -1, 0)
        plane[half::step, half::step] = settle(pairs + np.roll(pairs, -1, 1))
        middles = plane[half::step, half::step]
        plane[::step, half::step] = settle(middles + np.roll(middles, 1, 0) + corners + np.roll(corners, -1, 1))
        plane[half::step, ::step] = settle(middles + np.roll(middles, 1, 1) + corners + np.roll(corners, -1, 0))
        step, wobble = half, wobble / decay
    plane -= plane.min()
    plane /= plane.max()
    return plane.astype(np.float32)


@_corruption(((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)), ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)))
def _fog(x: Pixels, rng: np.random.Generator, weight: float, decay: float) -> Pixels:
    height, width = x.shape[:2]
    size = 2 ** math.ceil(math.log2(max(height, width, 2)))
    most = float(x.max())
    mist = weight * fractal(size, decay, rng)[:height, :width, None]
    return (x + mist) * (most / (most + weight))


@_corruption((0.1, 0.2, 0.3, 0.4, 0.5))  # added to HSV's value
def _brightness(x: Pixels, _rng: np.random.Generator, more: float) -> Pixels:
    """HSV's value raised: the colour scaled; black, which has no colour, becomes gray."""
    value: Pixels = x.max(2, keepdims=True)
    raised = np.minimum(value + more, 1)
    return np.asarray(np.where(value > 0, x * raised / np.maximum(value, 1e-6), raised))


@_corruption((0.4, 0.3, 0.2, 0.1, 0.05))
def _contrast(x: Pixels, _rng: np.random.Generator, factor: float) -> Pixels:
    means: Pixels = x.mean((0, 1), keepdims=True)
    return (x - means) * factor + means


def sampled_at(x: Pixels, right: NDArray[Any], down: NDArray[Any], *, whole: bool) -> Pixels:
    """Return the values at points, linear between pixels, mirrored about the last ones (whole) or their outer edge."""
    height, width = x.shape[:2]
    right, down = _mirrored(right, width, whole), _mirrored(down, height, whole)
    left, top = np.minimum(right.astype(int), max(width - 2, 0)), np.minimum(down.astype(int), max(height - 2, 0))
    across = (right - left).clip(0, 1)[..., None].astype(np.float32)
    along = (down - top).clip(0, 1)[..., None].astype(np.float32)
    beside, below = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    upper = x[top, left] * (1 - across) + x[top, beside] * across
    lower = x[below, left] * (1 - across) + x[below, beside] * across
    return np.asarray(upper * (1 - along) + lower * along)


def _mirrored(position: NDArray[Any], size: int, whole: bool) -> NDArray[np.float64]:
    shift, period = (0.0, max(2 * (size - 1), 1)) if whole else (0.5, 2 * size)
    position = np.mod(position + shift, period)
    return np.asarray((np.minimum(position, period - position) - shift).clip(0, size - 1))


@_corruption(
    tuple(
        (244 * a, 244 * b, 244 * c)
        for a, b, c in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
    ),
    tuple(
        (64 * a, 64 * b, 64 * c)
        for a, b, c in ((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02))
    ),
)  # strength and sigma of the ripples, reach of the affine part; 244 is ImageNet-C's own
def elastic_transform(x: Pixels, rng: np.random.Generator, strength: float, sigma: float, reach: float) -> Pixels:
    """A random affine map of three points about the middle, then smooth ripples."""
    height, width = x.shape[:2]
    middle, side = np.array([width // 2, height // 2]), min(height, width) // 3
    before = middle + side * np.array([[1, 1], [1, -1], [-1, -1]])
    after = before + rng.uniform(-reach, reach, before.shape)
    back = np.linalg.solve(np.c_[after, np.ones(3)], before.astype(np.float64))  # [3, 2]: after -> before
    ripples = rng.uniform(-1, 1, (height, width, 2)).astype(np.float32)
    ripples = strength * blurred(ripples, sigma, truncate=3, reflect=True)
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    points = np.stack([columns, rows, np.ones_like(rows)], axis=2) @ back
    turned = sampled_at(x, points[..., 0], points[..., 1], whole=True)
    return sampled_at(turned, columns + ripples[..., 0], rows + ripples[..., 1], whole=False)


@_corruption((0.6, 0.5, 0.4, 0.3, 0.25), (0.9, 0.8, 0.7, 0.6, 0.5))
def _pixelate(image: Image.Image, factor: float) -> Image.Image:
    width, height = (max(1, int(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)


@_corruption((25, 18, 15, 10, 7), (65, 58, 50, 40, 25))
def _jpeg_compression(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    with Image.open(file, formats=["JPEG"]) as opened:
        return opened.convert("RGB")


@_corruption((0.15, 0.2, 0.35, 0.45, 0.6), (0.15, 0.2, 0.25, 0.3, 0.35))
def _speckle_noise(x: Pixels, rng: np.random.Generator, deviation: float) -> Pixels:
    return x + x * deviation * rng.standard_normal(x.shape, np.float32)


@_corruption((1, 2, 3, 4, 6), (0.5, 0.75, 1, 1.25, 1.5))
def _gaussian_blur(x: Pixels, _rng: np.random.Generator, sigma: float) -> Pixels:
    return blurred(x, sigma)


@_corruption(((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)), ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)))
def _saturate(x: Pixels, _rng: np.random.Generator, factor: float, more: float) -> Pixels:
    """HSV's saturation scaled and raised; gray has the hue 0, which is red."""
    value, least = x.max(2, keepdims=True), x.min(2, keepdims=True)
    saturation = (value - least) / np.maximum(value, 1e-6)
    wanted = np.clip(saturation * factor + more, 0, 1)
    towards = np.where(saturation > 0, (value - x) / np.maximum(saturation, 1e-6), value * np.array([0, 1, 1]))
    return np.asarray(value - towards * wanted)


CORRUPTIONS = tuple(_KINDS)
EXTRA = ("speckle_noise", "gaussian_blur", "saturate")
BENCHMARK = tuple(kind for kind in CORRUPTIONS if kind not in EXTRA)
_OF_IMAGES = ("pixelate", "jpeg_compression")
