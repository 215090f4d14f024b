"""How many wrong labels `vl2v data mistakes` puts at the head of its list, where some of PACS' labels are made wrong.

    python benchmarks/mistakes.py RECORDING

A share of the labels is replaced by another class drawn at random. The list's first images, as many as labels were
replaced, are counted; beside it stands cleanlab's rule (`pip install cleanlab`, if it is there) on the same
probabilities. RECORDING is a folder as for `recorded:` (image_embeddings.npy, images.csv, text_embeddings.npy,
texts.csv) of images at domain/class/image; where it has a column `half`, the images that say client count.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import numpy as np

from vl2v.runs import mistakes

SHARES = (0.01, 0.05, 0.1)
SEEDS = range(3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path)
    folder = parser.parse_args().recording
    images, texts, labels, contents = read(folder)
    print(f"{len(labels)} images, {len(texts)} classes, embeddings of {images.shape[1]} numbers")
    print("| wrong labels | in as many first of the list | listed | of these wrong | cleanlab's rule | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for share in SHARES:
        rows = [measured(images, texts, labels, contents, share, seed) for seed in SEEDS]
        head, listed, precision, theirs, seconds = (np.mean(column) for column in zip(*rows, strict=True))
        cells = [f"{share:.0%}", f"{head:.1%}", f"{listed:.0f}", f"{precision:.1%}", f"{theirs:.1%}", f"{seconds:.1f}"]
        print(f"| {' | '.join(cells)} |")


def read(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[bytes]]:
    """Return unit embeddings [n, d], class embeddings [C, d], labels [n] and contents."""
    with (folder / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (folder / "texts.csv").open(newline="") as file:
        row_of = {row["text"]: number for number, row in enumerate(csv.DictReader(file))}
    chosen = [number for number, row in enumerate(rows) if row.get("half", "client") == "client"]
    images = unit(np.load(folder / "image_embeddings.npy")[chosen].astype(np.float32))
    names = [rows[number]["path"].split("/")[-2] for number in chosen]
    classes = sorted(set(names))
    spelt = [
        next(text for text in (f"a photo of a {name}", f"a photo of an {name}") if text in row_of) for name in classes
    ]
    texts = unit(np.load(folder / "text_embeddings.npy")[[row_of[text] for text in spelt]].astype(np.float32))
    contents = [bytes.fromhex(rows[number]["sha256"]) for number in chosen]
    return images, texts, np.array([classes.index(name) for name in names]), contents


def measured(
    images: np.ndarray, texts: np.ndarray, labels: np.ndarray, contents: list[bytes], share: float, seed: int
) -> tuple[float, float, float, float, float]:
    """Return, for one draw of wrong labels: found at the head, listed, precision of the list, cleanlab's, seconds."""
    rng = np.random.default_rng(seed)
    wrong = rng.choice(len(labels), round(share * len(labels)), replace=False)
    given = labels.copy()
    given[wrong] = (labels[wrong] + rng.integers(1, len(texts), len(wrong))) % len(texts)
    start = time.process_time()
    listed = [one.image for one in mistakes.suspects(images, texts, given, contents)]
    seconds = time.process_time() - start
    head = np.isin(listed[: len(wrong)], wrong).sum() / len(wrong)
    return head, len(listed), np.isin(listed, wrong).mean(), theirs(images, texts, given, contents, wrong), seconds


def theirs(images: np.ndarray, texts: np.ndarray, given: np.ndarray, contents: list[bytes], wrong: np.ndarray) -> float:
    """Return what cleanlab's list of the same length finds on the same probabilities; NaN where it isn't installed."""
    try:
        from cleanlab.filter import find_label_issues
    except ImportError:
        return float("nan")
    found = find_label_issues(
        given, mistakes.probabilities(images, texts, given, contents), return_indices_ranked_by="self_confidence"
    )
    return np.isin(found[: len(wrong)], wrong).sum() / len(wrong)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
