"""Training: the one loop, its batches, checkpoints and weight averaging."""

from vl2v.training.batches import (
    FeatureBatches,
    PixelBatches,
    Renderer,
    Rendering,
    batch_targets,
    clean_pixels,
    viewed_pixels,
)
from vl2v.training.features import cached_activations, compute_features
from vl2v.training.loop import Trainer
from vl2v.training.processes import from_first, new_fabric, own_part, put_together
from vl2v.training.sampler import DomainBalancedSampler
from vl2v.training.stage import StageWork, Validation

__all__ = [
    "DomainBalancedSampler",
    "FeatureBatches",
    "PixelBatches",
    "Renderer",
    "Rendering",
    "StageWork",
    "Trainer",
    "Validation",
    "batch_targets",
    "cached_activations",
    "clean_pixels",
    "compute_features",
    "from_first",
    "new_fabric",
    "own_part",
    "put_together",
    "viewed_pixels",
]
