"""`--quick` against training the whole backbone: images a second of processor time, and accuracy at equal time.

    python benchmarks/quick.py speed
    python benchmarks/quick.py accuracy DATA --teacher recorded:FOLDER --target sketch --steps 200

Speed is of training steps alone, by processor time of one thread, on made-up images (the whole step reads and augments
none). Accuracy runs `vl2v distill` whole, then with `--quick` for as many steps as take the same processor time by the
time of its first 20 steps; reading, augmenting and computing the activations count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vl2v.config import StageConfig, TrainConfig
from vl2v.embeddings.session import TeacherTargets
from vl2v.methods.base import find_method
from vl2v.runs.measure import MadeUpBatches
from vl2v.students.backbone import pretrained_backbone
from vl2v.students.student import Student, cuts, evaluating, new_projector
from vl2v.training.learner import StageWork, Validation
from vl2v.training.loop import Trainer
from vl2v.training.stage import StageRun

DIM, CLASSES = 384, 7


def speed(student_name: str, sizes: list[int], per_domain: int, blocks: list[str]) -> None:
    """Print images a second of steps of the whole backbone, and of its upper blocks from some blocks on."""
    torch.set_num_threads(1)
    print(f"{student_name}, batch {3 * per_domain}, one thread, processor time")
    print("| px | trained from | activations below | kB a view | images/s | of the whole |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size in sizes:
        whole = 0.0
        for block in ["", *blocks]:
            rate, share, kilobytes = measured(student_name, size, per_domain, block)
            whole = whole or rate
            print(
                f"| {size} | {block or 'the first layer'} | {share:.0%} | {kilobytes:.0f} | {rate:.1f} "
                f"| {rate / whole:.1f}x |",
                flush=True,
            )


def measured(student_name: str, size: int, per_domain: int, block: str, steps: int = 3) -> tuple[float, float, float]:
    """Return images a second, the share of activations below the cut, and the size of a view's activations in kB."""
    task = find_method("adip")()
    stage = next(stage for stage in task.stages if stage.trains != "projector")
    torch.manual_seed(0)
    backbone, spec = pretrained_backbone(student_name, "none", image_size=size)
    student = Student(backbone, new_projector(backbone.num_features, DIM, 0), spec)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(Path(folder), TrainConfig(accelerator="cpu", precision="fp32"), 0, alone=True)
        trainer.prepare(student)
        shape, share, kilobytes = (size, size, 3), 0.0, size * size * 3 / 1e3
        if block:
            student.cut(block)
            with evaluating(student):
                one = student.activations(torch.zeros(1, size, size, 3, dtype=torch.uint8))
                share = dict(cuts(backbone, torch.zeros(1, 3, size, size)))[student.split.cut]
            shape, kilobytes = tuple(one.shape[1:]), one.numel() * 2 / 1e3
        like = TeacherTargets(torch.zeros(0).long().numpy(), scale=10.0)
        batches = MadeUpBatches(shape, 3, per_domain, CLASSES, DIM, False, like, bool(block))
        settings = StageConfig(steps=steps + 1, lr=1e-5, batch_per_domain=per_domain)
        nothing = Validation(list, torch.zeros(0), None, 1.0)
        run = StageRun(trainer, StageWork(stage, settings, batches, nothing), student, 0, None, last=True)
        run.timed(1)
        begun = time.process_time()
        run.timed(steps)
        return 3 * per_domain * steps / (time.process_time() - begun), share, kilobytes


@dataclass(frozen=True)
class Row:
    steps: int
    seconds: float
    seen: float
    unseen: float


def accuracy(given: argparse.Namespace) -> None:
    """Print the accuracy of whole training and of `--quick`, each with as much processor time."""
    torch.set_num_threads(1)
    print(f"{given.method}, {given.student}, {given.size} px, {given.target} unseen, processor time")
    print("| | seed | steps | s | seen | unseen |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(given.seeds):
            whole = run(given, Path(folder), seed, given.steps, {})
            show("whole", seed, whole)
            for block in given.blocks:
                for views in given.views:
                    quick = {"quick": block, "quick_views": views}
                    short = run(given, Path(folder), seed, 20, quick)
                    longer = run(given, Path(folder), seed, 120, quick)
                    step = (longer.seconds - short.seconds) / 100
                    steps = 20 + int(max(0.0, whole.seconds - short.seconds) / step)
                    show(f"{block}, {views} views", seed, run(given, Path(folder), seed, steps, quick))


def run(given: argparse.Namespace, folder: Path, seed: int, steps: int, train: dict[str, Any]) -> Row:
    """Train once; decoding counts, since no other process does it."""
    import vl2v

    name = f"{seed}-{steps}-{train.get('quick', 'whole')}-{train.get('quick_views', 0)}"
    stage = "distill" if given.method not in ("erm",) else "finetune"
    settings = {
        "method": given.method,
        "seed": seed,
        "data": {"path": given.data, "target": [given.target], "workers": 0, "exclude": given.exclude},
        "teacher": {"spec": given.teacher},
        "student": {"name": given.student, "image_size": given.size},
        "stages": {stage: {"steps": steps, "batch_per_domain": given.batch}},
        "train": train,
    }
    begun = time.process_time()
    trained: list[float] = []

    def progress(task: str, done: int, total: int, remark: str) -> None:
        if not trained and task == stage and done == total:
            trained.append(time.process_time() - begun)

    made = vl2v.distill(settings, folder / name, store=folder / "store", minutes=None, progress=progress)
    assert made.evaluation is not None
    return Row(steps, trained[0], made.evaluation.mean(role="seen"), made.evaluation.mean(role="unseen"))


def show(name: str, seed: int, row: Row) -> None:
    print(
        f"| {name} | {seed} | {row.steps} | {row.seconds:.0f} | {100 * row.seen:.1f} | {100 * row.unseen:.1f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "accuracy"])
    parser.add_argument("data", nargs="?")
    parser.add_argument("--student", default="tf_efficientnet_lite0")
    parser.add_argument("--method", default="adip")
    parser.add_argument("--teacher", default="tiny")
    parser.add_argument("--target", default="outline")
    parser.add_argument("--exclude")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--sizes", type=int, nargs="*", default=[64, 128, 224])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--blocks", nargs="*", default=["auto"])
    parser.add_argument("--views", type=int, nargs="*", default=[4])
    given = parser.parse_args()
    if given.what == "speed":
        speed(given.student, given.sizes, given.batch, given.blocks)
    else:
        accuracy(given)


if __name__ == "__main__":
    main()
