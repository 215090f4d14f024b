"""Align on cached features against the same steps through the backbone.

    python benchmarks/align.py PACS --teacher recorded:pacs-vendor --set prompts.articles=false

Same data, batches, learning rate and seed; the clean images both times (no augmentation), so that both minimise the
same loss. `--check` steps are really taken through the backbone and timed; the losses of both are compared after them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric

from vl2v.embeddings.plan import Views
from vl2v.embeddings.store import EmbeddingStore
from vl2v.methods import Targets, task_of
from vl2v.methods.adip import cosine_loss
from vl2v.runs.datasets import open_sources
from vl2v.runs.features import compute_features
from vl2v.runs.query import open_session
from vl2v.runs.settings import resolve
from vl2v.runs.start import new_backbone
from vl2v.runs.train import new_student
from vl2v.session import Session, silent
from vl2v.students.student import evaluating
from vl2v.teachers import the_teacher
from vl2v.training.batches import DomainBalancedSampler, FeatureBatches, batch_targets, clean_pixels
from vl2v.training.device import precision_name
from vl2v.training.learner import Learner
from vl2v.tree import assignments, merge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--teacher", default="tiny")
    parser.add_argument("--target", default="sketch")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=1000, help="of Align, as a run takes them")
    parser.add_argument("--check", type=int, default=20, help="steps that are really taken through the backbone")
    parser.add_argument("--set", action="append", default=[], dest="pairs")
    given = parser.parse_args()
    tree = {
        "method": "adip",
        "data": {"path": given.data, "target": [given.target]},
        "teacher": {"spec": given.teacher},
        "student": {"image_size": given.size},
    }
    config = resolve(merge(tree, assignments(given.pairs)))
    settings = config.stages["align"]
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision_name(config.train))
    with tempfile.TemporaryDirectory() as folder, EmbeddingStore(Path(folder)) as store:
        sources = open_sources(config, Session(Path(folder)))
        teacher = the_teacher(config.teacher)
        session = open_session(config, store, teacher, None, sources, Views(), silent)
        session.query()
        teacher_targets = session.targets()
    task = task_of(config)
    sampler = DomainBalancedSampler(sources.groups(sources.split.unlabelled), settings.batch_per_domain, 0)
    student = new_student(config, task, len(sources.dataset.classes), new_backbone(config), teacher.dim)
    student.to(memory_format=torch.channels_last)
    start = {key: value.clone() for key, value in student.projector.state_dict().items()}

    def optimiser() -> torch.optim.Optimizer:
        student.projector.load_state_dict(start)
        return torch.optim.Adam(student.projector.parameters(), lr=settings.lr)

    learner = Learner(student)

    def loss_at(features: torch.Tensor, targets: Targets) -> torch.Tensor:
        return cosine_loss(learner(features), targets, config.loss["lambda"])["loss"]

    # Through the backbone: decode, forward, project, step.
    optimizer, spent, losses = optimiser(), 0.0, []
    for number in range(given.check):
        begun = time.perf_counter()
        images, turns = sampler.batch(number)
        pixels = next(clean_pixels(sources.dataset, images, given.size, workers=0, chunk=len(images)))
        with evaluating(student), fabric.autocast():
            features = student.features(pixels)
        loss = loss_at(features, batch_targets(teacher_targets, images, turns * 0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        spent += time.perf_counter() - begun
    a_step = spent / given.check

    # On cached features: computed once, then the same steps.
    begun = time.perf_counter()
    size = given.size
    everything = sources.split.train
    pixels = clean_pixels(sources.dataset, everything, size, workers=config.data.processes)
    table = torch.zeros(len(sources.dataset), 1, 0)
    found = compute_features(student, pixels, fabric)
    table = torch.zeros(len(sources.dataset), 1, found.shape[1])
    table[torch.from_numpy(everything), 0] = found
    once = time.perf_counter() - begun
    batches = FeatureBatches(sampler, table, teacher_targets, np.arange(len(table)), np.zeros(1, np.int64), 0)
    optimizer, cached = optimiser(), []
    begun = time.perf_counter()
    for features, targets in batches.between(0, given.steps):
        loss = loss_at(features, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cached.append(loss.item())
    quick = (time.perf_counter() - begun) / given.steps
    apart = abs(cached[given.check - 1] - losses[-1]) / abs(losses[-1])
    print(f"batch {len(images)}, {given.size} px, {len(everything):,} images")
    print("| | ms a step | ratio |")
    print("| --- | --- | --- |")
    print(f"| through the backbone | {1000 * a_step:.0f} | 1 |")
    print(f"| on cached features | {1000 * quick:.2f} | {a_step / quick:.0f}x |")
    print(
        f"| {given.steps} steps, computing the features ({once:.0f} s) included | "
        f"{1000 * (once / given.steps + quick):.1f} | {a_step / (once / given.steps + quick):.1f}x |"
    )
    print(
        f"loss after {given.check} steps: {losses[-1]:.5f}, {cached[given.check - 1]:.5f} ({100 * apart:.2f}% apart); "
        f"after {given.steps}: {cached[-1]:.4f}"
    )


if __name__ == "__main__":
    main()
