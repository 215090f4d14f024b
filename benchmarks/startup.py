"""How long a person waits for `vl2v --help`, beside Python itself.

    python benchmarks/startup.py

Both are started in turns, so that what else the machine does slows both.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

STARTED = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "vl2v --help": [sys.executable, "-m", "vl2v", "--help"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in STARTED}
    for _ in range(given.repeats):
        for name, command in STARTED.items():
            begun = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - begun)
    print("| | minimum, s | median, s | ratio of the minima |")
    print("| --- | --- | --- | --- |")
    least = min(seconds["python -c pass"])
    for name, taken in seconds.items():
        print(f"| `{name}` | {min(taken):.3f} | {statistics.median(taken):.3f} | {min(taken) / least:.1f} |")


if __name__ == "__main__":
    main()
