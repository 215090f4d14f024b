"""Each loss against its formula, written out with numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vl2v.errors import ConfigError
from vl2v.methods import METHODS, Output, Targets, find_method, own_settings
from vl2v.methods.adip import cosine_loss
from vl2v.methods.distillation import kd_loss


def unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


@pytest.fixture
def batch() -> tuple[torch.Tensor, Targets]:
    generator = torch.Generator().manual_seed(0)
    z, images, texts = (unit(torch.randn(n, 5, generator=generator)) for n in (4, 4, 3))
    return z, Targets(torch.tensor([0, 2, 1, 2]), images, texts, scale=7.0)


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 1.0])
def test_adip_is_the_papers_sum_of_two_cosines(batch: tuple[torch.Tensor, Targets], lambda_: float) -> None:
    z, targets = batch
    images, texts = targets.embeddings()
    to_image = (z * images).sum(1).mean()
    to_text = (z * texts[targets.labels]).sum(1).mean()
    expected = -lambda_ * to_image - (1 - lambda_) * to_text
    assert cosine_loss(Output(z, z), targets, lambda_)["loss"] == pytest.approx(expected.item(), abs=1e-6)


def test_images_learn_from_what_they_have(batch: tuple[torch.Tensor, Targets]) -> None:
    z, full = batch
    images, texts = full.embeddings()
    images = images * torch.tensor([[1.0], [1], [0], [0]])  # the last two were not asked about
    targets = Targets(torch.tensor([0, -1, 1, -1]), images, texts)
    both = 0.3 * z[0] @ images[0] + 0.7 * z[0] @ texts[0]
    expected = -(both + z[1] @ images[1] + z[2] @ texts[1] + 0) / 4
    assert cosine_loss(Output(z, z), targets, 0.3)["loss"].item() == pytest.approx(expected.item(), abs=1e-6)
    nothing = Targets(torch.full((4,), -1), torch.zeros_like(images), texts)
    z.requires_grad_(True)
    loss = cosine_loss(Output(z, z), nothing, 0.3)["loss"]
    loss.backward()
    assert loss.item() == 0
    assert z.grad is not None and not z.grad.any()


def test_kd_of_an_image_that_was_not_queried_is_its_cross_entropy(batch: tuple[torch.Tensor, Targets]) -> None:
    _, full = batch
    images, texts = full.embeddings()
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    unasked = Targets(full.labels, torch.zeros_like(images), texts, full.scale)
    hard = torch.nn.functional.cross_entropy(logits, full.labels)
    assert kd_loss(Output(logits, logits), unasked, 3.0, 0.7)["loss"].item() == pytest.approx(hard.item(), rel=1e-6)


def test_kd_is_hintons_divergence_with_the_squared_temperature(batch: tuple[torch.Tensor, Targets]) -> None:
    _, targets = batch
    images, texts = targets.embeddings()
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    tau, weight = 3.0, 0.7
    teacher = np.exp((7.0 * images @ texts.T / tau).double().log_softmax(1).numpy())
    student = (logits / tau).double().log_softmax(1).numpy()
    divergence = (teacher * (np.log(teacher) - student)).sum(1).mean()
    hard = -logits.double().log_softmax(1).numpy()[range(4), targets.labels].mean()
    expected = weight * tau**2 * divergence + (1 - weight) * hard
    assert kd_loss(Output(logits, logits), targets, tau, weight)["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_kd_is_zero_at_the_teachers_own_logits(batch: tuple[torch.Tensor, Targets]) -> None:
    _, targets = batch
    images, texts = targets.embeddings()
    logits = 7.0 * images @ texts.T
    assert kd_loss(Output(logits, logits), targets, 2.0, 1.0)["loss"].item() == pytest.approx(0, abs=1e-5)


def test_adip_aligns_the_projector_and_then_distils_into_the_backbone_alone() -> None:
    method = find_method("adip")()
    assert [(stage.name, stage.trains) for stage in method.stages] == [
        ("align", "projector"),
        ("distill", "backbone"),
    ]
    assert method.head == "text"


def test_only_methods_that_learn_from_images_embeddings_query_them() -> None:
    of = {kind: {name for name, task in METHODS.items() if task.queries == kind} for kind in ("images", "texts")}
    assert of["images"] == {
        "zero-shot",
        "adapted-teacher",
        "adip",
        "adip-plus",
        "sd",
        "kd",
        "pseudo-labels",
        "fd",
        "simkd",
        "rise",
        "scmd",
    }
    assert of["texts"] == {"erm-text", "wise-ft", "clipood"}
    assert all(name == task.name for name, task in METHODS.items())


def test_the_terms_of_a_loss_add_up(batch: tuple[torch.Tensor, Targets]) -> None:
    z, targets = batch
    terms = cosine_loss(Output(z, z), targets, 0.3)
    assert terms["loss"].item() == pytest.approx((terms["image"] + terms["text"]).item(), abs=1e-6)
    terms = kd_loss(Output(z, z[:, :3]), targets, 2.0, 0.5)
    assert terms["loss"].item() == pytest.approx((terms["soft"] + terms["label"]).item(), abs=1e-6)


@pytest.mark.parametrize("method", [name for name, task in METHODS.items() if task.queries == "images"])
@pytest.mark.parametrize(("setting", "values"), [("lambda", (0.2, 0.9)), ("temperature", (1.0, 5.0))])
def test_a_method_has_the_settings_that_its_loss_depends_on_and_no_others(
    method: str, setting: str, values: tuple[float, float], batch: tuple[torch.Tensor, Targets]
) -> None:
    z, targets = batch
    task = find_method(method)
    targets = replace(targets, anchors=torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(2)))
    output = Output(z, z if task.head == "text" else z[:, :3], z, z)
    if setting not in {info.alias or name for name, info in task.Settings.model_fields.items()}:
        with pytest.raises(ConfigError, match=f"loss.{setting}: method {method} has no such setting"):
            own_settings(task, {setting: values[0]})
        return
    chosen = {"lambda": 0.5, "temperature": 2.0}
    made = [
        task().with_chosen({k: v for k, v in chosen.items() if k in task().automatic} | {setting: value})
        for value in values
    ]
    one, other = ([stage.training_step(output, targets)["loss"].item() for stage in each.stages] for each in made)
    assert one != other


def test_a_setting_that_is_not_chosen_yet_is_no_number(batch: tuple[torch.Tensor, Targets]) -> None:
    z, targets = batch
    with pytest.raises(ConfigError, match=r'loss\.lambda = "auto": not chosen yet'):
        find_method("adip-plus")().stages[0].training_step(Output(z, z), targets)


def test_an_unknown_method_is_named_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="'adib': unknown; did you mean adip"):
        find_method("adib")
    with pytest.raises(ConfigError, match="'vl2v': is called adip-plus now"):
        find_method("vl2v")
