"""Corruptions: deterministic, worse with severity, and what their parts are said to be."""

from __future__ import annotations

import colorsys
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from vl2v.data import corruptions
from vl2v.data.corruptions import BENCHMARK, CORRUPTIONS, EXTRA, SEVERITIES, corrupt
from vl2v.errors import ConfigError


def scene(width: int, height: int) -> Image.Image:
    """Return shapes, edges and soft colours, as images have them."""
    rows, columns = np.mgrid[:height, :width].astype(float)
    red = 120 + 100 * np.sin(columns / width * 9)
    green = 255 * rows / height
    blue = 200 * ((columns - width / 2) ** 2 + (rows - height / 2) ** 2 < (min(width, height) / 3) ** 2)
    return Image.fromarray(np.stack([red, green, blue], 2).astype(np.uint8))


LARGE, LITTLE = scene(224, 224), scene(64, 64)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(float)


def far(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(pixels(one) - pixels(other)).mean())


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("image", [LARGE, LITTLE, scene(150, 97)], ids=["224", "64", "150x97"])
def test_an_image_keeps_its_shape_and_changes(kind: str, image: Image.Image) -> None:
    before = image.tobytes()
    for severity in SEVERITIES:
        out = corrupt(image, kind, severity, 0)
        assert (out.size, out.mode) == (image.size, "RGB") and out.tobytes() != before
    assert image.tobytes() == before


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_it_is_a_function_of_image_kind_severity_and_seed(kind: str) -> None:
    first = corrupt(LITTLE, kind, 3, 7).tobytes()
    assert corrupt(LITTLE, kind, 3, 7).tobytes() == first
    random = kind not in (
        *("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"),
        *("gaussian_blur", "saturate"),
    )
    assert (corrupt(LITTLE, kind, 3, 8).tobytes() != first) == random


# elastic_transform bends less, but finer, with severity; saturate goes first to gray, then beyond
@pytest.mark.parametrize("kind", sorted(set(CORRUPTIONS) - {"elastic_transform", "saturate", "fog"}))
@pytest.mark.parametrize("image", [LARGE, LITTLE], ids=["224", "64"])
def test_more_severe_is_farther_away(kind: str, image: Image.Image) -> None:
    distances = [far(image, corrupt(image, kind, severity, 0)) for severity in SEVERITIES]
    assert distances[4] > 1.2 * distances[0]
    assert sum(later > 0.9 * sooner for sooner, later in pairwise(distances)) >= 3


def test_what_there_is_and_what_is_left_out() -> None:
    assert len(BENCHMARK) == 14 and len(EXTRA) == 3  # of 15 and 4
    for kind in ("frost", "spatter"):
        with pytest.raises(ConfigError, match="is left out"):
            corrupt(LITTLE, kind, 1, 0)
    with pytest.raises(ConfigError, match="no corruption is called 'rain'; choose from gaussian_noise"):
        corrupt(LITTLE, "rain", 1, 0)
    with pytest.raises(ConfigError, match="severity 6: must be a whole number from 1 to 5"):
        corrupt(LITTLE, "snow", 6, 0)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (9, 40), (40, 9)])
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_tiny_and_narrow_images_are_no_trouble(kind: str, size: tuple[int, int]) -> None:
    for severity in (1, 5):
        assert corrupt(scene(*size), kind, severity, 0).size == size


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("level", [0, 128, 255])
def test_plain_images_are_no_trouble(kind: str, level: int) -> None:
    plain = Image.new("RGB", (64, 64), (level, level, level))
    for severity in (1, 5):
        corrupt(plain, kind, severity, 0)


def test_noise_has_the_strength_that_is_published() -> None:
    gray = Image.new("RGB", (224, 224), (128, 128, 128))
    deviation = (pixels(corrupt(gray, "gaussian_noise", 1, 0)) / 255).std()
    assert abs(deviation - 0.08) < 0.002
    deviation = (pixels(corrupt(gray, "speckle_noise", 2, 0)) / 255).std()
    assert abs(deviation - 0.2 * 128 / 255) < 0.003
    hit = pixels(corrupt(gray, "impulse_noise", 5, 0))
    assert abs(np.isin(hit, (0, 255)).mean() - 0.27) < 0.005 and abs((hit == 255).mean() - 0.135) < 0.005
    photons = pixels(corrupt(gray, "shot_noise", 1, 0)) / 255  # the variance of x is x / photons
    assert abs(photons.var() - 128 / 255 / 60) < 3e-4
    small = gray.resize((64, 64))
    assert abs((pixels(corrupt(small, "gaussian_noise", 5, 0)) / 255).std() - 0.18) < 0.01  # the 64 px version's


