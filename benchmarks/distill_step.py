"""A run's steps, with decoding and augmentation, against bare forward and backward on a batch in memory.

    python benchmarks/distill_step.py PACS
    python benchmarks/distill_step.py PACS --student resnet50 --size 224

The run's own steps take the batches of its own loader, with worker processes; bare are the same student's forward pass,
loss and backward pass in the same precision, without optimiser or anything else, on one batch that lies on the device.
In turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from vl2v.config import StageConfig, TrainConfig
from vl2v.data import audit, open_dataset
from vl2v.embeddings.plan import Views
from vl2v.embeddings.session import TeacherTargets
from vl2v.methods import find_method
from vl2v.students.backbone import output_width, pretrained_backbone
from vl2v.students.student import Student, new_projector
from vl2v.system import processors
from vl2v.training.batches import DomainBalancedSampler, PixelBatches, Renderer
from vl2v.training.learner import StageWork, Validation
from vl2v.training.loop import Trainer
from vl2v.training.stage import StageRun

DIM = 384


def rates(
    data: Path, name: str, size: int, *, per_domain: int, workers: int, steps: int, repeats: int, accelerator: str
) -> list[tuple[float, float]]:
    """Return (images/s of bare passes, images/s of steps from files) of each repeat."""
    dataset = open_dataset(data)
    dataset = dataset.subset(np.random.default_rng(0).permutation(len(dataset))[:1000])
    rng = np.random.default_rng(0)
    unit = lambda rows: rows / np.linalg.norm(rows, axis=-1, keepdims=True)  # noqa: E731
    table = TeacherTargets(
        dataset.labels,
        unit(rng.normal(size=(len(dataset), 1, DIM))).astype(np.float16),
        unit(rng.normal(size=(len(dataset.classes), DIM))).astype(np.float32),
    )
    with tempfile.TemporaryDirectory() as folder:
        contents = audit(dataset, cache=Path(folder) / "audit.sqlite").sha256
        trainer = Trainer(Path(folder), TrainConfig(accelerator=accelerator), 0, alone=True)
        device = trainer.fabric.device
        torch.manual_seed(0)
        backbone, spec = pretrained_backbone(name, "none", image_size=size)
        student = Student(backbone, new_projector(output_width(name, size), DIM, 0), spec)
        trainer.prepare(student)
        sampler = DomainBalancedSampler([dataset.indices(domain) for domain in dataset.domains], per_domain, 0)
        renderer = Renderer(dataset, contents, Views(), size, 0)
        files = PixelBatches(sampler, renderer, table, workers, pinned=device.type == "cuda")
        pixels, targets = next(files.between(0, 1))
        pixels, targets = pixels.to(device), targets.to(device)
        task = find_method("adip")()
        stage = next(stage for stage in task.with_chosen({"lambda": 0.5}).stages if stage.trains != "projector")
        settings = StageConfig(steps=1000, lr=1e-6, batch_per_domain=per_domain)
        nothing = Validation(list, torch.zeros(0), None, 1.0)
        run = StageRun(trainer, StageWork(stage, settings, files, nothing), student, 0, None, last=True)
        run.train_mode()

        def bare() -> float:
            begun = loss = None
            for number in range(steps + 2):
                if number == 2:  # the device is warm
                    begun = time.perf_counter()
                run.optimizer.zero_grad()
                loss = stage.training_step(run.model(pixels), targets)["loss"]
                loss.backward()
            assert begun is not None and loss is not None
            loss.item()  # waits for the device
            return steps * len(pixels) / (time.perf_counter() - begun)

        def real(first: int) -> float:
            loader = files.between(first, first + steps + 2)
            for _ in range(2):  # the workers have started
                run.optimise(loader)["loss"].item()
            begun = time.perf_counter()
            for _ in range(steps):
                terms = run.optimise(loader)
            terms["loss"].item()
            return steps * len(pixels) / (time.perf_counter() - begun)

        return [(bare(), real(100 * repeat)) for repeat in range(repeats)]


def report(name: str, found: list[tuple[float, float]]) -> float:
    """Print rows of a table; return the median ratio."""
    ratios = sorted(real / bare for bare, real in found)
    bare, real = (statistics.median(pair[i] for pair in found) for i in (0, 1))
    spread = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"| {name}, bare | {bare:.0f} | 1 |")
    print(f"| {name}, from files | {real:.0f} | {statistics.median(ratios):.2f} ({spread}) |", flush=True)
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--student", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16, help="images of each domain")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=processors())
    parser.add_argument("--accelerator", default="auto")
    given = parser.parse_args()
    found = rates(
        given.data,
        given.student,
        given.size,
        per_domain=given.batch,
        workers=given.workers,
        steps=given.steps,
        repeats=given.repeats,
        accelerator=given.accelerator,
    )
    print("| | images/s | ratio (of each repeat) |")
    print("| --- | --- | --- |")
    report(f"{given.student} at {given.size} px", found)


if __name__ == "__main__":
    main()
