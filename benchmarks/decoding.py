"""How long a large photo takes until it is an augmented view: decoded whole, and decoded smaller (`data.shrink`).

    python benchmarks/decoding.py
    python benchmarks/decoding.py --file photo.jpg --sizes 128 224

Without a file: a made-up JPEG of 12 megapixels. Processor time of one thread, median of the repeats, in turns; how far
the two views are apart is a mean of absolute differences of their pixels, 0 to 255.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from vl2v.data.augment import domainbed_augment
from vl2v.data.decoding import decode
from vl2v.embeddings.plan import enough_for


def photo() -> bytes:
    """Return a JPEG of 4000 x 3000 pixels with detail of many scales."""
    rng = np.random.default_rng(0)
    whole = np.zeros((3000, 4000, 3), np.float32)
    for side in (8, 40, 200, 1000):
        noise = Image.fromarray(rng.integers(0, 256, (side * 3 // 4, side, 3), np.uint8))
        whole += np.asarray(noise.resize((4000, 3000), Image.Resampling.BICUBIC), np.float32) / 4
    buffer = io.BytesIO()
    Image.fromarray(whole.astype(np.uint8)).filter(ImageFilter.SMOOTH).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 224])
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    data = given.file.read_bytes() if given.file else photo()
    print(f"{decode(data).size[0]} x {decode(data).size[1]} pixels, {len(data) / 1e6:.1f} MB\n")
    print("| px | decoded whole, ms | smaller, ms | ratio | apart |\n| --- | --- | --- | --- | --- |")
    for size in given.sizes:
        taken: dict[int, list[float]] = {0: [], enough_for(size): []}
        views = {}
        for seed in range(given.repeats):
            for enough, seconds in taken.items():
                begun = time.process_time()
                views[enough, seed] = domainbed_augment(decode(data, enough=enough), size, seed).astype(float)
                seconds.append(time.process_time() - begun)
        whole, smaller = (1000 * statistics.median(seconds) for seconds in taken.values())
        apart = np.mean([np.abs(views[0, seed] - views[enough_for(size), seed]) for seed in range(given.repeats)])
        print(f"| {size} | {whole:.0f} | {smaller:.0f} | {whole / smaller:.1f} | {apart:.1f} |")


if __name__ == "__main__":
    main()
