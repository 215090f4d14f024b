"""A run is planned before it starts: what is given up for time, in which order, and that the same plan is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import vl2v
from little import Interrupted, quick_settings, stopping
from vl2v.config import RunConfig
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import RunError
from vl2v.methods import Stage, task_of
from vl2v.runs import plan as plans
from vl2v.runs.measure import Bench, Rates
from vl2v.runs.plan import RunPlan, can_be_quick, limit_of, plan_run, quicker
from vl2v.runs.settings import resolve
from vl2v.tree import merge


class Known(Bench):
    """A machine on which an image of 224 px takes a second, and nothing else takes any time."""

    def __init__(self, config: RunConfig, evaluating: float = 0.0) -> None:
        self.config, self.domains, self.tower, self.evaluating, self.base = config, 3, 0, evaluating, 0
        self.task = task_of(config)

    def rates(self, size: int, config: RunConfig) -> Rates:
        return Rates((size / 224) ** 2, 0, 0, 0, 0, self.evaluating, 3, 1, 0)

    def guess(self, size: int) -> Rates:
        return self.rates(size, self.config)

    def seconds(self, config: RunConfig, rates: Rates) -> dict[str, float]:
        stage = config.stages["distill"]
        return {"distill": self.passes * stage.steps * stage.accumulate * rates.step(stage.batch_per_domain)}


FULL = 1000 * 96.0  # seconds of the recipe


@pytest.mark.parametrize(
    ("share", "size", "batch", "steps"),
    [
        (1.0, None, None, None),
        (0.8, 192, None, None),
        (0.6, 160, None, None),
        (0.33, 128, None, None),
        (0.2, 128, 16, None),
        (0.1, 128, 16, 610),
        (0.035, 96, 16, 380),
        (0.014, 64, 16, 340),
        (0.01, 64, 16, 240),
    ],
)
def test_things_are_given_up_in_the_order_of_the_page(
    share: float, size: int | None, batch: int | None, steps: int | None
) -> None:
    config = resolve({"data": {"path": "."}})
    chosen = plans.fitting(Known(config), share * FULL * 1.001, set())
    assert chosen.get("student.image_size") == size
    assert chosen.get("stages.distill.batch_per_domain") == batch
    assert chosen.get("stages.distill.steps") == steps
    assert not any(name.startswith("stages.align") for name in chosen), "features cost next to nothing"


def test_what_is_given_is_never_changed() -> None:
    config = resolve({"data": {"path": "."}})
    given = {"student.image_size", "stages.distill.batch_per_domain"}
    assert plans.fitting(Known(config), FULL / 2, given) == {"stages.distill.steps": 500}
    assert plans.fitting(Known(config), FULL / 1000, {*given, "stages.distill.steps"}) == {}


def test_evaluations_take_a_tenth_of_the_time_at_most() -> None:
    config = resolve({"data": {"path": "."}})
    chosen = plans.fitting(Known(config, evaluating=2000.0), FULL / 2, {"student.image_size"})
    stage = plans.planned(config, chosen).stages["distill"]
    assert stage.eval_every is not None
    assert 0.03 < 2000 * stage.steps / stage.eval_every / (FULL / 2) <= 0.1


@pytest.mark.parametrize(
    "settings",
    [{"student": {"image_size": 96}}, {"stages": {"distill": {"steps": 5}}}, {"train": {"accelerator": "cuda"}}],
)
def test_settings_that_say_how_long_to_train_are_taken_as_they_are(settings: dict[str, Any]) -> None:
    settings = {"data": {"path": "."}, **settings}
    assert limit_of(settings, "default", "auto", resolve(settings)) is None


def test_without_any_the_default_is_twenty_minutes_on_a_cpu() -> None:
    settings = {"data": {"path": "."}, "train": {"accelerator": "cpu"}}
    assert limit_of(settings, "default", "auto", resolve(settings)) == 20
    assert limit_of(settings, "paper", "auto", resolve(settings, "paper")) is None
    assert limit_of(settings, "default", 5, resolve(settings)) == 5
    assert limit_of(settings, "default", None, resolve(settings)) is None


@pytest.mark.parametrize(
    ("settings", "possible"),
    [
        ({}, True),
        ({"train": {"quick": "off"}}, False),
        ({"train": {"accelerator": "cuda"}}, False),
        ({"train": {"compile": True}}, False),
        ({"method": "mixup"}, False),
        ({"method": "sd"}, False),
        ({"method": "erm++"}, True),
        ({"method": "erm++", "train": {"swad": True, "retrain": "on"}}, False),
        ({"method": "lp"}, False),
    ],
)
def test_lower_blocks_are_given_up_where_nothing_speaks_against_it(settings: dict[str, Any], possible: bool) -> None:
    settings = merge({"data": {"path": "."}, "train": {"accelerator": "cpu"}}, settings)
    assert can_be_quick(settings, "default", resolve(settings)) is possible


def test_a_last_layer_alone_gives_up_nothing_for_steps_that_nobody_takes(quick: dict[str, Any], tmp_path: Path) -> None:
    alone = merge(quick, {"train": {"head": "only"}})
    plan = plan_run(alone, store=tmp_path / "store", minutes=0.02)
    assert not plan.chosen and not {"align", "distill"} & set(plan.seconds)
    assert "features computed once" in plan.summary()[0]


def test_what_is_trained_twice_has_half_the_steps() -> None:
    once, twice = (Known(resolve({"data": {"path": "."}, "train": {"retrain": again}})) for again in ("off", "on"))
    assert (once.passes, twice.passes) == (1, 2)
    steps = [plans.fitting(one, FULL / 40, {"student.image_size"})["stages.distill.steps"] for one in (once, twice)]
    assert steps == [50, 20]


def test_micro_batches_take_their_time_too() -> None:
    config = resolve({"data": {"path": "."}, "stages": {"distill": {"accumulate": 2}}})
    given = {"student.image_size", "stages.distill.batch_per_domain"}
    assert plans.fitting(Known(config), FULL, given) == {"stages.distill.steps": 500}, "half of what the recipe takes"
    found = plans.fitting(Known(config, evaluating=FULL / 150), FULL, given)
    assert found == {"stages.distill.steps": 500}, "ten evaluations take less than a tenth of the time"


class Cut(Known):
    """A machine on which a thousand seconds pass until the activations are cached; then steps are ten times quicker."""

    def rates(self, size: int, config: RunConfig) -> Rates:
        return Rates(0.1 * (size / 224) ** 2, 0, 0, 0, 0, self.evaluating, 3, 1, 0)

    def seconds(self, config: RunConfig, rates: Rates) -> dict[str, float]:
        return {**super().seconds(config, rates), "lower blocks": 1000.0}


@pytest.mark.parametrize(
    ("limit", "steps", "quick"), [(4001.0, 100, True), (3999.0, 100, False), (4001.0, 1000, False)]
)
def test_activations_are_cached_where_that_takes_little_time_and_brings_steps(
    limit: float, steps: int, quick: bool
) -> None:
    config, before = resolve({"data": {"path": "."}}), {"student.image_size": 64, "stages.distill.steps": steps}
    bench, chosen = quicker(Known(config), Cut, before, limit, set())
    assert isinstance(bench, Cut) is quick and bench.config.train.quick == ("auto" if quick else "off")
    assert chosen == ({"train.quick": "auto", "student.image_size": 64} if quick else before)


@pytest.fixture
def unhurried(quick: dict[str, Any]) -> dict[str, Any]:
    """Return settings of a run that would take longer than it may."""
    return merge(quick, {"stages": {"distill": {"steps": None}}, "student": {"image_size": 32}})


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(unhurried: dict[str, Any], tmp_path: Path) -> None:
    settings = {**unhurried, "stages": {key: {} for key in unhurried["stages"]}}
    plan = plan_run(settings, store=tmp_path / "store", minutes=0.05)
    words = plan.summary()
    assert f"{plan.config.stages['distill'].steps} steps of" in words[0] and "at 32 px" in words[0]
    assert "on this CPU" in words[1] and "queries (0 cached), free" in words[2]
    assert "the full recipe (32 px, 1,000 steps of" in words[-2]
    assert max(map(len, words)) <= 80
    assert plan.chosen["stages.distill.steps"] < 1000
    assert not list(tmp_path.glob("run*"))
    with EmbeddingStore(tmp_path / "store") as store:
        assert not store.teachers(), "nobody was queried for good"


@pytest.mark.parametrize(("whole", "upper"), [(20, 600), (300, 600), (20, 10)])
def test_the_upper_blocks_alone_are_trained_where_all_would_have_few_steps(
    whole: int, upper: int, unhurried: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "ONCE", 1e9)  # however slow the machine is
    monkeypatch.setattr(plans, "fitting", lambda bench, *_: {"stages.distill.steps": upper if bench.quick else whole})
    settings = {**unhurried, "stages": {key: {} for key in unhurried["stages"]}}
    plan = plan_run(settings, store=tmp_path / "store", minutes=0.5)
    line = "  of the upper blocks alone, since there is little time (--no-quick: of all)"
    if (whole, upper) == (20, 600):
        assert plan.chosen == {"train.quick": "auto", "stages.distill.steps": 600} and line in plan.summary()
    else:
        assert plan.chosen == {"stages.distill.steps": whole} and line not in plan.summary()
    given = merge(settings, {"train": {"quick": "off"}})
    assert plan_run(given, store=tmp_path / "store", minutes=0.5).chosen == {"stages.distill.steps": whole}


def test_a_plan_is_decided_once(unhurried: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = merge(unhurried, {"stages": {"distill": {"batch_per_domain": 2}}})
    del settings["stages"]["distill"]["steps"]
    out, store, seen = tmp_path / "run", tmp_path / "store", list[RunPlan]()
    few = lambda plan: seen.append(plan)  # noqa: E731
    real, slow = plans.fitting, {"stages.distill.steps": 6, "train.quick": "auto"}
    monkeypatch.setattr(plans, "fitting", lambda *given: {**real(*given), **slow})  # a slow machine
    with pytest.raises(Interrupted):
        vl2v.distill(settings, out, store=store, minutes=0.01, on_plan=few, progress=stopping("distill", 4))
    monkeypatch.setattr(plans, "fitting", lambda *given: {"stages.distill.steps": 12})  # it is quicker by now
    run = vl2v.distill(settings, out, store=store, minutes=0.01, on_plan=few)
    assert len(seen) == 1 and run.config.stages["distill"].steps == 6
    made = json.loads((out / "plan.json").read_text())
    assert made["chosen"]["stages.distill.steps"] == 6 and made["seconds"]["distill"] > 0
    given = merge(settings, {"stages": {"distill": {"steps": 6}}, "train": {"quick": "auto"}})
    again = vl2v.distill(given, tmp_path / "other", store=store)
    assert again.evaluation is not None and run.evaluation is not None
    assert again.evaluation.to_json() == run.evaluation.to_json(), "planned or given, the same steps end alike"
    with pytest.raises(RunError, match=r"stages\.distill\.steps"):
        vl2v.distill(settings, out, store=store, minutes=0.02)
    with pytest.raises(RunError, match=r"train\.quick"):
        vl2v.distill(merge(settings, {"train": {"quick": "off"}}), out, store=store, minutes=0.01)


class Counting(Bench):
    """A machine on which an image takes a second to pass through the backbone, and nothing else takes any time."""

    weights = 0

    def rates(self, size: int, config: RunConfig) -> Rates:
        return Rates(0, 0, 1, 0, 0, 0, self.domains, 1, 0)

    def cached_step(self, stage: Stage) -> float:
        return 0.0


def passed(settings: dict[str, Any], folder: Path, store: Path) -> dict[str, int]:
    """Return how many images a run passes through the backbone before it trains that."""
    found, stage = {"student's features": 0, "lower blocks": 0}, next(iter(settings["stages"]))
    trained = list[str]()

    def progress(task: str, done: int, total: int, remark: str) -> None:
        trained.extend([task] if task == stage and done else [])
        if task in found and done == total and not trained:
            found[task] += total

    vl2v.distill(settings, folder, store=store, minutes=None, progress=progress)
    return found


POOL = {"select": 5, "select_from": "unlabelled"}


@pytest.mark.parametrize(
    ("method", "teacher", "train"),
    [
        ("adip", {}, {}),
        ("adip", {**POOL, "strategy": "random"}, {}),
        ("adip", {**POOL, "strategy": "kcenter"}, {}),
        ("adip", {**POOL, "select": 1000, "strategy": "kcenter"}, {}),
        ("adip-plus", {**POOL, "strategy": "uncertainty"}, {}),
        ("kd", {**POOL, "strategy": "nearest", "select": 1}, {"head": "start"}),
        ("kd", {**POOL, "strategy": "balanced"}, {"quick": "blocks.3"}),
        ("erm", {}, {"head": "start", "retrain": "on"}),
    ],
)
def test_as_many_images_are_forecast_as_a_run_passes(
    method: str, teacher: dict[str, Any], train: dict[str, Any], shapes: Path, recording: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    settings = merge(quick_settings(shapes, recording, method), {"teacher": teacher, "train": train})
    if method != "erm":
        settings["data"]["unlabelled"] = str(shapes / "paint")
    monkeypatch.setattr(plans, "Bench", Counting)
    plan = plan_run(settings, store=tmp_path / "store", minutes=None)
    forecast = plan.seconds["features"], plan.seconds.get("lower blocks", 0)
    assert forecast == tuple(passed(settings, tmp_path / "run", tmp_path / "store").values())


@pytest.mark.parametrize(
    ("teacher", "unlabelled"),
    [
        ({"select": "known"}, 0),
        ({"select": 30, "strategy": "random"}, 30 * 36 / (58 + 36)),
        ({"select": 1000, "strategy": "random"}, 36),
        ({"select": 1, "select_from": "unlabelled", "strategy": "random"}, 1),
    ],
)
def test_images_without_labels_are_counted_where_they_are_queried(
    teacher: dict[str, Any], unlabelled: float, quick: dict[str, Any], shapes: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    settings = merge(quick, {"data": {"unlabelled": str(shapes / "paint")}, "teacher": teacher})
    monkeypatch.setattr(plans, "Bench", Counting)
    plan = plan_run(settings, store=tmp_path / "store", minutes=None)
    val, training = 14, 58
    assert plan.seconds["features"] == val + training + round(unlabelled)
    assert plan.domains == 2 + (unlabelled > 0)


def test_only_stages_on_features_want_these_each_time_that_a_run_is_trained(
    shapes: Path, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "Bench", Counting)

    def features(method: str, **train: str) -> float:
        settings = merge(quick_settings(shapes, recording, method), {"train": train})
        return plan_run(settings, store=tmp_path / "store", minutes=None).seconds["features"]

    once = features("adip", retrain="off")
    assert features("adip", retrain="on") == 2 * once
    assert features("kd", head="start", retrain="on") == once
    assert features("kd", retrain="on") == 0


@pytest.mark.parametrize(
    ("method", "quick"), [("adip-plus", "off"), ("adip-plus", "auto"), ("erm", "off"), ("lp", "off"), ("rise", "auto")]
)
def test_every_kind_of_method_can_be_planned(
    method: str, quick: str, shapes: Path, recording: Path, tmp_path: Path
) -> None:
    settings = merge(quick_settings(shapes, recording, method), {"train": {"quick": quick}})
    plan = plan_run(settings, store=tmp_path / "store", minutes=None)
    assert not plan.chosen and plan.seconds[list(plan.config.stages)[-1]] > 0


def test_where_images_lie_is_no_part_of_what_a_plan_is_made_for(shapes: Path, tmp_path: Path) -> None:
    one, other = (
        resolve(
            {"data": {"path": str(path), "unlabelled": [str(path / "ink")]}, "teacher": {"spec": "recorded:vendor"}}
        )
        for path in (shapes, tmp_path)
    )
    assert plans.request_of(one, 5) == plans.request_of(other, 5)


def test_a_plan_is_kept_where_images_move_before_it_trains(
    shapes: Path, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*given: Any) -> Any:
        raise Interrupted

    monkeypatch.setattr("vl2v.embeddings.session.TeacherSession.query", stopped)
    before, after = Path(shutil.copytree(shapes, tmp_path / "before")), tmp_path / "after"
    made = []
    for path in (before, after):
        if path is after:
            before.rename(after)
        with pytest.raises(Interrupted):
            vl2v.distill(quick_settings(path, recording), tmp_path / "run", minutes=5, store=tmp_path / "store")
        made.append((tmp_path / "run" / "plan.json").read_text())
    assert made[0] == made[1] and vl2v.Run(tmp_path / "run").config.data.path == after


def test_another_folder_without_labels_is_planned_anew(shapes: Path) -> None:
    requests = []
    for folders in (None, str(shapes / "ink"), [str(shapes / "ink")], [str(shapes / "ink"), str(shapes / "paint")]):
        config = resolve({"data": {"path": str(shapes), "unlabelled": folders}, "teacher": {"spec": "recorded:vendor"}})
        requests.append(plans.request_of(config, 5))
    none, one, listed, two = requests
    assert none != one == listed != two
