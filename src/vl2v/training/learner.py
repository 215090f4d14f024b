"""What a stage trains, with which optimiser, on which batches, and what validates it.

The pieces in which a step fits into memory. And its checkpoints: one safetensors file each, written atomically, checked
when read; the last two stay.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vl2v.config import StageConfig
from vl2v.errors import RunError
from vl2v.io import checksum, write_tensors
from vl2v.methods import Output, Stage, Targets
from vl2v.methods.averaging import Scores, Weights
from vl2v.students.student import Student, as_logits, evaluating
from vl2v.system import available_memory
from vl2v.training.batches import Batches
from vl2v.training.device import Adam, AdamW, like, whole


class Learner(nn.Module):
    """A student, with the auxiliary module of its stage if there is one.

    In training mode it returns what the loss needs, in eval mode the student's own output.

    Args:
        auxiliary: see `Stage.auxiliary`.
    """

    def __init__(self, student: Student, auxiliary: nn.Module | None = None) -> None:
        super().__init__()
        self.student = student
        self.auxiliary = auxiliary

    def forward(self, x: Tensor, *, features_only: bool = False) -> Tensor | Output:
        """Return the output of pixels [n, s, s, 3] or features [n, p]; or the features alone."""
        if features_only:
            return self.student.features(x)
        if not self.training:
            out: Tensor = self.student(x)
            return out
        features = x.float() if x.ndim == 2 else self.student.features(x)
        output = self._output(features)
        return output if self.auxiliary is None else output._replace(auxiliary=self.auxiliary(x, output))

    def _output(self, features: Tensor) -> Output:
        projector = self.student.projector
        with torch.autocast(features.device.type, enabled=False):
            if isinstance(projector, nn.Sequential):
                embedding = projector[0](features)
                return Output(features, projector[1](embedding), embedding)
            return Output(features, projector(features))


@dataclass(frozen=True)
class Validation:
    """The source domains' validation images.

    Attributes:
        batches: called anew for each evaluation; yields the student's input, pixels or cached features.
        labels: of all of them, in order: classes [n], or probabilities [n, C].
        texts: T [C, d] for students with a text head.
        together: of several processes that each see a part: makes all outputs of this one's.
    """

    batches: Callable[[], Iterable[Tensor]]
    labels: Tensor
    texts: Tensor | None
    scale: float
    together: Callable[[Tensor], Tensor] | None = None

    def score(self, student: nn.Module) -> Scores:
        """Return accuracy (0 to 1) and mean cross-entropy."""
        with evaluating(student):
            outputs = torch.cat([student(x).float().cpu() for x in self.batches()])
        if self.together is not None:
            outputs = self.together(outputs)
        logits = as_logits(outputs, self.texts, self.scale)
        loss = nn.functional.cross_entropy(logits, self.labels)
        labels = self.labels if self.labels.ndim == 1 else self.labels.argmax(-1)
        return Scores((logits.argmax(-1) == labels).double().mean().item(), loss.item())


@dataclass(frozen=True)
class StageWork:
    """A stage with all that it needs to run."""

    stage: Stage
    settings: StageConfig
    batches: Batches
    validation: Validation


def learning_rate(settings: StageConfig, step: int) -> float:
    """Return the learning rate of a step (from 0): linear warm-up, then constant or a cosine to zero."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return settings.lr
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * done))


def set_trainable(student: Student, trains: str) -> None:
    """Let what a stage trains have gradients, and nothing else (`Stage.trains`)."""
    student.backbone.requires_grad_(trains != "projector")
    if student.split is not None and trains != "projector":
        student.freeze_below_cut()
    student.projector.requires_grad_(trains != "backbone")


def new_optimizer(groups: list[dict[str, Any]], settings: StageConfig) -> torch.optim.Optimizer:
    """Return the optimiser of groups of weights; each group's learning rate is `rate` times the settings'."""
    kinds = {"adam": Adam, "adamw": AdamW}
    kind: type[Adam] = kinds[settings.optimizer]
    return kind(groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)