def test_light_and_colour_are_those_of_hsv() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    points = [(0, 0), (5, 40), (63, 63), (20, 20)]
    for kind, change in (
        ("brightness", lambda h, s, v: (h, s, min(v + 0.3, 1))),
        ("saturate", lambda h, s, v: (h, min(s * 2, 1), v)),
    ):
        out = corrupt(image, kind, 3, 0)
        for point in points:
            red, green, blue = (level / 255 for level in image.getpixel(point))
            wanted = colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(red, green, blue)))
            assert np.abs(np.array(out.getpixel(point)) - 255 * np.array(wanted)).max() <= 1.01
    black = Image.new("RGB", (64, 64))
    assert corrupt(black, "brightness", 1, 0).getpixel((0, 0)) == (25, 25, 25)
    assert corrupt(Image.new("RGB", (64, 64), (200, 200, 200)), "saturate", 5, 0).getpixel((0, 0)) == (200, 160, 160)


def test_contrast_keeps_each_channels_mean() -> None:
    out = pixels(corrupt(LARGE, "contrast", 3, 0))
    assert np.abs(out.mean((0, 1)) - pixels(LARGE).mean((0, 1))).max() < 1
    assert abs(out.std() / pixels(LARGE).std() - 0.2) < 0.25


@pytest.mark.parametrize("kind", ["defocus_blur", "motion_blur", "gaussian_blur", "zoom_blur"])
def test_blurs_neither_lighten_nor_darken(kind: str) -> None:
    gray = Image.new("RGB", (64, 64), (100, 100, 100))
    for severity in SEVERITIES:
        assert np.abs(pixels(corrupt(gray, kind, severity, 0)) - 100).max() <= 2


def test_smoothing_zoom_and_sampling_are_scipys() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    x = np.random.default_rng(0).random((50, 70, 3)).astype(np.float32)
    for sigma in (0.5, 2.0, 6.0):
        wanted = ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest", truncate=4)
        assert np.abs(corruptions.blurred(x, sigma) - wanted).max() < 1e-5
    wanted = ndimage.gaussian_filter(x, (40, 40, 0), mode="reflect", truncate=3)
    assert np.abs(corruptions.blurred(x, 40, truncate=3, reflect=True) - wanted).max() < 1e-5
    square = x[:, :50]
    for factor in (1.01, 1.23, 3.0):
        shown = int(np.ceil(50 / factor))
        top = (50 - shown) // 2
        large = ndimage.zoom(square[top : top + shown, top : top + shown], (factor, factor, 1), order=1)
        trim = (large.shape[0] - 50) // 2
        wanted = large[trim : trim + 50, trim : trim + 50]
        assert np.abs(corruptions.zoomed(square, factor) - wanted).max() < 1e-5
    right, down = np.random.default_rng(1).uniform(-60, 130, (2, 50, 70))
    for whole, mode in ((False, "reflect"), (True, "mirror")):
        layers = [ndimage.map_coordinates(x[..., c], (down, right), order=1, mode=mode) for c in range(3)]
        assert np.abs(corruptions.sampled_at(x, right, down, whole=whole) - np.stack(layers, 2)).max() < 1e-4


def test_defocus_is_the_disks_convolution() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    x = np.random.default_rng(0).random((60, 47, 3)).astype(np.float32)
    for given in ((3, 0.1), (10, 0.5)):
        kernel = corruptions.disk(*given)
        assert abs(kernel.sum() - 1) < 0.02
        wanted = ndimage.convolve(x, kernel[..., None], mode="mirror")
        assert np.abs(corruptions.defocus_blur(x, np.random.default_rng(0), *given) - wanted).max() < 1e-5


def test_an_affine_map_that_goes_nowhere_changes_nothing() -> None:
    x = np.asarray(LITTLE, np.float32) / 255
    out = corruptions.elastic_transform(x, np.random.default_rng(0), 0, 1, 0)
    assert np.abs(out - x).max() < 1e-5


def test_fog_is_between_nothing_and_all() -> None:
    plane = corruptions.fractal(64, 2, np.random.default_rng(0))
    assert plane.shape == (64, 64) and plane.min() == 0 and plane.max() == 1
    assert 0.02 < plane.std() < 0.5
    assert np.abs(np.diff(plane, axis=0)).mean() < plane.std()  # smooth, not noise
