"""Checkpoints: one safetensors file each, written atomically, checked when read; the last two stay."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vl2v.errors import RunError
from vl2v.io import checksum, write_tensors
from vl2v.methods.averaging import Weights
from vl2v.students.student import Student
from vl2v.training.device import like, whole


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, plain numbers, and a line about each newer checkpoint that was corrupt."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    passed_over: list[str] = field(default_factory=list)


def save_checkpoint(folder: Path, name: str, checkpoint: Checkpoint, keep: int = 2) -> None:
    """Write `name`.safetensors durably, then remove all but the newest `keep`.

    Raises:
        RunError: the disk is full or the folder can't be written to.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in checkpoint.tensors.items()}
    state = json.dumps(checkpoint.state)
    metadata = {"state": state, "crc": _checksum(tensors, state)}
    target = folder / f"{name}.safetensors"
    write_tensors(target, tensors, metadata)
    for old in _newest_first(folder)[keep:]:
        old.unlink()


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is whole; None where there is none at all.

    Raises:
        RunError: there are checkpoints and all of them are corrupt.
    """
    paths = _newest_first(folder)
    passed_over: list[str] = []
    for path in paths:
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            if metadata["crc"] != _checksum(tensors, metadata["state"]):
                raise ValueError("checksum")
            return Checkpoint(tensors, json.loads(metadata["state"]), passed_over)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            passed_over.append(f"{path}: corrupt ({error}), passed over")
    if paths:
        raise RunError(f"{folder}: every checkpoint is corrupt; delete the folder to start this run again")
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"), reverse=True)


def _checksum(tensors: Mapping[str, Tensor], state: str) -> str:
    return checksum({name: tensor.numpy() for name, tensor in tensors.items()}, state)


def trainable(module: nn.Module) -> Weights:
    """Return the parameters that are trained, by name."""
    return {key: value for key, value in module.named_parameters() if value.requires_grad}


def copied(weights: Mapping[str, Tensor]) -> Weights:
    """Return whole weights in the computer's memory, as checkpoints have them."""
    return {key: whole(value.detach()).to("cpu", copy=True) for key, value in weights.items()}


def running_statistics(module: nn.Module) -> Weights:
    """Return the running means and variances of batch-norm layers."""
    return {key: value for key, value in module.named_buffers() if key.endswith(("running_mean", "running_var"))}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Weights:
    """Return the tensors of an optimiser, from which `load_optimizer` continues."""
    states = optimizer.state_dict()["state"]
    return {f"{index}/{key}": value for index, state in states.items() for key, value in state.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Weights) -> None:
    """Let an optimiser continue from what `optimizer_tensors` returned."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    states: dict[int, Weights] = {}
    for name, value in tensors.items():
        index, key = name.split("/")
        if key != "step":  # fused optimisers want the layout of the weight
            value = like(value, weights[int(index)])
        states.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})


def load(student: Student, weights: Weights) -> None:
    """Put weights into a student."""
    with torch.no_grad():
        own = student.state_dict()
        for key, value in weights.items():
            own[key].copy_(like(value, own[key]))


def under(prefix: str, tensors: Weights) -> Weights:
    """Return the tensors whose names start with a prefix, by the rest of their names."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
