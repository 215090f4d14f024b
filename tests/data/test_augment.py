"""The augmentation against torchvision's, with the same parameters and the same distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as theirs

from vl2v.data import augment
from vl2v.data.augment import PADDING, Fit, domainbed_augment, evaluation_view, fitted


@pytest.fixture
def image() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (12, 15, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((150, 120), Image.Resampling.BICUBIC)


def test_it_is_a_function_of_the_image_and_the_seed(image: Image.Image) -> None:
    one, other = domainbed_augment(image, 64, 7), domainbed_augment(image, 64, 7)
    assert one.shape == (64, 64, 3) and one.dtype == np.uint8 and (one == other).all()
    assert (domainbed_augment(image, 64, 8) != one).any()


@pytest.mark.parametrize("turn", [-0.3, -0.05, 0.0, 0.2, 0.3])
def test_the_hue_turns_as_torchvisions(image: Image.Image, turn: float) -> None:
    ours, reference = augment.turn_hue(image, turn), theirs.adjust_hue(image, turn)
    assert np.abs(np.asarray(ours, int) - np.asarray(reference, int)).max() <= 0


def test_crops_have_torchvisions_distribution() -> None:
    rng = np.random.default_rng(0)
    ours = np.array([augment.random_box(227, 227, rng) for _ in range(4000)])
    image = Image.new("RGB", (227, 227))
    params = [RandomResizedCrop.get_params(image, augment.SCALE, augment.RATIO) for _ in range(4000)]  # type: ignore[arg-type]
    reference = np.array([(left, top, left + w, top + h) for top, left, h, w in params])
    for box in ours:
        assert 0 <= box[0] < box[2] <= 227 and 0 <= box[1] < box[3] <= 227
    area = lambda boxes: (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 227**2  # noqa: E731
    ratio = lambda boxes: np.log((boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1]))  # noqa: E731
    for measure in (area, ratio, lambda boxes: boxes[:, 0], lambda boxes: boxes[:, 1]):
        a, b = measure(ours), measure(reference)
        assert a.mean() == pytest.approx(b.mean(), abs=4 * math.hypot(a.std(), b.std()) / math.sqrt(4000))
        assert a.std() == pytest.approx(b.std(), rel=0.1)


def test_one_in_ten_is_grey_and_half_are_flipped() -> None:
    half = np.zeros((64, 64, 3), np.uint8)
    half[:, :32] = (200, 40, 40)
    views = [domainbed_augment(Image.fromarray(half), 16, seed) for seed in range(600)]
    grey = np.mean([(view[..., 0] == view[..., 1]).all() and (view[..., 1] == view[..., 2]).all() for view in views])
    flipped = np.mean([view[:, :4].astype(int).sum() < view[:, -4:].astype(int).sum() for view in views])
    assert grey == pytest.approx(0.1, abs=0.04) and flipped == pytest.approx(0.5, abs=0.07)


def test_evaluation_squeezes_the_whole_image(image: Image.Image) -> None:
    assert (evaluation_view(image, 32) == np.asarray(theirs.resize(image, [32, 32]))).all()


def test_colours_are_torchvisions_with_the_same_draws(image: Image.Image) -> None:
    for seed in range(20):
        ours, rng = augment.jitter(image, np.random.default_rng(seed)), np.random.default_rng(seed)
        factors, hue, reference = rng.uniform(0.7, 1.3, 3), rng.uniform(-0.3, 0.3), image
        steps = [
            lambda p, f=factors[0]: theirs.adjust_brightness(p, f),
            lambda p, f=factors[1]: theirs.adjust_contrast(p, f),
            lambda p, f=factors[2]: theirs.adjust_saturation(p, f),
            lambda p, f=hue: theirs.adjust_hue(p, f),
        ]
        for which in rng.permutation(4):
            reference = steps[which](reference)
        assert (np.asarray(ours) == np.asarray(reference)).all()


def test_a_crop_is_torchvisions_but_for_the_pixels_at_its_edge(image: Image.Image) -> None:
    """Cropping and resizing in one call lets the filter see one pixel beyond the crop; inside nothing differs."""
    left, top, right, bottom = 11, 7, 131, 113
    ours = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR, box=(left, top, right, bottom)), int)
    reference = np.asarray(theirs.resized_crop(image, top, left, bottom - top, right - left, [64, 64]), int)
    assert (ours[1:-1, 1:-1] == reference[1:-1, 1:-1]).all()
    assert np.abs(ours - reference).mean() < 1


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (900, 3), (2, 2)])
def test_odd_shapes_have_views_too(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "red")
    assert all(domainbed_augment(image, 16, seed).shape == (16, 16, 3) for seed in range(20))
    assert evaluation_view(image, 16).shape == (16, 16, 3)


def test_an_image_too_long_is_cropped_in_its_middle() -> None:
    assert augment.random_box(300, 30, np.random.default_rng(0)) == (130, 0, 170, 30)
    assert augment.random_box(30, 300, np.random.default_rng(0)) == (0, 130, 30, 170)


def striped(width: int, height: int) -> Image.Image:
    """Return an image whose left and upper quarter is red, and whose middle is blue."""
    image = Image.new("RGB", (width, height), "blue")
    box = (0, 0, width // 4, height) if width > height else (0, 0, width, height // 4)
    image.paste("red", box)
    return image


@pytest.mark.parametrize(("width", "height"), [(120, 40), (40, 120), (41, 40), (40, 40), (1, 50)])
def test_every_fit_keeps_what_it_promises(width: int, height: int) -> None:
    image = striped(width, height)
    assert fitted(image, "stretch") is image
    crop, pad = fitted(image, "crop"), fitted(image, "pad")
    assert crop.size == (min(width, height),) * 2 and pad.size == (max(width, height),) * 2
    left, top = (width - crop.width) // 2, (height - crop.height) // 2
    assert (np.asarray(crop) == np.asarray(image)[top : top + crop.height, left : left + crop.width]).all()
    left, top = (pad.width - width) // 2, (pad.height - height) // 2
    inside = np.zeros((pad.height, pad.width), bool)
    inside[top : top + height, left : left + width] = True
    assert (np.asarray(pad)[inside].reshape(height, width, 3) == np.asarray(image)).all()
    assert (np.asarray(pad)[~inside] == PADDING).all()


def test_views_are_of_the_fitted_image() -> None:
    image = striped(120, 40)
    fits: tuple[Fit, ...] = ("stretch", "crop", "pad")
    for fit in fits:
        assert (evaluation_view(image, 24, fit) == evaluation_view(fitted(image, fit), 24)).all()
        assert (domainbed_augment(image, 24, 5, fit) == domainbed_augment(fitted(image, fit), 24, 5)).all()
    red = [(evaluation_view(image, 24, fit)[12, :, 0] > 200).sum() for fit in fits]
    assert red == [6, 0, 6] and (evaluation_view(image, 24, "pad")[2, 2] == PADDING).all()
