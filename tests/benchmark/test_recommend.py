"""The tournament behind `vl2v recommend`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from little import DOMAINS, Here, quick_tournament
from vl2v.errors import ConfigError
from vl2v.methods import METHODS
from vl2v.tree import assignments


def test_recommend_names_one_method(
    shapes: Path, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vl2v.benchmark.recommend import recommend

    quick_tournament(monkeypatch)
    settings: dict[str, Any] = {"student": {"weights": "none", "image_size": 32}, "data": {"workers": 0}}
    settings["stages"] = {"align": {"steps": 10, "batch_per_domain": 8}}
    teacher = f"recorded:{recording}"
    methods = ("erm", "adip")
    data = tmp_path / "my images"
    data.symlink_to(shapes)
    how: dict[str, Any] = {"minutes": 0.02, "students": "test_efficientnet", "settings": settings, "engine": Here()}
    # rise wants texts that this recording doesn't have
    advice = recommend(data, teacher, tmp_path / "bench", methods=(*methods, "rise"), **how)
    assert {advice.method, advice.runner_up} == set(methods) and advice.steps == 3
    assert set(advice.failed) == {"rise"} and "rise didn't compete: " in advice.verdict()
    assert advice.command in advice.verdict()
    assert {r.target for r in advice.table} == set(DOMAINS)
    assert {r.seed for r in advice.table} == {1, 2}  # others than chose the finalists
    again = recommend(data, teacher, tmp_path / "bench", methods=methods, **how)
    assert (again.command, again.accuracy) == (advice.command, advice.accuracy)  # all was there already
    words = shlex.split(advice.command)
    assert words[words.index("--data") + 1] == str(data) and words[words.index("--method") + 1] == advice.method
    assert words[words.index("--store") + 1] == str(tmp_path / "bench" / "store")  # a paid teacher isn't queried again
    chosen = assignments([words[place + 1] for place, word in enumerate(words) if word == "--set"])
    *_, last = METHODS[advice.method].stage_defaults
    assert chosen["student"] == settings["student"] and chosen["data"] == settings["data"]
    assert chosen["stages"][last] == {"steps": 1000, "batch_per_domain": 4}


def test_a_tournaments_steps_follow_from_its_time() -> None:
    from vl2v.benchmark.recommend import steps_in

    assert steps_in(60, (0.01, 2.0), 1, Here()) == 2000 > steps_in(60, (0.01, 4.0), 1, Here()) == 800  # 10 evaluations
    assert steps_in(0, (0.01, 2.0), 1, Here()) == 20


def test_a_tournament_wants_two_that_train(shapes: Path, recording: Path, tmp_path: Path) -> None:
    from vl2v.benchmark.recommend import recommend

    for methods in (["zero-shot", "erm"], ["erm", "erm"]):
        with pytest.raises(ConfigError, match="name 2 or more to compare"):
            recommend(shapes, f"recorded:{recording}", tmp_path, minutes=1, methods=methods, engine=Here())
    assert not list(tmp_path.iterdir())
