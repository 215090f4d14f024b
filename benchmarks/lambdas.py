"""Lambda on frozen features: what domains left out say, and what is best for the domain that is really unseen.

    python benchmarks/lambdas.py PACS --teacher recorded:pacs-vendor --size 96 --set prompts.articles=false

For each domain as the unseen one: the lambda that `loss.lambda="auto"` chooses by the others, and the accuracy of a
linear projector (Align in closed form) on the unseen domain for every lambda.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from torch import nn

from vl2v.embeddings.plan import Views
from vl2v.embeddings.store import EmbeddingStore
from vl2v.evaluation.ridge import LAMBDAS, Taught, accuracies, best_lambda, lambda_accuracies, moments_of
from vl2v.runs.datasets import open_sources
from vl2v.runs.features import Features
from vl2v.runs.query import open_session
from vl2v.runs.settings import resolve
from vl2v.runs.start import new_backbone
from vl2v.session import Session, silent
from vl2v.students.student import Student
from vl2v.teachers import the_teacher
from vl2v.training.device import OneDevice
from vl2v.tree import assignments, merge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--teacher", default="tiny")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--set", action="append", default=[], dest="pairs")
    given = parser.parse_args()
    tree = {
        "data": {"path": given.data},
        "teacher": {"spec": given.teacher},
        "student": {"image_size": given.size},
    }
    config = resolve(merge(tree, assignments(given.pairs)))
    with tempfile.TemporaryDirectory() as folder, EmbeddingStore(Path(folder)) as store:
        sources = open_sources(config, Session(Path(folder)))
        session = open_session(config, store, the_teacher(config.teacher), None, sources, Views(), silent)
        session.query()
        teacher_targets = session.targets()
    indices = sources.training
    assert teacher_targets.images is not None and teacher_targets.texts is not None
    backbone, spec = new_backbone(config)
    student = Student(backbone, nn.Identity(), spec)
    features = Features(student, sources.dataset, OneDevice(config.train), config.data.processes, silent).of(indices)
    x, images, texts = features.numpy(), teacher_targets.images[indices, 0].astype(np.float32), teacher_targets.texts
    labels, domains = teacher_targets.labels[indices], sources.dataset.domain_ids[indices]
    names, targets = sources.dataset.domains, np.hstack([images, texts[labels]])
    moments = {domain: moments_of(x[domains == domain], targets[domains == domain]) for domain in np.unique(domains)}
    print("| unseen | auto | " + " | ".join(f"{lam:g}" for lam in LAMBDAS) + " | s |")
    print("| --- " * (len(LAMBDAS) + 3) + "|")
    for unseen in moments:
        others, begun = domains != unseen, time.perf_counter()
        found = lambda_accuracies(Taught(x[others], images[others], texts, labels[others], domains[others]))
        chosen = best_lambda(found, int(others.sum()))
        took = time.perf_counter() - begun
        learnt = [part for domain, part in moments.items() if domain != unseen]
        right = accuracies(learnt, x[~others], texts, labels[~others])
        best = 100 * right[right.max(1).argmax()]
        row = " | ".join(f"{accuracy:.1f}" for accuracy in best)
        print(f"| {names[unseen]} | {chosen:g} | {row} | {took:.1f} |", flush=True)


if __name__ == "__main__":
    main()
