"""Checking a teacher on a small labelled sample, before all of its embeddings are paid for."""

from __future__ import annotations

import csv
import json
import shutil
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from little import CLASSES, DIM
from vl2v.cli import main
from vl2v.config import validate
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import ConfigError, DataError, TeacherError
from vl2v.runs.check import check_cost, check_teacher
from vl2v.runs.teacher_verdict import Check
from vl2v.teachers.paid.teacher import BudgetReached, Embedded, Forecast, Query, Refused

PHOTO = "a photo of a {}"
AXES = dict(zip(CLASSES, np.eye(DIM)[: len(CLASSES)], strict=True))


def recorded(shapes: Path, folder: Path, texts: dict[str, np.ndarray], noise: float = 0.1) -> str:
    """Write a recording in which every class's images lie along an axis; return how to ask for it."""
    folder.mkdir()
    rng = np.random.default_rng(2)
    files = sorted(shapes.rglob("*.png"))
    np.save(folder / "image_embeddings.npy", [AXES[file.parent.name] + noise * rng.normal(size=DIM) for file in files])
    np.save(folder / "text_embeddings.npy", list(texts.values()))
    for name, head, rows in (
        ("images", "path", [f.relative_to(shapes).as_posix() for f in files]),
        ("texts", "text", texts),
    ):
        with (folder / f"{name}.csv").open("w", newline="") as opened:
            csv.writer(opened).writerows([[head], *([row] for row in rows)])
    return f"recorded:{folder}"


def queried(store: Path) -> Counter[str]:
    with EmbeddingStore(store, read_only=True) as opened:
        return sum((Counter({question.kind: question.count}) for question in opened.queries()), Counter())


@pytest.fixture
def check(quick: dict[str, Any], tmp_path: Path):
    def run(spec: str | None = None, **options: Any) -> Check:
        quick["teacher"]["spec"] = spec or quick["teacher"]["spec"]
        return check_teacher(quick, store=tmp_path / "store", **options)

    return run


def test_a_small_balanced_sample_is_queried_once_after_its_cost_was_shown(check, tmp_path: Path) -> None:
    shown: list[str] = []
    found = check(
        images=18, before=lambda words: shown.append(f"{words} {(tmp_path / 'store/answers.sqlite').stat().st_size}")
    )
    assert shown[0].startswith("images: 18: 18 queries, 0 cached, 18 pending\ntexts: ")
    assert queried(tmp_path / "store") == {"image": 18, "text": 3}
    assert [(share.name, share.images) for share in found.domains] == [("chalk", 9), ("ink", 9)], "paint is unseen"
    assert [(share.name, share.images) for share in found.classes] == [(name, 6) for name in CLASSES]
    assert check(images=18) == found
    assert queried(tmp_path / "store") == {"image": 18, "text": 3}, "nothing twice"


@pytest.mark.parametrize("count", [7, 10, 23, 50])
def test_samples_of_any_size_are_balanced_over_classes_and_domains(check, count: int) -> None:
    found = check(images=count)
    for groups in (found.classes, found.domains):
        sizes = [share.images for share in groups]
        assert sum(sizes) == count and max(sizes) - min(sizes) <= 2


def test_a_good_teacher_is_worth_it_and_its_missing_prompts_are_named(check) -> None:
    found = check()
    assert found.everything.images == 72, "all there are"
    assert found.everything.accuracy > 0.9
    assert found.alignment.margin > 0.2
    assert "Worth distilling: a linear probe on the untrained student's features gets" in found.verdict()
    assert "chance is 33.3%" in found.verdict()
    assert found.wordings == () and found.better() is None
    reasons = {skip.setting: skip.reason for skip in found.skipped}
    assert 'prompts.templates=["a drawing of a {class}"]' in reasons and "prompts.domain_prompts=true" in reasons
    assert reasons['prompts.templates=["{class}"]'].endswith("no embedding of 3 of 3 texts: 'ball', 'box', 'cone'")


def test_a_recording_that_has_its_own_prompts_only_is_evaluated_by_them(
    quick: dict[str, Any], shapes: Path, tmp_path: Path
) -> None:
    texts = {f"a statue of a {name}": AXES[name] for name in CLASSES}
    quick["teacher"]["spec"] = recorded(shapes, tmp_path / "teacher", texts)
    quick["prompts"] = {"templates": ["a statue of a {class}"]}
    found = check_teacher(quick, store=tmp_path / "store")
    assert found.everything.accuracy == 1 and found.prompts == ("a statue of a {class}",)
    assert found.wordings == () and len(found.skipped) == 7


