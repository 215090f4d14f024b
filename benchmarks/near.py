"""How many images of a dataset are near-copies of another, and how many copies are found that were changed on purpose.

    python benchmarks/near.py PACS

Near-copies of another class or domain are mistakes, of the rule or of the data.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from vl2v.data import audit, open_dataset
from vl2v.data.auditing import lookalikes, near_copies, signature_of
from vl2v.data.decoding import decode

EVERY = 25  # images of which one is changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    dataset = open_dataset(parser.parse_args().data)
    start = time.process_time()
    signatures = audit(dataset).signatures
    read = time.process_time() - start
    start = time.process_time()
    stands = near_copies(signatures)
    compared = time.process_time() - start
    near = np.flatnonzero(stands != np.arange(len(dataset)))
    classes = int((dataset.labels[near] != dataset.labels[stands[near]]).sum())
    domains = int((dataset.domain_ids[near] != dataset.domain_ids[stands[near]]).sum())
    print("| images | near-copies | of another class | of another domain | audit, s | comparison, s |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(f"| {len(dataset)} | {len(near)} | {classes} | {domains} | {read:.1f} | {compared:.1f} |")
    for index in near:
        print(f"{dataset.paths[stands[index]]} and {dataset.paths[index]}")
    chosen = range(0, len(dataset), EVERY)
    images = [decode(dataset.read(index)) for index in chosen]
    among = [signatures[index] for index in chosen]
    print("\n| change | found |\n| --- | --- |")
    for name, change in CHANGES.items():
        found = lookalikes([signature_of(change(image)) for image in images], among)
        print(f"| {name} | {100 * (found == np.arange(len(images))).mean():.1f}% |")


def saved(quality: int) -> Callable[[Image.Image], Image.Image]:
    """Return what saves an image as JPEG and reads it again."""

    def change(image: Image.Image) -> Image.Image:
        image.save(buffer := io.BytesIO(), "JPEG", quality=quality)
        return decode(buffer.getvalue())

    return change


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Return an image without a share of its width and height at each side."""
    x, y = round(image.width * share), round(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    **{f"JPEG, quality {quality}": saved(quality) for quality in (90, 60, 30, 10)},
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "a third of the width, half the height": lambda image: image.resize((image.width // 3, image.height // 2)),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "paler": lambda image: image.point(lambda value: 20 + value * 0.8),
    "cropped by 1% at each side": lambda image: cropped(image, 0.01),
    "cropped by 5% at each side": lambda image: cropped(image, 0.05),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


if __name__ == "__main__":
    main()
