"""Write tests/seconds.json, by which `make test` starts with the longest files, from the reports of a run.

.venv/bin/python -m pytest --numprocesses 2 --dist loadfile --junitxml tests.xml
python tools/test_seconds.py tests.xml
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

TESTS = Path(__file__).parents[1] / "tests"
FILE = TESTS / "seconds.json"


def main() -> None:
    """Read the reports that are named; what isn't in them stays as it was."""
    seconds = Counter[str]()
    for report in sys.argv[1:]:
        for case in ElementTree.parse(report).iter("testcase"):
            file = case.attrib["classname"].removeprefix("tests.").replace(".", "/") + ".py"
            seconds[file] += float(case.attrib["time"])
    found = {**json.loads(FILE.read_text(encoding="utf-8")), **{file: round(time) for file, time in seconds.items()}}
    longest = sorted((-time, file) for file, time in found.items() if time >= 2 and (TESTS / file).is_file())
    FILE.write_text(json.dumps({file: -time for time, file in longest}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
