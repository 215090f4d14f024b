"""CLIPood: fine-tuning of a white box with margins from its texts, and a beta moving average of its weights.

Shu et al., "CLIPood: Generalizing CLIP to Out-of-Distributions", ICML 2023, equations 3 and 5.
"""

from __future__ import annotations

from pydantic import Field

from vl2v.config import Section
from vl2v.methods.averaging import BetaAverage
from vl2v.methods.base import Output, Stage, Targets, Task, Terms
from vl2v.methods.registry import register


@register("clipood")
class Clipood(Task):
    """The student is the teacher's image tower, the class embeddings are its frozen classifier."""

    title = "fine-tuning with text margins and averaged weights"
    queries = "texts"
    tower = True
    version = 2
    stage_defaults = {"finetune": {"steps": 1000, "lr": 5e-6, "weight_decay": 0.1}}

    class Settings(Section):
        """The margin."""

        margin: float = Field(default=0.3, ge=0, description="between classes, in cosines")

    settings: Settings

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage that trains everything, averaged."""
        return (Stage("finetune", "all", self.training_step, averagers=(BetaAverage,)),)

    def training_step(self, output: Output, targets: Targets) -> Terms:
        """Return the cross-entropy of s (z . T(c) + margin (1 - T(y) . T(c))) over classes c, labelled images only."""
        from torch.nn import functional

        assert targets.texts is not None
        distances = (1 - targets.texts @ targets.texts.T)[targets.labels]
        logits = targets.scale * (output.z @ targets.texts.T + self.settings.margin * distances)
        return {"loss": functional.cross_entropy(logits, targets.labels, ignore_index=-1)}
