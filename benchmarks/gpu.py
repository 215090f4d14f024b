"""What a run does right on a GPU, and how much of the bare device it uses: one command, under eight minutes.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --quick

Images are made up (JPEG, 500 x 375 pixels), weights are random where that does; nothing is downloaded. A check that
fails is a line of the first table, and the exit code 1; bars stand beside the ratios. With `--device cpu --quick` sizes
are tiny: that shows that it runs, and its ratios mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import distill_step
import embed_images
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

import vl2v
from vl2v.config import StageConfig, TrainConfig
from vl2v.embeddings.session import TeacherTargets
from vl2v.methods import find_method
from vl2v.runs.measure import MadeUpBatches
from vl2v.students.backbone import pretrained_backbone
from vl2v.students.student import Student, new_projector
from vl2v.system import processors
from vl2v.teachers import open_teacher
from vl2v.teachers.protocol import EncodedImage
from vl2v.training.device import shard, whole
from vl2v.training.learner import StageWork, Validation
from vl2v.training.loop import Trainer
from vl2v.training.stage import StageRun

DOMAINS, CLASSES = ("day", "night", "rain"), ("box", "cross", "disc", "stripe")
TRAINING, EMBEDDING = 0.85, 0.9  # bars


def images(folder: Path, each: int) -> Path:
    """Write `each` JPEG files a class and domain, a class's shape in a domain's colours on noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:375, :500]
    for domain, light in zip(DOMAINS, (220, 60, 140), strict=True):
        for name in CLASSES:
            (folder / domain / name).mkdir(parents=True)
            for number in range(each):
                u, v, r = int(rng.integers(100, 400)), int(rng.integers(90, 280)), int(rng.integers(30, 80))
                shape = {
                    "box": (abs(x - u) < r) & (abs(y - v) < r),
                    "cross": (abs(x - u) < r // 3) | (abs(y - v) < r // 3),
                    "disc": (x - u) ** 2 + (y - v) ** 2 < r * r,
                    "stripe": (x + y + u) % r < r // 2,
                }[name]
                pixels = rng.integers(0, 60, (375, 500, 3)) + np.where(shape, 0, light)[..., None] * 3 // 4
                Image.fromarray(pixels.astype(np.uint8)).save(folder / domain / name / f"{number}.jpg", quality=90)
    return folder


class Bench:
    """The checks and ratios on a device.

    Args:
        device: "cuda" or "cpu".
        folder: for everything that is written.
        quick: a few images and steps.
    """

    def __init__(self, device: str, folder: Path, *, quick: bool) -> None:
        self.device = device
        self.folder = folder
        self.quick = quick
        self.data = images(folder / "images", 4 if quick else 40)
        self.steps = 4 if quick else 50
        self.vit = "ViT-S-32-alt" if quick else "ViT-B-16"

    def run(self, name: str, device: str, progress: Any = None, **teacher: Any) -> vl2v.Run:
        """Return a finished run in fp32 on a device."""
        distill = {"steps": self.steps, "batch_per_domain": 8, "lr": 1e-4, "eval_every": max(1, self.steps // 5)}
        settings = {
            "data": {"path": self.data, "target": ["rain"]},
            "teacher": {"spec": "tiny", **teacher},
            "student": {"image_size": 64, "name": "test_efficientnet" if self.quick else "tf_efficientnet_lite0"},
            "stages": {"align": {"steps": 10}, "distill": distill},
            "train": {"accelerator": device, "precision": "fp32"},
        }
        if self.quick:
            settings["student"]["weights"] = "none"
        extra = {} if progress is None else {"progress": progress}
        return vl2v.distill(settings, self.folder / name, store=self.folder / "store", minutes=None, **extra)

    def losses(self) -> str:
        """Check the losses of the steps against the CPU's."""
        found = []
        for name, device in (("losses-cpu", "cpu"), ("losses", self.device)):
            lines = (self.run(name, device).folder / "metrics.jsonl").read_text().splitlines()
            found.append([json.loads(line)["loss"] for line in lines])
        apart = max(abs(a - b) / max(abs(a), 0.1) for a, b in zip(*found, strict=True))
        assert apart < 0.02, f"losses differ by {apart:.2%}"
        return f"{len(found[0])} means of the loss over {self.steps} steps, at most {apart:.2%} apart"

    def resume(self) -> str:
        """Check that a run that is stopped in the middle ends with the weights of one that isn't."""

        def stop(task: str, done: int, total: int, remark: str) -> None:
            if task == "distill" and done == max(2, self.steps // 2):
                raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            self.run("resumed", self.device, stop)
        ended = [self.run(name, self.device).folder for name in ("resumed", "losses")]
        one, other = (load_file(folder / "student" / "student.safetensors") for folder in ended)
        apart = max((one[key].float() - other[key].float()).abs().max().item() for key in other)
        assert apart < 1e-3, f"weights differ by {apart:.1e}"
        return f"weights at most {apart:.1e} apart"

    def gradient(self, kind: str) -> dict[str, torch.Tensor]:
        """Return the gradient of a step on one device, by our own class or by one of Fabric's strategies."""
        trainer = Trainer(self.folder / kind, TrainConfig(accelerator=self.device, precision="fp32"), 0, alone=True)
        if kind != "one":
            from lightning_fabric import Fabric
            from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

            strategy = DDPStrategy() if kind == "DDP" else ModelParallelStrategy(shard, 1, 1)
            trainer.fabric = Fabric(accelerator=self.device, devices=1, strategy=strategy)
            trainer.fabric.launch()
        torch.manual_seed(0)
        backbone, spec = pretrained_backbone("test_efficientnet", "none", image_size=64)
        student = Student(backbone, new_projector(256, 16, 0), spec)
        trainer.prepare(student)
        task = find_method("adip")().with_chosen({"lambda": 0.5})
        stage = next(stage for stage in task.stages if stage.trains != "projector")
        like = TeacherTargets(np.zeros(0, np.int64), scale=10.0)
        batches = MadeUpBatches((64, 64, 3), 3, 4, 4, 16, False, like)
        settings = StageConfig(steps=1, lr=1e-6, batch_per_domain=4)
        nothing = Validation(list, torch.zeros(0), None, 1.0)
        run = StageRun(trainer, StageWork(stage, settings, batches, nothing), student, 0, None, last=True)
        run.train_mode()
        run.at_once = settings.batch_per_domain  # whole, as on several devices
        run.optimise(batches.between(0, 1))
        return {key: whole(value.grad).cpu() for key, value in run.weights.items() if value.grad is not None}

    def strategy(self, kind: str) -> str:
        """Check the gradient by DDP, or FSDP, of one device."""
        one, other = self.gradient("one"), self.gradient(kind)
        apart = max((one[key] - other[key]).abs().max().item() for key in one)
        assert apart < 1e-4, f"gradients differ by {apart:.1e}"
        return f"gradients at most {apart:.1e} apart"

    def embeddings(self) -> str:
        """Check a ViT's embeddings on the device against the CPU's."""
        spec = f"open_clip:local-dir:{embed_images.random_vit(self.folder / 'vit', self.vit)}"
        files = sorted(self.data.rglob("*.jpg"))[:: max(1, len(CLASSES))][:8]
        encoded = [EncodedImage(file.name, file.read_bytes()) for file in files]
        one, other = (
            np.asarray(open_teacher(spec, device=device, precision="fp32").embed_images(encoded), np.float32)
            for device in ("cpu", self.device)
        )
        cosine = float((one * other).sum(-1).min())
        assert cosine > 0.999, f"cosine {cosine:.4f}"
        return f"{self.vit}, cosine at least {cosine:.5f}"

    def online(self) -> str:
        """Check that an online teacher's batches are learnt from."""
        run = self.run("online", self.device, online=True)
        losses = [json.loads(line)["loss"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        assert all(np.isfinite(losses)), "a loss isn't finite"
        return f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last"

    def int8(self) -> str:
        """Check the int8 export of the student that was trained on the device, against the student."""
        parity = vl2v.export(
            self.folder / "losses", self.folder / "student.onnx", int8=True, store=self.folder / "store"
        )
        return f"the same class for {parity.same:.1%} of images"

    def training(self, student: str) -> float:
        """Print the images/s of steps from files, and of bare passes; return the ratio."""
        found = distill_step.rates(
            self.data,
            student,
            64 if self.quick else 224,
            per_domain=2 if self.quick else 32,
            workers=processors(),
            steps=2 if self.quick else 30,
            repeats=1 if self.quick else 3,
            accelerator=self.device,
        )
        return distill_step.report(student, found)

    def embedding(self) -> float:
        """Print the images/s of `embed` from files, and of the bare teacher; return the ratio."""
        teacher = open_teacher(f"open_clip:local-dir:{self.folder / 'vit'}", device=self.device)
        count = 16 if self.quick else 480
        return embed_images.compare(teacher, self.data, self.folder, count, 1 if self.quick else 3)


def row(name: str, check: Callable[[], str]) -> bool:
    """Print the row of a check; return whether it passed."""
    begun, passed = time.perf_counter(), True
    try:
        words = check()
    except Exception as error:
        passed, words = False, f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    print(f"| {name} | {'ok' if passed else 'FAILED'} | {words} | {time.perf_counter() - begun:.0f} |", flush=True)
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no GPU; --device cpu --quick shows that the program runs")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    warnings.simplefilter("ignore")
    where = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    print(f"{where}, {processors()} cores, torch {torch.__version__}\n\n| check | | | s |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(given.device, Path(folder), quick=given.quick)
        passed = [
            row("losses as on the CPU", bench.losses),
            row("resume", bench.resume),
            row("DDP of one", partial(bench.strategy, "DDP")),
            row("FSDP of one", partial(bench.strategy, "FSDP")),
            row("embeddings", bench.embeddings),
            row("online teacher", bench.online),
            row("int8", bench.int8),
        ]
        print("\n| training | images/s | of bare |\n| --- | --- | --- |")
        students = ("test_efficientnet",) if given.quick else ("tf_efficientnet_lite0", "resnet50")
        ratios = [(name, bench.training(name), TRAINING) for name in students]
        print()
        ratios.append(("embed", bench.embedding(), EMBEDDING))
    for name, ratio, bar in ratios:
        print(f"{name}: {ratio:.2f}, bar {bar}: {'met' if ratio >= bar else 'MISSED'}")
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
