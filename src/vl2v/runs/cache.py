"""What the runs of a benchmark share: features of pretrained backbones, and first stages that start alike."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vl2v.config import RunConfig, deciding
from vl2v.io import locked, write_tensors
from vl2v.methods import LOOP, Stage
from vl2v.students.student import Student


class SharedCache:
    """A folder that several processes put things on and take them from.

    Args:
        folder: made when something is put there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Hold a name, so that what belongs there is made once; wait while another process holds it.

        The operating system frees the name of a process that dies.
        """
        with locked(self.folder / "locks" / f"{name}.lock"):
            yield

    def features(self, name: str, contents: Sequence[bytes]) -> tuple[Tensor, Tensor] | None:
        """Return (which of the images are cached: bool [n], F(x) of those [m, p], in order); None: none is.

        Args:
            name: of the backbone, see `backbone_name`.
            contents: SHA-256 of each image.
        """
        cached: dict[bytes, Tensor] = {}
        for file in sorted((self.folder / "features" / name).glob("*.safetensors")):
            try:
                shard = load_file(file)
            except (OSError, SafetensorError):
                continue  # computed again
            keys = shard["sha256"].numpy()
            cached |= {key.tobytes(): row for key, row in zip(keys, shard["features"], strict=True)}
        there = torch.tensor([content in cached for content in contents])
        if not there.any():
            return None
        return there, torch.stack([cached[content] for content in contents if content in cached])

    def put_features(self, name: str, contents: Sequence[bytes], features: Tensor) -> None:
        """Save F(x) [n, p] of images."""
        keys = torch.tensor([list(content) for content in contents], dtype=torch.uint8)
        shard = hashlib.sha256(b"".join(contents)).hexdigest()[:16]
        write_tensors(
            self.folder / "features" / name / f"{shard}.safetensors",
            {"sha256": keys, "features": features.contiguous()},
        )

    def take_stage(self, name: str, run: Path) -> bool:
        """Start a new run where another run's first stage, the very same, ended; return whether there is one."""
        saved = self.folder / "stages" / name
        if (run / "checkpoints").exists() or not saved.is_dir():
            return False
        shutil.copyfile(saved / "metrics.jsonl", run / "metrics.jsonl")
        shutil.copytree(saved / "checkpoints", run / "checkpoints.new", dirs_exist_ok=True)
        (run / "checkpoints.new").replace(run / "checkpoints")
        return True

    def put_stage(self, name: str, run: Path) -> None:
        """Save the checkpoint that a run's first stage ended with, and the metrics so far."""
        saved = self.folder / "stages" / name
        if saved.exists():
            return
        draft = saved.with_name(f"{name}.{os.getpid()}.new")
        (draft / "checkpoints").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run / "metrics.jsonl", draft / "metrics.jsonl")
        (newest,) = sorted((run / "checkpoints").glob("*.safetensors"))[-1:]
        shutil.copyfile(newest, draft / "checkpoints" / newest.name)
        try:
            draft.replace(saved)
        except OSError:
            shutil.rmtree(draft)  # another run was quicker with the same


def backbone_name(student: Student, precision: str, view: str) -> str:
    """Return a name for everything that decides F(x) of an image.

    Args:
        student: whose backbone, with its weights as they are.
        precision: that it computes in.
        view: of the images.
    """
    decides = hashlib.sha256(json.dumps([asdict(student.spec), precision, view]).encode())
    for key, value in student.backbone.state_dict().items():
        decides.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
    return decides.hexdigest()[:24]


def stage_name(config: RunConfig, stage: Stage, student: Student, targets: str) -> str | None:
    """Return a name for everything that decides how a run's first stage ends; None for one that isn't shared.

    Args:
        config: of the run.
        stage: its first, as it is once everything is chosen; only one with an id is shared.
        student: as it starts.
        targets: a digest of the images and of what is learnt from them.
    """
    if not stage.id:
        return None
    paths = {"path", "layout", "exclude", "unlabelled"}
    tree = config.model_dump(
        mode="json", by_alias=True, exclude={"method": True, "stages": True, "loss": True, "data": paths}
    )
    tree = deciding(tree)
    tree["version"] = LOOP
    tree["stage"] = [stage.name, stage.id, dict(stage.decides), config.stages[stage.key].model_dump()]
    decides = hashlib.sha256(json.dumps([tree, targets, student.head], sort_keys=True).encode())
    for key, value in student.state_dict().items():
        decides.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
    return decides.hexdigest()[:24]
