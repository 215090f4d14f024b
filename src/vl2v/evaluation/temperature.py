"""How soft a teacher's probabilities are, and the temperature at which a student learns best from them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SOFTNESS = 0.75  # what a temperature of 4 gives seven classes and a logit scale of 20: chosen there (docs/trials.md)
SAMPLE = 4096  # images; more tell nothing else
COLDEST, HOTTEST = 1e-4, 10.0  # times the logit scale


def softness(logits: NDArray[np.floating[Any]], temperature: float) -> float:
    """Return the entropy of softmax(logits / temperature) over that of a blind guess, the mean of images; 0 to 1.

    Args:
        logits: [n, C], C > 1.
        temperature: tau.
    """
    scaled = logits / temperature
    scaled = scaled - scaled.max(1, keepdims=True)
    total = np.exp(scaled).sum(1)
    entropy = np.log(total) - (np.exp(scaled) * scaled).sum(1) / total
    return float(entropy.mean() / np.log(logits.shape[1]))


def soft_temperature(logits: NDArray[np.float32], scale: float) -> float:
    """Return the temperature, to two digits, at which a teacher's logits have the softness that students learn from.

    A temperature's effect depends on the number of classes and on the logit scale: at 4, one teacher's probabilities
    of 7 classes have a softness of 0.77, another's of 54 classes 0.95, which is nearly uniform.

    Args:
        logits: [n, C]; of one class only, the temperature is 1.
        scale: the teacher's logit scale s, of the cosines.
    """
    if logits.shape[1] < 2:
        return 1.0
    logits = logits[:: -(-len(logits) // SAMPLE)]
    low, high = COLDEST * scale, HOTTEST * scale
    for _ in range(20):  # to a millionth of the range of its logarithm
        middle = (low * high) ** 0.5
        low, high = (middle, high) if softness(logits, middle) < SOFTNESS else (low, middle)
    return float(f"{high:.2g}")
