"""One run on several devices: the processes that torchrun starts, each with its part of every batch.

Without torchrun there is one process, and everything here does nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from vl2v.config import TrainConfig
from vl2v.errors import ConfigError, RunError
from vl2v.system import best_device, world_size
from vl2v.training.device import Device, OneDevice, precision_name
from vl2v.training.sampler import Indices

PATIENCE = timedelta(days=30)  # of ranks that wait while rank 0 queries a teacher

T = TypeVar("T")


def launched_fabric(config: TrainConfig) -> Device:
    """Return Fabric on all devices of a run: data-parallel where torchrun has started several processes.

    Raises:
        ConfigError: there are fewer GPUs than processes, or devices that can't work together.
    """
    world = world_size()
    if world == 1:
        return OneDevice(config)
    import logging

    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

    from vl2v.training.sharding import shard

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # its notes would stand among our bars
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    device = best_device() if config.accelerator in ("auto", "gpu") else config.accelerator
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"train.accelerator = {device!r}: several processes work on cpu or cuda only")
    if device == "cuda" and here > torch.cuda.device_count():
        raise ConfigError(f"torchrun --nproc-per-node {here}: this machine has {torch.cuda.device_count()} GPUs")
    if here == world:
        _stay_on_this_machine()
    fabric = Fabric(
        accelerator=device,
        devices=here,
        num_nodes=world // here,
        strategy=DDPStrategy(timeout=PATIENCE, broadcast_buffers=False)
        if config.strategy == "ddp"
        else ModelParallelStrategy(shard, data_parallel_size=world, tensor_parallel_size=1, timeout=PATIENCE),
        precision=precision_name(config),
    )
    fabric.launch()
    return fabric


def _stay_on_this_machine() -> None:
    """Let the processes' connections, which nothing protects, listen on the loopback interface only."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback is not None:
        for backend in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{backend}_SOCKET_IFNAME", loopback)


def from_first(fabric: Device, work: Callable[[], T]) -> T:
    """Return what the first process makes of something; the others wait for it, and get a copy.

    Raises:
        RunError: in the others, if the first one failed.
    """
    if fabric.world_size == 1:
        return work()
    if fabric.global_rank:
        sent: list[T] | None = fabric.broadcast(None)
        if sent is None:
            raise RunError(f"process {fabric.global_rank} ends, because the first one failed")
        return sent[0]
    try:
        made = work()
    except Exception:
        fabric.broadcast(None)
        raise
    fabric.broadcast([made])
    return made


def own_part(fabric: Device, images: Indices) -> Indices:
    """Return this process's part of images, as many as every other's: the last ones may be there twice."""
    if fabric.world_size == 1:
        return images
    count = -(-len(images) // fabric.world_size)
    indices = np.arange(count) + fabric.global_rank * count
    part: Indices = images[indices.clip(max=len(images) - 1)]
    return part


def put_together(fabric: Device, rows: Tensor, total: int) -> Tensor:
    """Return the rows [total, p] that all processes made of their own parts, in order, on the CPU."""
    if fabric.world_size == 1:
        return rows
    assert not isinstance(fabric, OneDevice)
    found = fabric.all_gather(rows.to(fabric.device))
    assert isinstance(found, Tensor)
    return found.flatten(0, 1)[:total].cpu()
