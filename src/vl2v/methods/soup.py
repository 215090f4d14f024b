"""Model soup: the mean of the weights of several fine-tunings from one start.

Wortsman et al., "Model soups", ICML 2022, section 2, the uniform soup. The start is a linear probe's, as there. One
round of DART (Jain et al., CVPR 2023), whose members differ in their augmentation, too; here in their draws.
"""

from __future__ import annotations

from functools import partial

from vl2v.methods import averaging
from vl2v.methods.base import Stage
from vl2v.methods.erm import LP_FT_STAGES, PROBE, Finetuning, cross_entropy
from vl2v.methods.registry import register

MEMBERS = 3


@register("soup")
class Soup(Finetuning):
    """A linear probe, and the mean of fine-tunings from it."""

    title = "mean weights of three fine-tunings"
    stage_defaults = LP_FT_STAGES

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The probe, and the members."""
        members = (
            Stage(f"finetune {k}/{MEMBERS}", "all", cross_entropy, averagers=(partial(averaging.Soup, k, MEMBERS),))
            for k in range(1, MEMBERS + 1)
        )
        return (PROBE, *members)
