"""Two hundred runs of a client through a bad network, killed on the way: what was lost, and what was overspent.

    python benchmarks/faults.py

A real vendor (`vl2v.vendor`), a real client process and a proxy between them (tests/system/faults.py): every kind of
fault at a fifth of the requests, and all kinds mixed; kill -9 up to three times a run at a drawn request; every third
run with a budget that doesn't suffice. Prints a table and every broken promise.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from system.faults import (
    CALM,
    DONE,
    FAULTS,
    IMAGES,
    MIXED,
    PRICE,
    campaign,
    make_images,
    problems,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    given = parser.parse_args()
    kinds = [*FAULTS, *[MIXED] * len(FAULTS), CALM]
    ample, tight = 20 * IMAGES * PRICE, 30 * PRICE
    faults: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = make_images(folder / "images")
        calm = campaign(folder / "calm", images, CALM, 0, budget=ample, kills=0)
        for number in range(given.runs):
            kind = kinds[number % len(kinds)]
            budget = tight if number % 3 == 2 else ample
            outcome = campaign(folder / str(number), images, kind, number, budget=budget, kills=number % 4)
            faults.update(outcome.happened)
            broken = problems(outcome, calm)
            totals["runs"] += 1
            totals["done"] += outcome.ended == DONE
            totals["stopped at the budget"] += outcome.ended != DONE
            totals["clients killed"] += outcome.kills
            totals["lost or wrong embeddings"] += any("lost" in line or "differ" in line for line in broken)
            totals["over budget"] += any("budget" in line for line in broken)
            totals["queried again without a reason"] += any("again" in line for line in broken)
            for line in broken:
                print(f"run {number} ({kind}): {line}", flush=True)
    totals["faults"] = faults.total()
    print("| | |\n| --- | --- |")
    for name, count in totals.items():
        print(f"| {name} | {count} |")
    print(f"\n{', '.join(f'{kind} {count}' for kind, count in sorted(faults.items()))}")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
