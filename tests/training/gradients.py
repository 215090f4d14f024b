"""Do the runs of FILE.json in OUT, and keep the first gradient of each stage: `python gradients.py FILE.json OUT`."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

import vl2v
from vl2v.methods import Stage, register
from vl2v.methods.averaging import BetaAverage, Interpolation, Soup
from vl2v.methods.regularized import Miro, oracle
from vl2v.runs import train
from vl2v.training import stage
from vl2v.training.device import from_first, whole

backward = stage.StageRun.backward


def kept(self, parts):
    loss = backward(self, parts)
    file = self.trainer.folder.with_suffix(f".{self.work.stage.key}.safetensors")
    if self.step == 0 and not file.exists():
        gradients = {key: whole(value.grad) for key, value in self.weights.items() if value.grad is not None}
        here = [value.to_local() if isinstance(value, DTensor) else value for value in self.weights.values()]
        share = sum(value.numel() for value in here) / sum(value.numel() for value in gradients.values())
        if self.trainer.fabric.is_global_zero:
            tensors = {key: value.contiguous() for key, value in gradients.items()}
            save_file(tensors | {"loss": torch.tensor(loss["loss"]), "share": torch.tensor(share)}, file)
    return loss


@register("averaging")
class Averaging(Miro):
    """Two members, with an auxiliary module, averaged over their steps, and interpolated."""

    title = "everything that is done with weights"

    @property
    def stages(self):
        return tuple(
            Stage(
                f"finetune {k}/2",
                "all",
                self.training_step,
                auxiliary=oracle,
                averagers=(BetaAverage, partial(Interpolation, (0.3, 0.6)), partial(Soup, k, 2)),
            )
            for k in (1, 2)
        )


waits: list[int] = []  # for the first process, or the others, in the runs so far


def counted(fabric, work):
    waits.append(fabric.global_rank)
    return from_first(fabric, work)


if __name__ == "__main__":
    stage.StageRun.backward = kept
    train.from_first = counted
    for name, settings in json.loads(Path(sys.argv[1]).read_text()).items():
        folder = Path(sys.argv[2]) / name
        vl2v.distill(settings, folder, store=folder.parent / "store")
        folder.with_suffix(f".{waits[0]}.waits").write_text(str(len(waits)))
        waits.clear()
