"""Steps in pieces, so that they fit into memory: how many images at once, and what to do when it still is too many."""

from __future__ import annotations

import torch
from torch import Tensor

from vl2v.methods import Targets
from vl2v.students.student import Student
from vl2v.system import available_memory

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
