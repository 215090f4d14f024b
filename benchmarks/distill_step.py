"""Distill steps with real decoding and augmentation against bare forward and backward on a tensor in memory.

    python benchmarks/distill_step.py PACS

The same student, batch and precision; the loader is the run's own, with worker processes. Measured in turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric

from vl2v.config import TrainConfig
from vl2v.data import audit, open_dataset
from vl2v.embeddings.targets import TeacherTargets
from vl2v.embeddings.views import Views
from vl2v.methods import Targets
from vl2v.methods.adip import cosine_loss
from vl2v.students.backbone import pretrained_backbone
from vl2v.students.convolutions import quick_convolutions
from vl2v.students.student import Student, new_projector
from vl2v.training.batches import DomainBalancedSampler, PixelBatches, Renderer
from vl2v.training.device import precision_name
from vl2v.training.learner import Learner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    dataset = open_dataset(given.data)
    dataset = dataset.subset(np.random.default_rng(0).permutation(len(dataset))[:1000])
    dim, classes = 384, len(dataset.classes)
    rng = np.random.default_rng(0)
    unit = lambda rows: rows / np.linalg.norm(rows, axis=-1, keepdims=True)  # noqa: E731
    answers = TeacherTargets(
        dataset.labels,
        unit(rng.normal(size=(len(dataset), 1, dim))).astype(np.float16),
        unit(rng.normal(size=(classes, dim))).astype(np.float32),
    )
    with tempfile.TemporaryDirectory() as folder:
        contents = audit(dataset, cache=Path(folder) / "audit.sqlite").sha256
    groups = [dataset.indices(domain) for domain in dataset.domains]
    sampler = DomainBalancedSampler(groups, 16, 0)
    batches = PixelBatches(sampler, Renderer(dataset, contents, Views(), given.size, 0), answers, given.workers)
    torch.manual_seed(0)
    backbone, spec = pretrained_backbone("tf_efficientnet_lite0", "none", image_size=given.size)
    student = Student(backbone, new_projector(1280, dim, 0), spec).eval().to(memory_format=torch.channels_last)
    quick_convolutions(student.backbone, given.size)
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision_name(TrainConfig()))
    optimizer = torch.optim.AdamW(student.backbone.parameters(), lr=1e-6)
    model, wrapped = fabric.setup(Learner(student), optimizer)
    loss_of = cosine_loss(0.5)

    def step(pixels: torch.Tensor, targets: Targets) -> None:
        output, _ = model(pixels)
        loss = loss_of(output, targets)
        wrapped.zero_grad()
        fabric.backward(loss)
        wrapped.step()

    memory = next(iter(batches.between(0, 1)))
    step(*memory)
    ratios, rates = [], []
    for repeat in range(given.repeats):
        begun = time.perf_counter()
        for _ in range(given.steps):
            step(*memory)
        bare = time.perf_counter() - begun
        loader = batches.between(100 * repeat, 100 * repeat + given.steps + 2)
        step(*next(loader))  # the workers have started
        step(*next(loader))
        begun = time.perf_counter()
        for batch in loader:
            step(*batch)
        real = time.perf_counter() - begun
        ratios.append(bare / real)
        rates.append((given.steps * len(memory[0]) / bare, given.steps * len(memory[0]) / real))
    bare_rate, real_rate = (statistics.median(rate[i] for rate in rates) for i in (0, 1))
    print(f"Lite0, {given.size} px, batch {len(memory[0])}, {given.workers} workers, {precision_name(TrainConfig())}")
    print("| | images/s | ratio (of each repeat) |")
    print("| --- | --- | --- |")
    print(f"| tensor in memory | {bare_rate:.0f} | 1 |")
    spread = ", ".join(f"{ratio:.2f}" for ratio in sorted(ratios))
    print(f"| files, decoded and augmented | {real_rate:.0f} | {statistics.median(ratios):.2f} ({spread}) |")


if __name__ == "__main__":
    main()
