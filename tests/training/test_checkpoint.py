from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vl2v.errors import RunError
from vl2v.training.learner import Checkpoint, load_checkpoint, save_checkpoint


def write(folder: Path, step: int) -> None:
    tensors = {"model/w": torch.full((3,), float(step)), "optimizer/0/step": torch.tensor(float(step))}
    save_checkpoint(folder, f"00-{step:08d}", Checkpoint(tensors, {"step": step}))


def test_the_last_two_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    for step in (1, 2, 3):
        write(tmp_path, step)
    assert len(list(tmp_path.iterdir())) == 2
    found = load_checkpoint(tmp_path)
    assert found is not None and found.state == {"step": 3} and not found.passed_over
    assert found.tensors["model/w"].tolist() == [3, 3, 3]


@pytest.mark.parametrize("damage", ["cut", "flip", "state", "empty"])
def test_a_corrupt_one_is_passed_over_and_said(tmp_path: Path, damage: str) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2)
    newest = tmp_path / "00-00000002.safetensors"
    data = bytearray(newest.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
    if damage == "state":
        data = data.replace(rb"{\"step\": 2}", rb"{\"step\": 1}")
    newest.write_bytes({"cut": data[: len(data) // 2], "empty": b""}.get(damage, data))
    found = load_checkpoint(tmp_path)
    assert found is not None and found.state == {"step": 1}
    assert len(found.passed_over) == 1 and "corrupt" in found.passed_over[0]


def test_all_corrupt_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    write(tmp_path, 1)
    next(tmp_path.iterdir()).write_bytes(b"x")
    with pytest.raises(RunError, match="every checkpoint is corrupt; delete the folder"):
        load_checkpoint(tmp_path)


def test_a_file_that_a_crash_left_half_written_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / "00-00000002.new").write_bytes(b"half")
    found = load_checkpoint(tmp_path)
    assert found is not None and found.state == {"step": 1}
