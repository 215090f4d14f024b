"""Model soup: the mean of the weights of several fine-tunings from one start.

Wortsman et al., "Model soups", ICML 2022, section 2, the uniform soup. The start is a linear probe's, as there. One
round of DART (Jain et al., CVPR 2023), whose members differ in their augmentation, too; here in their draws.
"""

from __future__ import annotations

from vl2v.config import LossConfig
from vl2v.methods.base import Method, Stage
from vl2v.methods.erm import LP_FT_STAGES, PROBE, cross_entropy

STAGES = LP_FT_STAGES
MEMBERS = 3


def soup(loss: LossConfig) -> Method:
    """Return the method: a linear probe, and the mean of fine-tunings from it."""
    numbers = range(1, MEMBERS + 1)
    members = (Stage(f"finetune {k}/{MEMBERS}", "all", cross_entropy, member=(k, MEMBERS)) for k in numbers)
    return Method("soup", "linear", (PROBE, *members), asks="nothing")
