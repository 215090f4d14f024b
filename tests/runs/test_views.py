"""Views: fixed ones are shared and never bought twice; an online teacher is queried anew."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

import vl2v
from vendor.servers import Stub, running
from vl2v.data import audit, open_dataset
from vl2v.data.decoding import decode
from vl2v.embeddings.plan import Views, fixed_views
from vl2v.embeddings.schema import image_key
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import ConfigError, StudentError
from vl2v.export.network import Network, as_export, card_of
from vl2v.methods import task_of
from vl2v.runs.settings import resolve
from vl2v.runs.train import new_student
from vl2v.teachers import online_teacher, the_teacher, tower_of


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> Stub:
    """Return the teacher that every spec opens: it has an embedding of any image."""
    stub = Stub()
    monkeypatch.setattr("vl2v.teachers.open_teacher", lambda spec, **options: stub)
    return stub


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def with_(settings: dict[str, Any], section: str, **values: Any) -> dict[str, Any]:
    return {**settings, section: {**settings.get(section, {}), **values}}


def weights(run: vl2v.Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "student" / "student.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def asked_about(store: Path) -> int:
    with EmbeddingStore(store, read_only=True) as opened:
        return sum(question.count for question in opened.queries() if question.kind == "image")


def test_views_of_photos_decoded_smaller_have_names_of_their_own(quick: dict[str, Any], tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.jpg")
    data = (tmp_path / "photo.jpg").read_bytes()
    plain, shrunk = (
        fixed_views(resolve(with_(with_(quick, "teacher", views=2), "data", shrink=shrink)), 32)
        for shrink in (False, True)
    )
    assert (plain.enough, shrunk.enough) == (0, 64)
    assert plain.names[0] == shrunk.names[0] and not {*plain.names[1:]} & {*shrunk.names[1:]}
    sent, others = (views.encoded(data, b"photo", (0, 1)) for views in (plain, shrunk))
    assert sent[0] == others[0] == data and sent[1] != others[1]
    small = Views(2, 0, 32, shrink=True).pixels(decode(data, enough=64), b"photo", 1)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(others[1]))), small)


def test_what_was_embedded_is_all_that_runs_of_any_seed_and_target_want(
    quick: dict[str, Any], teacher: Stub, store: Path, tmp_path: Path
) -> None:
    settings = with_(with_(quick, "teacher", views=2), "data", target=[])
    plan = vl2v.embed(settings, store=store).plan
    assert "in 3 views (clean, and 2 of 32 px): 324 queries, 0 cached, 324 pending" in plan.summary()
    for seed, target in ((0, "paint"), (1, "paint"), (0, "ink")):
        run = with_({**settings, "seed": seed}, "data", target=[target])
        vl2v.distill(run, tmp_path / f"{target}{seed}", store=store)
    assert asked_about(store) == 324 == 3 * 36 * 3
    again = vl2v.distill(with_(settings, "data", target=["paint"]), tmp_path / "again", store=store)
    assert same(weights(again), weights(vl2v.Run(tmp_path / "paint0")))
    other = vl2v.embed(with_(settings, "teacher", view_seed=1), store=store, dry_run=True).plan
    assert (other.cached, len(other.pending)) == (108, 216), "the clean ones are known"


def test_views_are_of_the_size_that_the_student_has(quick: dict[str, Any], teacher: Stub, store: Path) -> None:
    settings = with_(quick, "teacher", views=1, online=False)
    assert vl2v.embed(settings, store=store, dry_run=True).plan.views.size == 32
    settings["student"] = {"name": "test_efficientnet"}
    assert vl2v.embed(settings, store=store, dry_run=True).plan.views.size == 160  # its own
    assert vl2v.embed(settings, preset="paper", store=store, dry_run=True).plan.views.size == 224
    with pytest.raises(StudentError, match="no such model; did you mean test_efficientnet"):
        vl2v.embed(with_(settings, "student", name="test_efficientnett"), store=store, dry_run=True)


def test_student_and_teacher_have_each_their_fit_everywhere(
    quick: dict[str, Any], teacher: Stub, store: Path, tmp_path: Path
) -> None:
    settings = with_(with_(quick, "teacher", fit="pad"), "data", fit="crop")
    run = vl2v.distill(settings, tmp_path / "run", store=store)
    paths = [run.folder.parent / f"{name}.png" for name in ("wide", "middle")]
    wide = Image.new("RGB", (96, 32), "white")
    wide.paste("black", (40, 8, 56, 24))
    wide.save(paths[0])
    wide.crop((32, 0, 64, 32)).save(paths[1])
    classifier = vl2v.load(run)
    assert classifier.fit == "crop" and classifier.about["teacher"]["fit"] == "pad"
    one, other = (each.probabilities for each in classifier.predict(paths))
    assert one == other
    exported = as_export(Network(classifier, form="closed"), card_of(classifier, "closed", "fp32"))
    assert exported.card["fit"] == exported.fit == "crop"
    assert all(
        exported.view(path.read_bytes()).tolist() == classifier.view(paths[1].read_bytes()).tolist() for path in paths
    )
    with EmbeddingStore(store, read_only=True) as opened:
        found = audit(open_dataset(settings["data"]["path"]))
        known = {
            view: opened.cached(teacher.fingerprint, [image_key(found.sha256[0], view)])[0]
            for view in ("clean", "clean/pad")
        }
    assert known == {"clean": False, "clean/pad": True}
    assert vl2v.embed(settings, store=store, dry_run=True).plan.cached
    assert vl2v.evaluate(run, store=store).of("teacher, zero-shot", "seen")


def test_views_of_another_size_are_reported(quick: dict[str, Any], teacher: Stub, store: Path, tmp_path: Path) -> None:
    settings = with_(quick, "teacher", views=1)
    vl2v.embed(with_(settings, "student", image_size=48), store=store)
    result: list[str] = []
    vl2v.distill(settings, tmp_path / "run", store=store, progress=lambda what, *_: result.append(what))
    assert "querying stub:m about views of 32 px, those cached are of 48 px" in result


def test_views_of_another_size_are_not_bought_by_mistake(
    quick: dict[str, Any], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path / "vendor", price=20) as vendor:
        monkeypatch.setenv("VL2V_API_KEY", vendor.key)
        spec = f"openai-compatible:{vendor.url}/v1#stub:m"
        settings = with_(quick, "teacher", spec=spec, views=1, logit_scale=10.0)
        vl2v.embed(with_(settings, "student", image_size=48), store=store, budget=1)
        sold = vendor.meter.sold("client")
        with pytest.raises(ConfigError, match=r"of 32 px, those cached are of 48 px; give student\.image_size=48, or"):
            vl2v.distill(settings, tmp_path / "run", store=store, budget=1)
        assert vendor.meter.sold("client") == sold
        vl2v.embed(settings, store=store, budget=1)  # as the message says
        assert vl2v.distill(settings, tmp_path / "run", store=store, budget=1).finished


class WhiteBox(Stub):
    """Counts the batches that it is queried with online."""

    def __init__(self) -> None:
        super().__init__()
        self.online: Counter[tuple[int, ...]] = Counter()

    def embed_pixels(self, pixels: torch.Tensor, **statistics: Any) -> torch.Tensor:
        self.online[tuple(pixels.shape)] += 1
        rows = self.rows([image.numpy().tobytes() for image in pixels])
        return torch.from_numpy(rows)

    def image_tower(self) -> Any:
        raise AssertionError("nobody asked for it")


@pytest.fixture
def white(monkeypatch: pytest.MonkeyPatch) -> WhiteBox:
    box = WhiteBox()
    monkeypatch.setattr("vl2v.teachers.open_teacher", lambda spec, **options: box)
    return box


def projector(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights(vl2v.Run(folder)).items() if "projector" in key}


def test_an_online_teacher_is_queried_by_distill_while_align_learns_from_the_clean_embeddings(
    quick: dict[str, Any], white: WhiteBox, store: Path, tmp_path: Path
) -> None:
    offline = vl2v.distill(quick, tmp_path / "offline", store=store)
    assert not white.online
    online = vl2v.distill(with_(quick, "teacher", online=True), tmp_path / "online", store=store)
    assert white.online == {(8, 3, 32, 32): 6}, "6 steps of Distill, 4 images of each of two domains"
    assert same(projector(offline.folder), projector(online.folder)), "Align was the same"
    assert not same(weights(offline), weights(online))


def test_as_published_align_asks_about_its_batches_too(
    quick: dict[str, Any], white: WhiteBox, store: Path, tmp_path: Path
) -> None:
    settings = with_(with_(quick, "teacher", online=True), "published", align_through_backbone=True)
    vl2v.distill(settings, tmp_path / "run", store=store)
    assert white.online == {(16, 3, 32, 32): 20, (8, 3, 32, 32): 6}


def test_views_cannot_be_both_fixed_and_queried_anew(quick: dict[str, Any], white: WhiteBox, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"set teacher\.online=false, or no views"):
        vl2v.distill(with_(quick, "teacher", online=True, views=2), tmp_path / "run", store=tmp_path / "store")


def test_teacher_and_student_of_self_distillation_agree_before_any_step_as_published() -> None:
    """Both see ImageNet's statistics; with the tower's own for one of them they would not."""
    config = resolve({"method": "sd", "data": {"path": "."}, "teacher": {"spec": "tiny"}}, "paper")
    teacher = the_teacher(config.teacher)
    base = tower_of(teacher, config.student.statistics)
    student = new_student(config, task_of(config), 3, base, teacher.dim).eval()
    assert student.spec.mean == IMAGENET_DEFAULT_MEAN and student.spec.std == IMAGENET_DEFAULT_STD
    size = student.spec.image_size
    pixels = torch.randint(0, 256, (4, size, size, 3), generator=torch.manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        agreed = (student(pixels) * online_teacher(config.teacher, teacher)(pixels)).sum(-1)
        own = online_teacher(config.teacher.model_copy(update={"statistics": "own"}), teacher)(pixels)
        apart = (student(pixels) * own).sum(-1)
    assert agreed.min() > 1 - 1e-5 and apart.max() < 1 - 1e-4
