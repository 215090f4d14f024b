"""A run's teacher session: the settings are checked, then it is opened."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from vl2v.config import RunConfig
from vl2v.embeddings.bill import LedgerBudget
from vl2v.embeddings.session import TeacherSession
from vl2v.embeddings.store import EmbeddingStore
from vl2v.embeddings.targets import online_teacher
from vl2v.embeddings.views import Views
from vl2v.errors import ConfigError, VL2VWarning
from vl2v.methods import find_method
from vl2v.runs.datasets import Sources
from vl2v.session import Progress
from vl2v.teachers.prompts import check_prompts, prompts_for
from vl2v.teachers.protocol import Teacher


def open_session(
    config: RunConfig,
    store: EmbeddingStore,
    teacher: Teacher,
    spending: LedgerBudget | None,
    sources: Sources,
    views: Views,
    progress: Progress,
) -> TeacherSession:
    """Return the session that queries a teacher about the images to learn from.

    Raises:
        ConfigError: settings that don't go together.
    """
    wanted = config.teacher
    if queries_online(config):
        online_teacher(wanted, teacher)  # refuses a black box before anything is paid
    if wanted.online and wanted.views:
        raise ConfigError("teacher.online and teacher.views exclude one another; set teacher.online=false, or no views")
    dataset = sources.dataset
    _check_names(config.prompts.overrides, (*dataset.classes, *sources.others))
    names = (*dataset.classes, *sources.others)
    for note in check_prompts(names, prompts_for(names, config.prompts, sources.names), teacher):
        warnings.warn(note, VL2VWarning, stacklevel=2)
    of_run = dataset, sources.audit, sources.names, views, progress, sources.others
    anchors = find_method(config.method).anchors
    return TeacherSession(config, store, teacher, spending, *of_run, with_anchors=anchors, fit_scale=fit_scale)


def fit_scale(cosines: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the logit scale with which a teacher's probabilities fit the labels best (Guo et al., ICML 2017).

    Args:
        cosines: I(x) T' [n, C].
        labels: [n].
    """
    import torch

    from vl2v.evaluation.metrics import fit_temperature

    return 1 / fit_temperature(torch.from_numpy(cosines), torch.from_numpy(labels))


def queries_online(config: RunConfig) -> bool:
    """Return whether the teacher embeds every augmented batch anew, for methods that learn from image embeddings."""
    return config.teacher.online and find_method(config.method).queries == "images"


def _check_names(overrides: Iterable[str], classes: Sequence[str]) -> None:
    """Refuse overrides of classes that are misspelt; others may be for classes that come later.

    Raises:
        ConfigError: one is.
    """
    import difflib

    for name in set(overrides) - set(classes):
        close = difflib.get_close_matches(name, set(classes) - set(overrides), n=1)
        if close:
            raise ConfigError(f"prompts.overrides.{name}: the data have no such class; did you mean {close[0]}?")
