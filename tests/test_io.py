"""A file that is replaced is there whole, the old or the new one, and on the disk before anything else happens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import Timeout
from safetensors.torch import load_file

from vl2v.errors import DataError, RunError
from vl2v.io import locked, replacing, write_bytes, write_tensors, write_text


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with pytest.raises(ZeroDivisionError), replacing(file) as temporary:
        temporary.write_text("half")
        _ = 1 / 0
    assert file.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut could lose, by the order of system calls."""
    calls: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        calls.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def replaced(source: str, target: str) -> None:
        calls.append(("replace", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(os, "rename", replaced)
    write_bytes(tmp_path / "student.json", b"{}")
    assert calls == [("fsync", "student.json.new"), ("replace", "student.json"), ("fsync", tmp_path.name)]


def test_a_file_that_cannot_be_written_is_an_error_of_its_owner(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="can't be written"):
        write_text(tmp_path / "file" / "inside", "")
    with pytest.raises(DataError, match="can't be written"):
        write_text(tmp_path / "file" / "inside", "", DataError)


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    one = torch.arange(6.0)
    write_tensors(tmp_path / "a.safetensors", {"one": one, "same": one, "part": one[:2], "none": torch.zeros(0)})
    found = load_file(tmp_path / "a.safetensors")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "one": one.tolist(), "same": one.tolist(), "part": [0.0, 1.0], "none": [],
    }  # fmt: skip


def test_a_lock_is_freed_by_a_process_that_dies(tmp_path: Path) -> None:
    file = tmp_path / "locks" / "a.lock"
    code = "import os, sys; from pathlib import Path; from vl2v.io import locked\n"
    code += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(Timeout), locked(file, wait=False):
            pass
        waited: list[bool] = []
        with locked(file, waiting=lambda: (waited.append(True), holder.kill())):  # type: ignore[arg-type, return-value]
            assert waited == [True]


def test_nothing_else_replaces_files() -> None:
    source = Path(__file__).parents[1] / "src" / "vl2v"
    moving_folders = {"data/archives.py", "data/catalogue.py", "data/download.py", "data/auditing.py"}
    for file in source.rglob("*.py"):
        name = file.relative_to(source).as_posix()
        text = file.read_text(encoding="utf-8")
        if name != "io.py":
            assert "fsync(" not in text or name in ("data/download.py", "benchmark/worklist.py"), name  # appends
            assert "os.replace(" not in text or name in moving_folders, name