def test_prompts_are_recommended_when_they_do_better_than_noise(check, shapes: Path, tmp_path: Path) -> None:
    wrong = {"ball": AXES["box"], "box": AXES["ball"], "cone": AXES["cone"]}
    texts = {PHOTO.format(name): wrong[name] for name in CLASSES} | wrong
    texts |= {f"a drawing of a {name}": AXES[name] for name in CLASSES}
    found = check(recorded(shapes, tmp_path / "teacher", texts))
    better = found.better()
    assert better is not None and better.setting == 'prompts.templates=["a drawing of a {class}"]'
    assert better.accuracy > 0.95
    same = next(wording for wording in found.wordings if wording.setting == 'prompts.templates=["{class}"]')
    assert same.gain.low < 0 < same.gain.high and same.gain.mean == 0
    mean = next(wording for wording in found.wordings if '{class}", "a photo' in wording.setting)
    assert mean.setting == 'prompts.templates=["{class}", "a photo of a {class}", "a drawing of a {class}"]'
    assert f"Other prompts do better: {better.setting} gets" in found.verdict()


def test_a_misleading_name_is_pointed_out_with_the_images_it_costs(check, shapes: Path, tmp_path: Path) -> None:
    texts = {PHOTO.format(name): AXES[name] for name in CLASSES}
    texts["a photo of a ball"] = AXES["box"] - 0.5 * AXES["ball"]
    texts["a photo of a box"] = AXES["box"] + 0.2 * AXES["ball"]
    found = check(recorded(shapes, tmp_path / "teacher", texts, noise=0.01))
    assert found.everything.accuracy == pytest.approx(2 / 3)
    (swap,) = found.swaps
    assert (swap.label, swap.predicted, swap.count) == ("ball", "box", 24)
    assert (shapes / swap.example).is_file() and "/ball/" in swap.example
    (name,) = found.names
    assert (name.share.name, name.nearest, name.instead) == ("ball", "box", 24)
    assert (name.share.correct, name.probed) == (0, 24)
    assert name.cosine == pytest.approx(0.9 / (1.25 * 1.04) ** 0.5, abs=1e-3)
    assert "prompts.overrides.ball" in name.advice()
    assert found.own.share.accuracy == 1
    assert "Its images separate the classes better than its texts do" in found.verdict()
    assert found.adapted.share.accuracy == 1 and found.adapted.lead.high < 0
    assert "From these 72 embeddings the teacher itself goes from 66.7% to 100.0% on domains" in found.verdict()


def test_a_teacher_that_knows_nothing_is_not_worth_it(check, shapes: Path, tmp_path: Path) -> None:
    elsewhere = np.eye(DIM)[-3:]
    texts = {PHOTO.format(name): vector for name, vector in zip(CLASSES, elsewhere, strict=True)}
    found = check(recorded(shapes, tmp_path / "teacher", texts, noise=1.0))
    assert "is no better than chance: not worth distilling" in found.verdict()


