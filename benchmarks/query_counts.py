"""How many queries a whole benchmark takes: four targets, both stages, three seeds.

    python benchmarks/query_counts.py PACS recorded:pacs-vendor --no-articles

Walks through every run of the grid as a run does it: plan, fetch, read the targets of the run's training images,
once for Align and once for Distill, all on one store. Counts what reaches the teacher.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vl2v.config import PromptConfig
from vl2v.data.auditing import audit, set_aside
from vl2v.data.dataset import leave_out
from vl2v.data.layouts import open_dataset
from vl2v.embeddings.fetch import fetch
from vl2v.embeddings.plan import Views, plan
from vl2v.embeddings.schema import text_key
from vl2v.embeddings.session import targets
from vl2v.embeddings.store import EmbeddingStore
from vl2v.teachers import open_teacher
from vl2v.teachers.prompts import prompts_for
from vl2v.teachers.protocol import EncodedImage, Teacher


class Counted:
    """A teacher with a meter at the door."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self.name, self.fingerprint = teacher.name, teacher.fingerprint
        self.dim, self.logit_scale = teacher.dim, teacher.logit_scale
        self.images = self.texts = 0

    def embed_images(self, images: Sequence[EncodedImage]) -> NDArray[np.float32]:
        self.images += len(images)
        return self.teacher.embed_images(images)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.texts += len(texts)
        return self.teacher.embed_texts(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("teacher")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--no-articles", action="store_true", help="'a elephant', as some recordings have it")
    given = parser.parse_args()

    teacher = Counted(open_teacher(given.teacher))
    dataset = open_dataset(given.data)
    dataset = set_aside(dataset, audit(dataset))
    found = audit(dataset)
    prompts = PromptConfig(articles=not given.no_articles)
    texts = [text for of_class in prompts_for(dataset.classes, prompts) for text in of_class]
    views = Views()
    runs = first_images = first_texts = 0
    with tempfile.TemporaryDirectory() as folder, EmbeddingStore(Path(folder)) as store:
        for target in dataset.domains:
            for seed in range(given.seeds):
                split = leave_out(dataset, [target], trial_seed=seed)
                for _stage in ("align", "distill"):
                    fetch(plan(store, teacher, dataset, found, texts, views), store, teacher)
                    targets(store, teacher.fingerprint, found, views, split.train)
                    store.get(teacher.fingerprint, [text_key(text) for text in texts])
                    runs += 1
                    if runs == 1:
                        first_images, first_texts = teacher.images, teacher.texts
        distinct = plan(store, teacher, dataset, found, texts, views).distinct
    print(f"{dataset.root.name}: {len(dataset):,} images, {distinct:,} distinct contents, {len(texts)} prompts")
    print(f"| {len(dataset.domains)} targets x {given.seeds} seeds x 2 stages = {runs} passes | images | prompts |")
    print("| --- | --- | --- |")
    print(f"| in the first pass | {first_images:,} | {first_texts:,} |")
    print(f"| again in all later passes | {teacher.images - first_images:,} | {teacher.texts - first_texts:,} |")


if __name__ == "__main__":
    main()
