"""Lambda on frozen features: what domains left out say, and what is best for the domain that is really unseen.

    python benchmarks/lambdas.py PACS --teacher recorded:pacs-vendor --size 96 --set prompts.articles=false

For each domain as the unseen one: the lambda that `loss.lambda="auto"` chooses by the others, and the accuracy of a
linear projector (Align in closed form) on the unseen domain for every lambda.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from frozen import frozen

from vl2v.evaluation.ridge import LAMBDAS, Taught, accuracies, best_lambda, lambda_accuracies, moments_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--teacher", default="tiny")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--set", action="append", default=[], dest="pairs")
    given = parser.parse_args()
    taught, names = frozen(given)
    x, images, texts, labels, domains, _ = taught
    targets = np.hstack([images, texts[labels]])
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
