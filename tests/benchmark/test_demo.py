"""The README's first command, with two steps a stage on a few images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from typed import typed
from vl2v.benchmark import demo
from vl2v.data.archives import icondg


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the demonstration take little: of IconDG six images of three classes a style, and two steps a stage."""
    for style in ("emoji", "outline", "pixel"):
        for name in ("car", "cup", "key"):
            folder = tmp_path / "icondg" / style / name
            folder.mkdir(parents=True)
            for file in sorted((icondg() / style / name).glob("*.png"))[:6]:
                shutil.copy(file, folder)
    settings = demo.settings

    def quick(method: str, target: str) -> dict[str, Any]:
        chosen = settings(method, target)
        for stage in chosen["stages"].values():
            stage |= {"steps": 2, "eval_every": 1}
        chosen["data"]["workers"] = 0
        return chosen

    monkeypatch.setattr(demo, "settings", quick)
    monkeypatch.setattr(demo, "icondg", lambda: tmp_path / "icondg")
    monkeypatch.setattr("vl2v.export.web.RUNTIME", {})  # nothing is downloaded; tests/export has what runs a page
    return tmp_path


def test_three_students_and_their_teacher_are_compared(few: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = few / "demo"
    result = typed(capfd, "demo", "--out", out)
    assert result.returncode == 0, result.stderr
    results = json.loads((out / "results.json").read_text())
    assert list(results) == ["teacher, zero-shot", "erm", "kd", "adip-plus"]
    rows = {cells[1].strip(): cells[2:4] for line in result.stdout.splitlines() if len(cells := line.split("│")) == 5}
    for name, row in results.items():
        assert [cell.strip() for cell in rows[name]] == [f"{100 * row[role]:.1f}" for role in ("seen", "unseen")]
    lead = {name: 100 * (results["adip-plus"]["unseen"] - results[name]["unseen"]) for name in ("kd", "erm")}
    kd, erm = (
        f"{abs(lead[name]):.1f} points {'above' if lead[name] >= 0 else 'below'} {name}" for name in ("kd", "erm")
    )
    assert f"adip-plus is {kd} and {erm}" in result.stdout
    for name in ("accuracy.png", "predictions.png"):
        with Image.open(out / name) as image:
            assert min(image.size) > 100
    assert f"page: python -m http.server --directory {out / 'page'} 8000" in " ".join(result.stdout.split())
    card = json.loads((out / "page" / "student.json").read_text())
    assert card["form"] == "open" and len(card["classes"]) == 3
    assert set(json.loads((out / "page" / "classes.json").read_text())) == {"dog", "heart", "pizza"}
    students = {file: file.stat().st_mtime_ns for file in out.glob("*/student/*.safetensors")}
    again = typed(capfd, "demo", "--out", out)
    assert again.stdout == result.stdout
    assert len(students) == 3 and {file: file.stat().st_mtime_ns for file in students} == students
