"""A step in pieces has the gradient of the whole batch, and what doesn't fit into memory is cut smaller."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from steps import DIM, DOMAINS, EACH, begun
from vl2v.methods import Targets
from vl2v.students.backbone import pretrained_backbone
from vl2v.students.convolutions import quick_convolutions
from vl2v.students.student import Student, new_projector
from vl2v.training.learner import activation_bytes, images_at_once, is_out_of_memory, pieces, smaller


def gradients(method: str, at_once: int, folder: Path) -> tuple[dict[str, Tensor], float]:
    """Return the gradient and the loss of a method's first step on images."""
    run, batches = begun(method, folder)
    run.at_once = at_once
    loss = run.optimise(batches.between(0, 1))["loss"].item()
    found = {key: value.grad.clone() for key, value in run.weights.items() if value.grad is not None}
    return found, loss


@pytest.mark.parametrize(
    "method", ["adip", "adip-plus", "coral", "erm", "fd", "kd", "miro", "mixup", "rise", "sagm", "scmd"]
)
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_step_in_pieces_has_the_gradient_of_the_whole(method: str, at_once: int, tmp_path: Path) -> None:
    whole, loss = gradients(method, EACH, tmp_path)
    cut, same_loss = gradients(method, at_once, tmp_path)
    assert same_loss == pytest.approx(loss, rel=1e-5) and whole.keys() == cut.keys() and whole
    length = torch.stack([value.norm() for value in whole.values()]).norm()
    apart = torch.stack([(value - cut[key]).norm() for key, value in whole.items()]).norm()
    assert length > 0 and apart / length < 1e-5


def test_a_piece_has_as_many_images_of_each_domain_as_the_others() -> None:
    domains = torch.arange(3).repeat_interleave(4)
    cut = pieces(torch.arange(12), Targets(torch.arange(12), domains=domains), 4, 2)
    assert [x.tolist() for x, _ in cut] == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]
    for x, targets in cut:
        assert torch.equal(targets.labels, x) and targets.domains is not None
        assert targets.domains.bincount().tolist() == [2, 2, 2]


def test_as_many_images_at_once_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, spec = pretrained_backbone("tf_efficientnet_lite0", "none", image_size=224)
    student = Student(backbone, new_projector(1280, DIM, 0), spec)
    each = activation_bytes(student)
    assert 60e6 < each < 100e6, "some 80 MB an image"
    monkeypatch.setattr("vl2v.training.learner.available_memory", lambda: 64e9)
    n = 3 * images_at_once(student, 32, 3)
    assert n < 96 and n * each * 1.3 < 1.8e9, "under 3 GB with all else"
    assert images_at_once(student, 2, 3) == 2, "what fits isn't cut"
    monkeypatch.setattr("vl2v.training.learner.available_memory", lambda: 4e9)
    assert images_at_once(student, 32, 3) < n // 3, "half of what is free"
    assert all(weight.requires_grad for weight in student.parameters()) and student.training
    quick_convolutions(student.backbone, 224)
    assert activation_bytes(student) < 0.6 * each, "folded batch norms save nothing of their own"


def test_smaller_pieces_are_equal_ones() -> None:
    assert [smaller(32, 32), smaller(12, 12), smaller(5, 5), smaller(2, 32)] == [16, 6, 1, 1]


SCARCE = """
import resource
import torch
from pathlib import Path
from vl2v.training import learner
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**26,) * 2)
try:
    torch.empty(2**30, dtype=torch.uint8)
except RuntimeError as error:
    print(learner.is_out_of_memory(error))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_the_allocators_own_error_is_known() -> None:
    """The real allocator, in a process that may not have more memory."""
    done = subprocess.run([sys.executable, "-c", SCARCE], capture_output=True, text=True)
    assert done.stdout.split() == ["True"], done.stderr
    assert is_out_of_memory(MemoryError()) and not is_out_of_memory(RuntimeError("shapes don't match"))


def test_a_step_that_does_not_fit_goes_on_in_smaller_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator's error, raised where more than half of the batch is computed at once."""
    whole, loss = gradients("adip", EACH, tmp_path)
    features = Student.features

    def scarce(self: Student, pixels: Tensor) -> Tensor:
        if len(pixels) > DOMAINS * 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        return features(self, pixels)

    monkeypatch.setattr(Student, "features", scarce)
    with pytest.warns(UserWarning, match="too little memory; a step now takes 2 images of each domain"):
        cut, same_loss = gradients("adip", EACH, tmp_path)
    assert same_loss == pytest.approx(loss, rel=1e-5)
    assert all((value - cut[key]).norm() <= 1e-4 * value.norm() + 1e-7 for key, value in whole.items())
