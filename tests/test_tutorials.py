"""Every block of a tutorial runs, one after the other, as a reader would type them."""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from forks import quick_programs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGES = {page.stem: page for page in (ROOT / "docs" / "tutorials").glob("*.md")}
# A block that fails is named, and nothing is left running.
SHELL = """set -euo pipefail
trap 'echo "failed: $BASH_COMMAND"' ERR
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
"""


def script(page: Path) -> str:
    """Return a page's blocks as one program of the shell; what is already installed isn't installed again."""
    parts = []
    for kind, text in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
        if kind == "python":
            parts.append(f"python - <<'END_OF_BLOCK'\n{text}END_OF_BLOCK\n")
        elif not text.startswith("pip install "):
            assert not kind, f"{page.name}: a block of {kind} isn't run"
            parts.append(text)
    return SHELL + "".join(parts)


def free_port() -> int:
    """Return a port that is still free when the page comes to it: below those that the system gives to others."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", random.randrange(lowest // 2, lowest)))
            return int(one.getsockname()[1])


def follow(name: str, folder: Path) -> str:
    """Return what is printed by following a page in a new user's empty folder, a free port in place of its own."""
    home = folder.with_name("home")
    home.mkdir()
    new = {"HOME": home, "XDG_CACHE_HOME": home / "cache", "XDG_DATA_HOME": home / "data"}
    environment = {**os.environ, **{key: str(value) for key, value in new.items()}, "OMP_NUM_THREADS": "1"}
    program = script(PAGES[name]).replace("8000", str(free_port()))
    # Not a pipe: one that the page left running would keep it open.
    with quick_programs() as programs, (home / "printed.txt").open("w") as printed:
        path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
        environment |= {"PATH": path, "COLUMNS": "200"}
        done = subprocess.run(
            ["bash", "-c", program], cwd=folder, env=environment, stdout=printed, stderr=subprocess.STDOUT, timeout=1700
        )
    text = (home / "printed.txt").read_text()
    assert done.returncode == 0, text
    return text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an empty folder to follow a page in."""
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def test_there_are_tutorials() -> None:
    assert set(PAGES) == {"paper", "phone", "paid"}


def test_own_folder_to_phone(folder: Path) -> None:
    printed = follow("phone", folder)
    assert "outline *" in printed and "% same predictions" in printed
    assert (folder / "student.onnx").stat().st_size < 6e6 and (folder / "runs" / "icons" / "report.html").is_file()
    names = re.findall(r"^\S+\.png (\w+) [01]\.\d\d$", printed, re.M)
    assert len(names) == 3 and set(names) <= {"car", "cup", "key", "umbrella", "unknown"}


def test_a_paid_api_on_five_dollars(folder: Path) -> None:
    printed = follow("paid", folder)
    (spent,) = re.findall(r"total: ([\d.]+) USD", printed)
    assert 0 < float(spent) <= 5
    _, bill = printed.split("queries to teachers")
    assert "vl2v embed" in bill and "runs/paid" not in bill
    assert "price: at most" in printed and (folder / "runs" / "paid" / "evaluation.json").is_file()


def test_benchmark_to_a_papers_table(folder: Path) -> None:
    printed = follow("paper", folder)
    assert "4 jobs: 4 done, 0 running, 0 failed, 0 waiting" in printed
    assert (folder / "bench" / "report.html").is_file()
    table = (folder / "table.tex").read_text()
    assert table.startswith(r"\begin{tabular}") and "adip" in table and r"\bottomrule" in table
