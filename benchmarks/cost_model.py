"""What a distillation takes: queries, disk, hours; from counts and from rates that were measured.

    python benchmarks/cost_model.py
    python benchmarks/cost_model.py --ask 900 --train 700 --dim 768 --steps 15001    # the rates of your machine

The model: queries = images x (1 + views); the store has 1.087 of what the numbers take in half precision (measured,
docs/store.md); querying takes queries / rate; a student takes steps x batch / rate, whatever the number of images;
the features for Align take the images once / rate.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Dataset:
    """Counts that costs follow from."""

    name: str
    images: int
    domains: int


DATASETS = (
    Dataset("PACS", 9_991, 4),
    Dataset("DomainNet", 586_575, 6),
    Dataset("ImageNet", 1_281_167, 1),
    Dataset("a billion", 1_000_000_000, 1),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ask", type=float, default=18, help="images/s of the teacher (ViT-B/32 here, bf16)")
    parser.add_argument("--train", type=float, default=53, help="images/s of training (Lite0, 128 px, one core)")
    parser.add_argument("--infer", type=float, default=300, help="images/s of the frozen student")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--views", type=int, default=0)
    parser.add_argument("--steps", type=int, default=5001)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--micro", type=int, default=20, help="price of an image in micro-units of a currency")
    given = parser.parse_args()
    heads = ("dataset", "queries", "price", "store, GB", "querying, h", "features, h", "a student, h")
    print(f"| {' | '.join(heads)} | every domain left out, 3 seeds, one method, h |")
    print("| --- " * (len(heads) + 1) + "|")
    for data in DATASETS:
        queries = data.images * (1 + given.views)
        store = queries * 2 * given.dim * 1.087 / 1e9
        features = data.images / given.infer / 3600
        student = given.steps * given.batch / given.train / 3600
        hours = (queries / given.ask / 3600, features, student, 3 * data.domains * student + features)
        cells = (
            f"{queries:,}",
            f"{queries * given.micro / 1e6:,.2f}",
            f"{store:,.2f}",
            *(f"{h:,.1f}" for h in hours),
        )
        print(f"| {data.name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
