"""Training: the one loop, its batches, checkpoints and weight averaging."""

from vl2v.training.batches import FeatureBatches, PixelBatches, Renderer, Rendering, TeacherTargets, clean_pixels
from vl2v.training.features import compute_features
from vl2v.training.loop import StageWork, Trainer, Validation
from vl2v.training.processes import from_first, new_fabric, own_part, put_together
from vl2v.training.sampler import DomainBalancedSampler

__all__ = [
    "DomainBalancedSampler",
    "FeatureBatches",
    "PixelBatches",
    "Renderer",
    "Rendering",
    "StageWork",
    "TeacherTargets",
    "Trainer",
    "Validation",
    "clean_pixels",
    "compute_features",
    "from_first",
    "new_fabric",
    "own_part",
    "put_together",
]
