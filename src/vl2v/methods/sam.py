"""Sharpness-aware minimisation, and its gradient matching for domain generalisation.

SAM: Foret et al., ICLR 2021, algorithm 1. SAGM: Wang et al., "Sharpness-Aware Gradient Matching for Domain
Generalization", CVPR 2023, algorithm 1.
"""

from __future__ import annotations

from vl2v.config import LossConfig
from vl2v.methods.base import Ascent, Method, Stage
from vl2v.methods.erm import FINETUNE, cross_entropy

STAGES = {"finetune": FINETUNE}


def sam(loss: LossConfig) -> Method:
    """Return ERM with the gradient taken rho up the slope: g(w + rho g / |g|)."""
    stage = Stage("finetune", "all", cross_entropy, ascent=Ascent(loss.sam_rho))
    return Method("sam", "linear", (stage,), asks="nothing")


def sagm(loss: LossConfig) -> Method:
    """Return ERM with the mean of g(w) and g(w + rho g / |g| - alpha g), alpha = 0.001 as published."""
    stage = Stage("finetune", "all", cross_entropy, ascent=Ascent(loss.sam_rho, alpha=1e-3, first=0.5))
    return Method("sagm", "linear", (stage,), asks="nothing")
