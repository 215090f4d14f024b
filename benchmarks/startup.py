"""What commands cost before they do anything: seconds by the clock, and of processor time.

    python benchmarks/startup.py --data DATA --run RUN

They are started in turns beside Python itself, so that what else the machine does slows all. RUN is a finished run of
images in DATA, a folder of them; the first step is that of a student of 64 px, its teacher's embeddings cached. Without
`--data` the sample icons are taken, without `--run` nothing is predicted.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FIRST_STEP = """
import os, sys, vl2v
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command has it

def stop(task, done, total, remark):
    if task == "align":
        os._exit(0)

vl2v.distill(
    data=sys.argv[1], teacher="tiny", method="adip-plus", out=sys.argv[2], store=sys.argv[3], minutes=None,
    image_size=64, stages={"distill": {"steps": 10}}, progress=stop,
)
"""


def started(data: Path, run: Path | None, folder: Path) -> dict[str, list[str]]:
    """Return the commands by name; what has to be there for them is made."""
    vl2v = [sys.executable, "-m", "vl2v"]
    few = folder / "few"
    for name in sorted({file.parent.name for file in data.rglob("*") if file.is_file()})[:5]:
        for style in sorted(folder for folder in data.iterdir() if (folder / name).is_dir()):
            (few / style.name / name).mkdir(parents=True)
            for file in sorted((style / name).iterdir())[:6]:
                shutil.copy(file, few / style.name / name)
    first = [sys.executable, "-c", FIRST_STEP, str(few), str(folder / "run"), str(folder / "store")]
    subprocess.run(first, check=True, capture_output=True)  # the teacher is queried once
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "python -c 'import torch'": [sys.executable, "-c", "import torch"],
        "vl2v --help": [*vl2v, "--help"],
        "vl2v methods": [*vl2v, "methods"],
        "vl2v data inspect": [*vl2v, "data", "inspect", str(data)],
    }
    if run is not None:
        image = next(file for file in sorted(data.rglob("*")) if file.suffix in (".png", ".jpg"))
        commands["vl2v predict, one image"] = [*vl2v, "predict", str(run), str(image)]
    return commands | {"vl2v distill, until its first step": first}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    if given.data is None:
        from vl2v.data.archives import icondg

        given.data = icondg()
    clock: dict[str, list[float]] = {}
    busy: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        commands = started(given.data, given.run, Path(folder))
        for number in range(given.repeats):
            for name, command in commands.items():
                command = [part.replace(f"{folder}/run", f"{folder}/run{number}") for part in command]
                begun = time.perf_counter()
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                _, status, used = os.wait4(process.pid, 0)
                if os.waitstatus_to_exitcode(status):
                    sys.exit(f"{name}: exit code {os.waitstatus_to_exitcode(status)}")
                clock.setdefault(name, []).append(time.perf_counter() - begun)
                busy.setdefault(name, []).append(used.ru_utime + used.ru_stime)
    print("| | by the clock: minimum, s | processor time: minimum, s | median, s |")
    print("| --- | --- | --- | --- |")
    for name, taken in busy.items():
        print(f"| `{name}` | {min(clock[name]):.2f} | {min(taken):.2f} | {statistics.median(taken):.2f} |", flush=True)


if __name__ == "__main__":
    main()
