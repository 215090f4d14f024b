"""How much of a teacher's bare speed is left when it embeds image files.

    python benchmarks/embed_images.py PACS
    python benchmarks/embed_images.py PACS open_clip:local-dir:PATH --images 512

Two paths, in turns, in one process. `vl2v.embeddings.fetch` of image files into a temporary store: read, hashed,
decoded, preprocessed as its makers do it, embedded, written durably. And the same model's forward on tensors
that are in memory already: same precision, same batches. Prints the images per second of each repeat and the median
of the ratios; the bar is 0.95. On a busy machine the images per second of this process's own CPU time say more:
their ratio is printed too, and on a CPU what it could be at most: decoding and preprocessing, alone, cost time of the
cores that the bare model has to itself. Without a teacher: a ViT-B-32 with random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file

from vl2v.data.auditing import audit, set_aside
from vl2v.data.layouts import open_dataset
from vl2v.embeddings.fetch import fetch
from vl2v.embeddings.plan import Views, plan
from vl2v.embeddings.store import EmbeddingStore
from vl2v.teachers import open_teacher
from vl2v.teachers.local import BATCH, LocalTeacher
from vl2v.teachers.protocol import EncodedImage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("teacher", nargs="?")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    given = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        spec = given.teacher or f"open_clip:local-dir:{random_vit(Path(folder) / 'model')}"
        started = time.perf_counter()
        teacher = open_teacher(spec, precision=given.precision)
        print(f"{spec}: opened in {time.perf_counter() - started:.1f} s, bfloat16 {teacher.bfloat16}")
        compare(teacher, given.data, Path(folder), given.images, given.repeats)


def random_vit(folder: Path, name: str = "ViT-B-32") -> Path:
    folder.mkdir()
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.manual_seed(0)
    save_file(open_clip.create_model(name).state_dict(), folder / "open_clip_model.safetensors")
    return folder


def compare(teacher: LocalTeacher, data: Path, folder: Path, images: int, repeats: int) -> float:
    """Print the images/s of each repeat; return the median of the ratios."""
    dataset = open_dataset(data)
    chosen = np.random.default_rng(0).permutation(len(dataset))[:images]
    dataset = dataset.subset(np.sort(chosen))
    dataset = set_aside(dataset, audit(dataset))
    found = audit(dataset)
    encoded = [EncodedImage(name, dataset.read(i)) for i, name in enumerate(dataset.paths)]
    started = time.process_time()
    batches = [teacher._inputs(encoded[start : start + BATCH]) for start in range(0, len(encoded), BATCH)]
    decoding = (time.process_time() - started) / len(encoded)
    print(f"{len(encoded)} images, {torch.get_num_threads()} threads of torch, {os.cpu_count()} CPUs")

    def files(repeat: int) -> Speed:
        with EmbeddingStore(folder / f"store{repeat}") as store:
            store.register(teacher)
            queries = plan(store, teacher, dataset, found, [], Views())
            return timed(lambda: fetch(queries, store, teacher), len(queries.pending))

    def bare() -> Speed:
        def forward() -> None:
            for batch in batches:
                teacher._encode(teacher._encode_images, batch)

        return timed(forward, len(encoded))

    bare()
    ratios, most = [], []
    for repeat in range(repeats):
        before, real, after = bare(), files(repeat), bare()
        ratios.append([2 * real[i] / (before[i] + after[i]) for i in range(2)])
        most.append(1 / (1 + decoding * (before[1] + after[1]) / 2))
        print(
            f"files {real[0]:7.1f}/s   bare {before[0]:7.1f}/s, {after[0]:7.1f}/s   ratio {ratios[-1][0]:.3f}"
            f"   of CPU time {ratios[-1][1]:.3f}"
        )
    wall, cpu = zip(*ratios, strict=True)
    print(f"median ratio {statistics.median(wall):.3f} (bar 0.95), {min(wall):.3f} to {max(wall):.3f}")
    print(f"of CPU time  {statistics.median(cpu):.3f}; at most {statistics.median(most):.3f}, ", end="")
    print(f"with {1000 * decoding:.1f} ms an image to decode and preprocess")
    return statistics.median(wall)


Speed = tuple[float, float]  # images per second, and per second of CPU time


def timed(work: Callable[[], None], images: int) -> Speed:
    started, cpu = time.perf_counter(), time.process_time()
    work()
    return images / (time.perf_counter() - started), images / (time.process_time() - cpu)


if __name__ == "__main__":
    main()
