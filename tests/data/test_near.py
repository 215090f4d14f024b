from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vl2v.data import audit, open_dataset
from vl2v.data.auditing import lookalikes, near_copies, signature_of
from vl2v.data.decoding import decode


def scene(seed: int, size: int = 96) -> Image.Image:
    """A smooth image, as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


@pytest.fixture
def images(tmp_path: Path):
    root = tmp_path / "images"
    for domain in ("a", "b"):
        (root / domain / "x").mkdir(parents=True)
        (root / domain / "y").mkdir(parents=True)
    for seed in range(12):
        scene(seed).save(root / "a" / ("x", "y")[seed % 2] / f"{seed:02}.png")
    scene(3).save(root / "b/x/03.jpg", quality=60)
    scene(4).resize((70, 70)).save(root / "b/x/04.png")
    scene(5).point(lambda v: 20 + v * 0.8).save(root / "b/y/05.png")
    scene(50).save(root / "b/y/50.png")
    return open_dataset(root)


def test_the_same_image_in_another_file_is_found(images) -> None:
    signatures = audit(images).signatures
    found = near_copies(signatures)
    stands = {images.paths[i]: images.paths[j] for i, j in enumerate(found) if i != j}
    assert stands == {
        "b/x/03.jpg": "a/y/03.png",
        "b/x/04.png": "a/x/04.png",
        "b/y/05.png": "a/y/05.png",
    }


def test_looks_come_with_the_audit_and_out_of_its_cache(images, tmp_path: Path, monkeypatch) -> None:
    cache = tmp_path / "cache.sqlite"
    first = audit(images, cache=cache)
    monkeypatch.setattr(
        sys.modules["vl2v.data.auditing"], "decode_with_remark", None
    )  # the second time nothing is decoded
    assert audit(images, cache=cache) == first
    some = np.array([2, 5])
    assert first.subset(some).signatures == (first.signatures[2], first.signatures[5])


@pytest.mark.parametrize(
    ("change", "alike"),
    [
        (lambda image: image.resize((50, 50)), True),
        (lambda image: image.convert("L").convert("RGB"), True),
        (lambda image: image.resize((300, 300)), True),
        (lambda image: Image.merge("RGB", image.split()[::-1]), False),  # the same shapes in other colours
        (lambda image: image.transpose(Image.Transpose.ROTATE_90), False),
    ],
)
def test_near_copies_have_the_same_shapes_and_colours(change, alike: bool) -> None:
    signatures = [signature_of(scene(seed)) for seed in range(5)]
    assert lookalikes([signature_of(change(scene(3)))], signatures).tolist() == [3 if alike else -1]


@pytest.mark.parametrize("cells", [6, 24])
@pytest.mark.parametrize("quality", [10, 30, 90])
def test_images_without_detail_have_near_copies_too(cells: int, quality: int) -> None:
    coarse = np.random.default_rng(7).integers(0, 256, (20, cells, cells, 3), dtype=np.uint8)
    images = [Image.fromarray(one).resize((96, 96), Image.Resampling.BICUBIC) for one in coarse]
    saved = []
    for image in images:
        image.save(buffer := io.BytesIO(), "JPEG", quality=quality)
        saved.append(signature_of(decode(buffer.getvalue())))
    assert lookalikes(saved, [signature_of(image) for image in images]).tolist() == list(range(20))


def test_images_of_one_colour_are_no_near_copies() -> None:
    white = signature_of(Image.new("RGB", (40, 40), "white"))
    assert white == b"" and near_copies([white, white, signature_of(scene(0))]).tolist() == [0, 1, 2]