MOST = 3e9  # bytes that training takes of the computer's memory
OWN = 1.2e9  # of them the process itself: PyTorch, images decoded ahead; a fixed figure, so that equal runs stay equal
WEIGHT = 28  # bytes a trained weight: itself, its gradient, two moments, the best, one average, a copy
SLACK = 1.3  # of what autograd saves; the backward pass needs more


def images_at_once(student: Student, per_domain: int, domains: int, example: Tensor | None = None) -> int:
    """Return how many images of each domain a step takes at once: a divisor of `per_domain`, as large as fits.

    The whole step stays under `MOST`, or half of the memory that is free if that is less; on a GPU under four fifths
    of its free memory.

    Args:
        student: on its device.
        per_domain: images of each domain in a batch.
        domains: groups of images in a batch.
        example: as for `activation_bytes`.
    """
    weights = WEIGHT * sum(weight.numel() for weight in student.parameters())
    device = student.mean.device
    if device.type == "cuda":
        left = 0.8 * torch.cuda.mem_get_info(device)[0] - weights
    else:
        left = min(MOST, available_memory() / 2) - OWN - weights
    most = left / (SLACK * activation_bytes(student, example)) / domains
    return max((k for k in range(1, per_domain + 1) if per_domain % k == 0 and k <= most), default=1)


def smaller(at_once: int, per_domain: int) -> int:
    """Return the next smaller number of images of each domain that a batch can be cut into."""
    return max(k for k in range(1, at_once) if per_domain % k == 0)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed; PyTorch's allocator for CPUs raises nothing more special."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "alloc" in str(error) and "memory" in str(error)
    )


def pieces(x: Tensor, targets: Targets, per_domain: int, at_once: int) -> list[tuple[Tensor, Targets]]:
    """Return a batch in equal pieces, each with as many images of every domain as the others.

    So any mean, over all images or over the labelled ones of some domains, is the mean over the pieces.

    Args:
        x: the student's input, domain by domain [n, ...].
        per_domain: images of each domain in it.
        at_once: images of each domain in a piece, a divisor of `per_domain`.
    """
    if at_once >= per_domain:
        return [(x, targets)]
    rows = torch.arange(len(x), device=x.device).view(-1, per_domain)
    chosen = [rows[:, start : start + at_once].flatten() for start in range(0, per_domain, at_once)]
    return [(x[index], targets.take(index)) for index in chosen]


def activation_bytes(student: Student, example: Tensor | None = None) -> int:
    """Return how many bytes a training step holds for each image between its forward and its backward pass.

    Counted on one image of the student's size: the storages that autograd saves, each once, without the weights.

    Args:
        student: on its device.
        example: the input of an image; default: blank pixels. Of activations, only what is trained above them counts.
    """
    size, device = student.spec.image_size, student.mean.device
    weights = {weight.untyped_storage().data_ptr() for weight in student.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    modes = {module: module.training for module in student.modules()}
    trained = {weight: weight.requires_grad for weight in student.parameters()}
    try:
        student.eval().requires_grad_(True)
        if student.split is not None and example is not None and example.is_floating_point():
            student.split.freeze()
        else:
            example = torch.zeros(1, size, size, 3, dtype=torch.uint8, device=device)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            features = student.features(example)
    finally:
        for weight, was in trained.items():
            weight.requires_grad_(was)
        for module, mode in modes.items():
            module.training = mode
    del features
    return sum(saved.values())


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, plain numbers, and a line about each newer checkpoint that was corrupt."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    passed_over: list[str] = field(default_factory=list)


def save_checkpoint(folder: Path, name: str, checkpoint: Checkpoint) -> None:
    """Write `name`.safetensors durably, then remove all but the newest two.

    Raises:
        RunError: the disk is full or the folder can't be written to.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in checkpoint.tensors.items()}
    state = json.dumps(checkpoint.state)
    metadata = {"state": state, "crc": _checksum(tensors, state)}
    target = folder / f"{name}.safetensors"
    write_tensors(target, tensors, metadata)
    for old in _newest_first(folder)[2:]:
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
