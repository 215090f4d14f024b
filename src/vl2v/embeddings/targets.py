"""The store's embeddings as training wants them: the teacher targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vl2v.embeddings.store import EmbeddingStore, image_key, text_key
from vl2v.embeddings.views import Views
from vl2v.teachers import text_classifier

if TYPE_CHECKING:
    from torch import Tensor

    from vl2v.data.audit import Audit

Indices = NDArray[np.int64]
OnlineTeacher = Callable[["Tensor"], "Tensor"]
"""Embeds uint8 pixels [n, s, s, 3] anew: I(x) [n, d]."""


@dataclass(frozen=True)
class TeacherTargets:
    """Everything that a student learns of its images from the teacher and the labels, by dataset index.

    Attributes:
        labels: [N], -1 for unlabelled.
        images: teacher embeddings [N, 1 + K, d], the clean image's first, zeros for images that weren't queried;
            None without a teacher.
        texts: T [C, d]; None without a teacher.
        scale: the teacher's logit scale.
        online: for an online teacher: uint8 pixels [n, s, s, 3] -> I(x) [n, d].
        domains: [N].
        anchors: embeddings of each class in each source domain's words [C, D, d]; None unless the method wants them.
        adapted: W and b, side by side, of an adapted teacher's logits I(x) . W^T + b [C, d + 1]; None: s I(x) . T^T.
    """

    labels: NDArray[np.int64]
    images: NDArray[np.float16] | None = None
    texts: NDArray[np.float32] | None = None
    scale: float = 1.0
    online: OnlineTeacher | None = None
    domains: NDArray[np.int64] | None = None
    anchors: NDArray[np.float32] | None = None
    adapted: NDArray[np.float32] | None = None

    def queried(self, indices: Indices) -> Indices:
        """Return those of the images that have a teacher embedding."""
        return indices[:0] if self.images is None else indices[self.images[indices, 0].any(1)]


def targets(
    store: EmbeddingStore,
    fingerprint: str,
    audit: Audit,
    views: Views,
    indices: Sequence[int] | NDArray[np.int64] | None = None,
) -> NDArray[np.float16]:
    """Return the image targets I(x) of training: float16 [n, 1 + k, dim], the clean view first, unit rows.

    Args:
        store: with the embeddings.
        fingerprint: the teacher's.
        audit: of the dataset whose images are meant.
        views: as they were queried.
        indices: n of the audit's images; None: all of them.

    Raises:
        StoreError: embeddings are missing or damaged; the message counts them and names the command that gets them.
    """
    chosen = range(len(audit.sha256)) if indices is None else [int(i) for i in indices]
    keys = [image_key(audit.contents[index], name) for index in chosen for name in views.names]
    rows = store.get_half(fingerprint, keys)
    return rows.reshape(len(chosen), len(views), rows.shape[1])


def text_targets(store: EmbeddingStore, fingerprint: str, prompts: Sequence[Sequence[str]]) -> NDArray[np.float32]:
    """Return the class targets T [C, d] of training, unit rows.

    Args:
        store: with the embeddings.
        fingerprint: the teacher's.
        prompts: every text of each class.

    Raises:
        StoreError: embeddings are missing or damaged.
    """
    return text_classifier([store.get(fingerprint, [text_key(text) for text in group]) for group in prompts])
