"""How long each corruption takes, against decoding the image.

    python benchmarks/corruptions.py
    python benchmarks/corruptions.py PACS/photo --images 20

Each corruption at each severity in turns with decoding the same JPEG, on one thread; prints the median, over images,
of the five severities' mean CPU time over the decoding's, and images per second of CPU time. Without a folder:
images of coloured patches.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from vl2v.data.corruptions import CORRUPTIONS, EXTRA, SEVERITIES, corrupt
from vl2v.data.decoding import decode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="a folder of images")
    parser.add_argument("--images", type=int, default=10)
    given = parser.parse_args()
    for size in (224, 64):
        files = [jpeg(image, size) for image in images(given.data, given.images)]
        decoded = [decode(file) for file in files]
        print(f"\n{len(decoded)} images of {size}x{size}\n")
        print("| corruption | times decoding | images a second |\n|---|--:|--:|")
        for kind in CORRUPTIONS:
            ratio, speed = measured(kind, files, decoded)
            print(f"| {kind}{' (extra)' if kind in EXTRA else ''} | {ratio:.1f} | {speed:,.0f} |")


def images(folder: Path | None, count: int) -> list[Image.Image]:
    if folder is not None:
        return [decode(file.read_bytes()) for file in sorted(folder.rglob("*.jpg"))[:count]]
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).resize((448, 448), Image.Resampling.BICUBIC)
        for _ in range(count)
    ]


def jpeg(image: Image.Image, size: int) -> bytes:
    file = io.BytesIO()
    image.resize((size, size)).save(file, "JPEG", quality=90)
    return file.getvalue()


def measured(kind: str, files: list[bytes], images: list[Image.Image]) -> tuple[float, float]:
    """Return the median ratio to decoding, and images per second."""
    for severity in SEVERITIES:
        corrupt(images[0], kind, severity, 0)  # fills the caches
    ratios, seconds = [], []
    for number, (file, image) in enumerate(zip(files, images, strict=True)):
        plain = timed(partial(decode, file), times=20)
        work = statistics.mean(timed(partial(corrupt, image, kind, severity, number)) for severity in SEVERITIES)
        ratios.append(work / plain)
        seconds.append(work)
    return statistics.median(ratios), 1 / statistics.median(seconds)


def timed(work: Callable[[], object], times: int = 1) -> float:
    started = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - started) / times


if __name__ == "__main__":
    main()
