"""A small dataset, a recording of a teacher that knows it, and settings of a run of a second or two."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from vl2v.methods import METHODS

if TYPE_CHECKING:
    import pytest

    from vl2v.benchmark.work import Notify
    from vl2v.benchmark.worklist import Job, WorkList

CLASSES = ("ball", "box", "cone")
DOMAINS = ("chalk", "ink", "paint")
DIM = 16


def draw(shape: str, domain: str, rng: np.random.Generator) -> Image.Image:
    """Return a 40x40 image of a shape in a domain's colours."""
    paper, ink = {"chalk": ("black", "white"), "ink": ("white", "black"), "paint": ("wheat", "crimson")}[domain]
    image = Image.new("RGB", (40, 40), paper)
    x, y = rng.integers(2, 12, 2).tolist()
    box = (x, y, x + 22, y + 22)
    pen = ImageDraw.Draw(image)
    if shape == "ball":
        pen.ellipse(box, fill=ink)
    elif shape == "box":
        pen.rectangle(box, fill=ink)
    else:
        pen.polygon([(x + 11, y), (x, y + 22), (x + 22, y + 22)], fill=ink)
    image.putpixel((39, 39), tuple(rng.integers(0, 256, 3).tolist()))  # no two files are the same
    return image


def draw_all(root: Path) -> None:
    """Draw a dataset of 3 domains x 3 classes x 12 images into an empty folder."""
    rng = np.random.default_rng(0)
    for domain in DOMAINS:
        for name in CLASSES:
            (root / domain / name).mkdir(parents=True)
            for number in range(12):
                draw(name, domain, rng).save(root / domain / name / f"{number:02d}.png")


def record(dataset: Path, folder: Path, *, extra: tuple[str, ...] = ("star",), worded: bool = False) -> Path:
    """Write a recording of a teacher that knows every shape, noisily; `worded`: in domains' words, too."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    names = (*CLASSES, *extra)
    texts = {name: rng.normal(size=DIM) for name in names}
    files = sorted(dataset.rglob("*.png"))
    vectors = np.stack([texts[file.parent.name] + 0.6 * rng.normal(size=DIM) for file in files])
    np.save(folder / "image_embeddings.npy", vectors.astype(np.float16))
    spoken = {f"a photo of a {name}": vector for name, vector in texts.items()}
    for domain in DOMAINS if worded else ():
        style = 0.3 * rng.normal(size=DIM)
        spoken |= {f"{'an' if domain == 'ink' else 'a'} {domain} of a {name}": texts[name] + style for name in names}
    np.save(folder / "text_embeddings.npy", np.stack(list(spoken.values())).astype(np.float16))
    with (folder / "images.csv").open("w", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerow(["path", "sha256"])
        for file in files:
            rows.writerow([file.relative_to(dataset).as_posix(), hashlib.sha256(file.read_bytes()).hexdigest()])
    with (folder / "texts.csv").open("w", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerows([["text"], *([text] for text in spoken)])
    (folder / "vendor.json").write_text(json.dumps({"name": "shapes-teacher", "logit_scale": 10.0}))
    return folder


def quick_settings(shapes: Path, recording: Path, method: str = "adip") -> dict[str, Any]:
    """Return settings of a run, the domain paint unseen; RISE wants a teacher that knows domains' words."""
    teacher = recording.with_name("worded") if method == "rise" else recording
    *_, last = METHODS[method].stage_defaults
    stages: dict[str, Any] = {last: {"steps": 6, "lr": 1e-3, "batch_per_domain": 4, "eval_every": 2}}
    if method in ("adip", "adip-plus"):
        stages["align"] = {"steps": 20, "lr": 1e-2, "batch_per_domain": 8, "eval_every": 10}
    student = {"name": "test_efficientnet", "weights": "none", "image_size": 32}
    return {
        "method": method,
        "data": {"path": str(shapes), "target": ["paint"], "workers": 0},
        "teacher": {"spec": f"recorded:{teacher}"},
        "student": {} if METHODS[method].tower else student,
        "stages": stages,
        "train": {"precision": "fp32", "accelerator": "cpu"},
    }


class Here:
    """An engine that does the jobs in this process: for tests of what is done, not of where."""

    processes = 1

    def run(self, work: WorkList, jobs: Sequence[Job], budget: float, notify: Notify) -> None:
        from vl2v.benchmark.work import work_through

        work_through(work, jobs, since=time.time(), budget=budget, notify=notify)


def quick_tournament(patch: pytest.MonkeyPatch) -> None:
    """Let the runs of a tournament take three steps, on however slow a machine."""
    for name, value in {"BATCH": 4, "TRIAL_STEPS": 3, "FEWEST_STEPS": 3, "MOST_STEPS": 3}.items():
        patch.setattr(f"vl2v.benchmark.recommend.{name}", value)


def processes(words: str) -> list[int]:
    """Return the processes whose command line has the words in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # it has just ended
            if words in command and _ours(entry):
                found.append(int(entry.name))
    return found


def _ours(entry: Path) -> bool:
    """Whether a process comes from this one, or from Ray, which keeps its workers in a family of its own."""
    try:
        status = (entry / "status").read_text()
    except OSError:
        return False
    parent = next(line.split()[1] for line in status.splitlines() if line.startswith("PPid"))
    return int(parent) == os.getpid() or b"ray::" in (entry / "cmdline").read_bytes()


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Let the disk be full for every file that would grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Interrupted(Exception):
    """What ends a run that `stopping` watches."""


def stopping(what: str, done: int) -> Callable[[str, int, int, str], None]:
    """Return a progress that interrupts a run once it is so far."""

    def progress(task: str, so_far: int, total: int, words: str) -> None:
        if (task, so_far) == (what, done):
            raise Interrupted

    return progress
