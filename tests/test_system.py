"""Memory that a process frees is used again, without faults for every page."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from vl2v import system

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries stay as they are")

COUNT = """
import resource, torch
from vl2v.system import reuse_freed_memory
reuse_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(64, 1024, 1024, dtype=torch.uint8).zero_()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(min(faults() for _ in range(40)))  # the first ones find no place between others
"""


def faults(**settings: str) -> int:
    """Return how many page faults it takes to use 64 MiB that were used before."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", COUNT], capture_output=True, text=True, check=True, env={**own, **settings}
    )
    return int(done.stdout)


def test_a_control_groups_own_use_is_not_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "CONTROL_GROUP", tmp_path)
    whole = system.available_memory()
    for name, content in {"max": "3000", "current": "2500", "stat": "anon 9\ninactive_file 400\nactive_file 7"}.items():
        (tmp_path / f"memory.{name}").write_text(content + "\n")
    assert system.available_memory() == 900
    (tmp_path / "memory.max").write_text("max\n")
    assert system.available_memory() == pytest.approx(whole, rel=0.2)


def test_memory_that_was_freed_is_used_again() -> None:
    assert faults() < 100


def test_settings_of_ones_own_are_kept() -> None:
    assert faults(MALLOC_MMAP_THRESHOLD_="1000000") > 100
