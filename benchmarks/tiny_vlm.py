"""Zero-shot accuracy of the tiny VLM, per domain: nearest class to "a photo of a {class}".

    python benchmarks/tiny_vlm.py                                    IconDG, which comes with vl2v
    python benchmarks/tiny_vlm.py DATA                               any dataset that vl2v reads
    python benchmarks/tiny_vlm.py DATA --list images.csv --half client
                                                                     the images of a list, of one value of `half`

`--teacher` measures any other model the same way.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import numpy as np

from vl2v.config import PromptConfig
from vl2v.data import open_dataset
from vl2v.data.archives import icondg
from vl2v.teachers import open_teacher
from vl2v.teachers.prompts import prompts_for, text_classifier
from vl2v.teachers.protocol import EncodedImage

CHUNK = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="a dataset's folder; IconDG without it")
    parser.add_argument("--teacher", default="tiny")
    parser.add_argument("--list", type=Path, help="CSV with the columns path and half")
    parser.add_argument("--half", help="take the list's images of this half")
    given = parser.parse_args()
    dataset = open_dataset(given.data or icondg())
    if given.list is not None:
        with given.list.open(encoding="utf-8", newline="") as file:
            wanted = {row["path"] for row in csv.DictReader(file) if given.half in (None, row["half"])}
        dataset = dataset.subset(np.array([i for i, path in enumerate(dataset.paths) if path in wanted]))
    teacher = open_teacher(given.teacher)
    began = time.monotonic()
    texts = prompts_for(dataset.classes, PromptConfig())
    classifier = text_classifier([teacher.embed_texts(of_class) for of_class in texts])
    predicted = np.empty(len(dataset), np.int64)
    for start in range(0, len(dataset), CHUNK):
        rows = range(start, min(start + CHUNK, len(dataset)))
        images = [EncodedImage(dataset.paths[i], dataset.read(i)) for i in rows]
        predicted[start : start + CHUNK] = (teacher.embed_images(images) @ classifier.T).argmax(1)
    right = predicted == dataset.labels
    print(f"| domain | images | of {len(dataset.classes)} classes, right |\n|---|---:|---:|")
    for domain in dataset.domains:
        of_domain = right[dataset.indices(domain)]
        if len(of_domain):
            print(f"| {domain} | {len(of_domain)} | {of_domain.mean():.1%} |")
    print(f"| all | {len(right)} | {right.mean():.1%} |\n\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