def test_copies_and_broken_files_are_passed_over(quick: dict[str, Any], shapes: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(shapes, mine)
    for domain in ("chalk", "ink"):
        for name in CLASSES:
            files = sorted((mine / domain / name).iterdir())
            for file in files[4:8]:
                file.write_bytes(b"not an image")
            for file in files[8:]:
                shutil.copy(files[0], file)
    found = check_teacher(merge_data(quick, mine), images=30, store=tmp_path / "store")
    assert found.everything.images == 24
    assert {share.images for share in found.classes} == {8}


def test_one_domain_is_evaluated_on_other_images_of_it(quick: dict[str, Any], tmp_path: Path) -> None:
    quick["data"]["target"] = ["chalk", "paint"]
    found = check_teacher(quick, store=tmp_path / "store")
    assert found.student is not None and "on images it didn't learn from" in found.verdict()
    assert any("one domain only" in note for note in found.notes)


def test_without_a_student_there_is_no_comparison(quick: dict[str, Any], tmp_path: Path) -> None:
    quick["student"]["weights"] = str(tmp_path / "nowhere.safetensors")
    found = check_teacher(quick, store=tmp_path / "store")
    assert found.student is None and "nowhere.safetensors" in found.notes[0]
    assert "no untrained student" in found.verdict()


def test_what_cannot_be_checked_is_said_in_one_line(quick: dict[str, Any], shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--images 0: must be 1 or more"):
        check_teacher(quick, images=0, store=tmp_path / "store")
    shutil.copytree(shapes / "ink" / "ball", tmp_path / "one" / "ink" / "ball")
    with pytest.raises(DataError, match="no labelled images of two or more classes"):
        check_teacher(merge_data({**quick, "data": {"target": []}}, tmp_path / "one"), store=tmp_path / "store")
    quick["prompts"] = {"templates": ["a statue of a {class}"]}
    with pytest.raises(TeacherError, match="no embedding of 3 of 3 texts"):
        check_teacher(quick, store=tmp_path / "store")


def merge_data(quick: dict[str, Any], path: Path) -> dict[str, Any]:
    return {**quick, "data": {"path": str(path), "target": quick["data"]["target"], "workers": 0}}


class Vendor:
    """A paid teacher: a cent a query, refuses one image."""

    name, fingerprint, dim, logit_scale, currency = "vendor:m", "v" * 32, DIM, None, "USD"
    doubt = ""

    def __init__(self, refuses: str = "") -> None:
        self.budget: Any = None
        self.refuses = refuses

    def forecast(self, kind: Any, sizes: Any) -> Forecast:
        count = len(list(sizes))
        return Forecast(count, 0, 10_000 * count, 0.0)

    def query(self, kind: Any, items: Any) -> Any:
        for place, item in enumerate(items):
            if kind == "image" and item.name.startswith(self.refuses or "nothing"):
                yield Refused(place, "too plain")
                continue
            number = self.budget.reserve(Query(kind, 1, 0, 10_000))
            words = item if kind == "text" else item.name
            vector = next((axis for name, axis in AXES.items() if name in words), np.ones(DIM)).astype(np.float32)
            unit = (vector / np.linalg.norm(vector))[None]
            yield Embedded((place,), unit, lambda n=number: self.budget.settle(n, "answered"))


def test_a_paid_teacher_is_queried_when_its_price_is_known_and_within_the_budget(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vl2v.runs.check.the_teacher", lambda config: Vendor("ink/box/0"))
    store, result = tmp_path / "store", []
    with pytest.raises(BudgetReached):
        check_teacher(quick, images=30, store=store, before=result.append)
    assert "price: at most" in result[0] and "spent so far" in result[0]
    assert check_cost(quick, images=30, store=store).summary() == result[0]
    assert not queried(store)
    found = check_teacher(quick, images=30, store=store, budget=5, before=result.append)
    assert found.everything.accuracy == 1
    assert found.everything.images == 30 - len(found.refused) < 30
    assert {refusal.reason for refusal in found.refused} == {"too plain"}
    before = queried(store)
    assert check_teacher(quick, images=30, store=store, budget=5) == found
    assert set((queried(store) - before).values()) <= {len(found.refused)}, "only what was refused, and the canaries"


def test_what_another_process_is_buying_is_waited_for(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vl2v.runs.check.the_teacher", lambda config: Vendor())
    store, waits = tmp_path / "store", threading.Event()
    store.mkdir()

    def progress(what: str, *_: Any) -> None:
        if what.startswith("waiting for another process"):
            waits.set()

    with ThreadPoolExecutor(1) as pool:
        with FileLock(store / f"buying-{Vendor.fingerprint}.lock"):
            check = pool.submit(check_teacher, quick, images=12, store=store, budget=5, progress=progress)
            assert waits.wait(300)
            assert not queried(store)
        assert check.result().everything.accuracy == 1


def test_the_command_prints_a_verdict_or_json(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "run.toml"
    settings.write_text(validate(quick).to_toml())

    def run(*more: str) -> tuple[int, str, str]:
        options = ["--config", str(settings), "--images", "20", "--store", str(tmp_path / "store")]
        monkeypatch.setattr(sys, "argv", ["vl2v", "teacher", "check", *options, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    code, out, err = run("--dry-run")
    assert code == 0 and out.startswith("images: 20: 20 queries, 0 cached, 20 pending")
    assert not queried(tmp_path / "store")
    code, out, err = run()
    assert code == 0 and "Worth distilling" in " ".join(out.split())
    assert "images: 20: 20 queries, 0 cached, 20 pending" in err
    code, out, _ = run("--json")
    tree = json.loads(out)
    assert code == 0 and tree["everything"]["images"] == 20 and tree["better"] is None
    assert tree["verdict"].startswith("recorded:shapes-teacher names")
    code, _, err = run("--target", "pain")
    assert code == 2 and "no domain 'pain'; did you mean paint?" in err
