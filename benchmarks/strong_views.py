"""A trial: strong views of the source images, the teacher queried about the very view.

    python benchmarks/strong_views.py DATA --teacher tiny --targets pixel,outline --out FOLDER

One strong view of each source image is written as an image file without a label: RandAugment, a random convolution
(Xu et al., ICLR 2021), the amplitude spectrum of another image (Xu et al., CVPR 2021), edges or inversion, drawn
evenly. `adip-plus` learns from the source images with and without them, same seed and steps; accuracy % on all images
of the unseen domain. Finished runs in FOLDER are not trained again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from trial import compare

import vl2v
from vl2v.data.dataset import DomainDataset

SIDE = 96


def randaugment(image: Tensor, other: Tensor, generator: np.random.Generator) -> Tensor:
    return v2.RandAugment(2, 14)((255 * image).to(torch.uint8)) / 255


def convolved(image: Tensor, other: Tensor, generator: np.random.Generator) -> Tensor:
    side = int(generator.choice([1, 3, 5, 7]))
    kernel = torch.from_numpy(generator.normal(scale=(3 * side**2) ** -0.5, size=(3, 3, side, side))).float()
    made = torch.nn.functional.conv2d(image[None] - 0.5, kernel, padding=side // 2)[0]
    return 0.5 + made / made.std().clamp(min=1e-3) * image.std()


def with_amplitude(image: Tensor, other: Tensor, generator: np.random.Generator) -> Tensor:
    mine, theirs = torch.fft.fft2(image), torch.fft.fft2(other)
    share = generator.uniform(0.5, 1)
    amplitude = (1 - share) * mine.abs() + share * theirs.abs()
    return torch.fft.ifft2(torch.polar(amplitude, mine.angle())).real


def edges(image: Tensor, other: Tensor, generator: np.random.Generator) -> Tensor:
    grey = image.mean(0)
    x, y = torch.gradient(grey)
    found = (x.square() + y.square()).sqrt()
    return (1 - found / found.max().clamp(min=1e-3)).expand(3, -1, -1)


def inverted(image: Tensor, other: Tensor, generator: np.random.Generator) -> Tensor:
    return 1 - image


KINDS = (randaugment, convolved, with_amplitude, edges, inverted)


def pixels(dataset: DomainDataset, index: int) -> Tensor:
    """Return an image as floats [3, s, s] in [0, 1], on white where it is transparent."""
    with Image.open(dataset.root / dataset.paths[index]) as opened:
        image = opened.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB").resize((SIDE, SIDE))
    return torch.from_numpy(np.array(flat)).permute(2, 0, 1) / 255


def write_views(dataset: DomainDataset, target: str, folder: Path, seed: int) -> None:
    """Write a strong view of each image that isn't the target's."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    sources = np.setdiff1d(np.arange(len(dataset.paths)), dataset.indices(target))
    for index in sources:
        other, kind = generator.choice(sources), KINDS[generator.integers(len(KINDS))]
        view = kind(pixels(dataset, index), pixels(dataset, other), generator).clamp(0, 1)
        file = folder / f"{index}-{kind.__name__}.png"
        if not file.exists():
            Image.fromarray((255 * view).round().byte().permute(1, 2, 0).numpy()).save(file)


def with_views(given: argparse.Namespace, target: str) -> dict[str, Any]:
    """Write a target's views; return the setting that learns from them."""
    folder = given.out / f"{target}-views"
    write_views(vl2v.open_dataset(given.data), target, folder, given.seed)
    return {"unlabelled": folder}


if __name__ == "__main__":
    compare(__doc__, {"with strong views": with_views})
