"""Memory of each of several processes that train one student, with DDP or with FSDP.

    torchrun --nproc-per-node 2 benchmarks/sharding.py ddp
    torchrun --nproc-per-node 2 benchmarks/sharding.py fsdp

A ViT-B/16 with a projector, two steps of AdamW on two images of noise. Printed for the first process, in MB: its
weights, gradients and moments after a step, and by how much its memory's peak is above that before the student.
"""

from __future__ import annotations

import resource
import sys

import timm
import torch
from torch.distributed.tensor import DTensor

from vl2v.config import TrainConfig
from vl2v.students.student import Student, new_projector
from vl2v.teachers.protocol import BackboneSpec
from vl2v.training.device import launched_fabric, set_up
from vl2v.training.learner import Learner

NAME, SIZE, MB = "vit_base_patch16_224", 224, 1e6


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(strategy: str) -> None:
    fabric = launched_fabric(TrainConfig.model_validate({"strategy": strategy, "precision": "fp32"}))
    before = peak()
    backbone = timm.create_model(NAME, num_classes=0)
    spec = BackboneSpec({"kind": "timm", "name": NAME}, SIZE, (0.5,) * 3, (0.5,) * 3)
    student = Student(backbone, new_projector(backbone.num_features, 512, 0), spec)
    model, learner = set_up(fabric, Learner(student))
    optimizer = torch.optim.AdamW(learner.parameters())
    wrapped = fabric.setup_optimizers(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        output = model(torch.randint(256, (2, SIZE, SIZE, 3), dtype=torch.uint8, device=fabric.device))
        fabric.backward(output.projected.square().mean())
        wrapped.step()
    held = [*learner.parameters(), *(p.grad for p in learner.parameters())]
    held += [value for state in optimizer.state.values() for value in state.values()]
    here = sum(x.nbytes for x in (x.to_local() if isinstance(x, DTensor) else x for x in held))
    if fabric.is_global_zero:
        print(f"| {strategy} | {here / MB:,.0f} | {(peak() - before) / MB:,.0f} |")


if __name__ == "__main__":
    main(sys.argv[1])
