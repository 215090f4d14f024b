"""What `vl2v distill` forecasts against what it takes, in time and memory; exit code 1 where time is off by a third.

    python benchmarks/forecast.py DATA --target outline

Each command is run in a process of its own. The time is that from the plan on, with the export that the command keeps;
the teacher's embeddings are cached by the first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS = {
    "`--minutes 2`": ["--minutes", "2"],
    "`--minutes 4`": ["--minutes", "4"],
    "MobileNetV3, 96 px, 150 steps": [
        *("--student", "mobilenetv3_small_100", "--set", "student.weights=none", "--image-size", "96"),
        *("--set", "stages.distill.steps=150", "--set", "stages.distill.batch_per_domain=8"),
    ],
    "none: 20 minutes": [],
}
BAR = 1 / 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--target", default="outline")
    parser.add_argument("--first", type=int, default=len(COMMANDS) - 1, help="how many of the commands")
    given = parser.parse_args()
    print("| options | plan | forecast, s | taken, s | ratio | forecast, GB | taken, GB |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        vl2v = [sys.executable, "-m", "vl2v"]
        asked = ["--data", given.data, "--teacher", "tiny", "--store", str(store)]
        subprocess.run([*vl2v, "embed", *asked], check=True, capture_output=True)
        for number, (name, options) in enumerate(list(COMMANDS.items())[: given.first]):
            run = Path(folder) / str(number)
            command = [*vl2v, "distill", *asked, "--target", given.target, "--out", str(run), *options]
            env = {**os.environ, "PYTHONUNBUFFERED": "1"}
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)
            assert process.stdout is not None
            plan = process.stdout.readline().strip().removeprefix("plan: ")
            begun = time.monotonic()
            process.stdout.read()
            _, status, used = os.wait4(process.pid, 0)
            taken, peak = time.monotonic() - begun, used.ru_maxrss * 1024
            if os.waitstatus_to_exitcode(status):
                sys.exit(f"{name}: exit code {os.waitstatus_to_exitcode(status)}")
            made = json.loads((run / "plan.json").read_text())
            forecast = sum(made["seconds"].values())
            ratio = taken / forecast
            if abs(ratio - 1) > BAR:
                missed.append(name)
            print(
                f"| {name} | {plan} | {forecast:.0f} | {taken:.0f} | {ratio:.2f} "
                f"| {made['memory'] / 1e9:.1f} | {peak / 1e9:.1f} |",
                flush=True,
            )
    if missed:
        sys.exit(f"off by more than a third: {', '.join(missed)}")


if __name__ == "__main__":
    main()
