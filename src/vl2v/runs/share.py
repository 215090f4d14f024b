"""Lambda, chosen for a run before it trains anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric import Fabric

from vl2v.evaluation.shares import best_share, image_shares
from vl2v.runs.features import Features
from vl2v.runs.folder import write_text
from vl2v.runs.sources import Sources
from vl2v.training import Answers, from_first

FEW = 10  # pictures with a label and an answer; fewer tell nothing


def image_share(run: Path, sources: Sources, answers: Answers, features: Features, fabric: Fabric) -> float:
    """Return the lambda that is best for domains left out; how good each is stands in the run's `lambda.json`.

    Args:
        run: the run folder; what was chosen there before is taken.
        sources: the pictures to learn from.
        answers: the teacher's; where too few are known, lambda is a half.
        features: of the backbone as it starts.
        fabric: every process of a run calls this.
    """
    file = run / "lambda.json"
    pictures = np.sort(np.concatenate(sources.groups(answers.answered(sources.split.unlabelled))))
    told = from_first(fabric, lambda: json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None)
    assert answers.images is not None and answers.texts is not None
    images, texts = answers.images[pictures, 0], answers.texts
    known = (answers.labels[pictures] >= 0) & images.any(1)
    if told is None and known.sum() >= FEW:
        found = features.of(pictures).numpy()  # the very ones that Align learns from
        places = pictures[known]
        labels, groups = answers.labels[places], sources.dataset.domain_ids[places]

        def chosen() -> dict[str, Any]:
            accuracies = image_shares(found[known], images[known].astype(np.float32), texts, labels, groups)
            told = {"lambda": best_share(accuracies, len(places)), "accuracies": accuracies}
            write_text(file, json.dumps(told, indent=2))
            return told

        told = from_first(fabric, chosen)
    return float(told["lambda"]) if told else 0.5
