"""What `vl2v distill` forecasts against what it takes, in time and memory.

    python benchmarks/forecast.py DATA --teacher tiny --target outline

Each configuration is run in a process of its own, with a store of its own. The bar is a third.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "3 minutes": {"minutes": 3.0},
    "Lite0, 96 px, 150 steps": {"image_size": 96, "steps": 150},
    "MobileNetV3, 96 px, 150 steps": {"image_size": 96, "steps": 150, "student": "mobilenetv3_small_100"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--teacher", default="tiny")
    parser.add_argument("--target", default="outline")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        measure(given.data, given.teacher, given.target, CONFIGURATIONS[given.one])
        return
    print("| | forecast, s | actual, s | ratio | forecast, GB | actual, GB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in CONFIGURATIONS:
        command = [sys.executable, __file__, given.data, "--teacher", given.teacher, "--target", given.target]
        done = subprocess.run([*command, "--one", name], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        ratio = found["seconds"] / found["forecast"]
        print(
            f"| {name}: {found['words']} | {found['forecast']:.0f} | {found['seconds']:.0f} | {ratio:.2f} "
            f"| {found['memory']:.1f} | {found['peak']:.1f} |",
            flush=True,
        )


def measure(data: str, teacher: str, target: str, wanted: dict[str, Any]) -> None:
    """Print the forecast and the figures of one run, as JSON."""
    import vl2v
    from vl2v.runs.plan import RunPlan
    from vl2v.tree import nested

    student = wanted.get("student", "tf_efficientnet_lite0")
    values = {"data.path": data, "data.target": [target], "teacher.spec": teacher, "student.name": student}
    values["student.weights"] = "auto" if student == "tf_efficientnet_lite0" else "none"
    if "steps" in wanted:
        values |= {"student.image_size": wanted["image_size"], "stages.distill.steps": wanted["steps"]}
        values["stages.distill.batch_per_domain"] = 8
    begun: list[tuple[RunPlan, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        vl2v.distill(
            nested(values),
            Path(folder) / "run",
            store=Path(folder) / "store",
            minutes=wanted.get("minutes"),
            on_plan=lambda plan: begun.append((plan, time.monotonic())),
        )
    ((plan, start),) = begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    spent = time.monotonic() - start
    words = plan.summary()[0].removeprefix("plan: ")
    print(
        json.dumps(
            {"words": words, "forecast": plan.total, "seconds": spent, "memory": plan.memory / 1e9, "peak": peak}
        )
    )


if __name__ == "__main__":
    main()
