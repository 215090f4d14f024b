"""The methods that ADiP is compared with: each loss against its paper's formula, written out."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vl2v.methods import Output, Targets, find_method, own_settings
from vl2v.methods.adip import cosine_loss
from vl2v.methods.averaging import BetaAverage, Interpolation, Scores, Soup
from vl2v.methods.distillation import cosine_distance, cosines, kd_loss, squared_distance
from vl2v.methods.finetuning import cross_entropy, text_cross_entropy
from vl2v.methods.regularized import between_domains, climb, mixed_cross_entropy, oracle

N, D, C, P = 6, 5, 3, 4
LABELS = torch.tensor([0, 2, 1, 2, 0, 1])
DOMAINS = torch.tensor([0, 0, 1, 1, 2, 2])


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def targets() -> Targets:
    images, texts, anchors = (
        normalize(random(*shape, seed=i), dim=-1) for i, shape in enumerate([(N, D), (C, D), (C, 2, D)])
    )
    return Targets(LABELS, images, texts, 7.0, DOMAINS, anchors)


@pytest.fixture
def output() -> Output:
    return Output(random(N, P, seed=5), random(N, D, seed=6))


def made(method: str, settings: dict[str, float]) -> Any:
    task = find_method(method)
    return task(own_settings(task, settings))


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    exp = logits.double().exp()
    return -(exp[range(len(labels)), labels] / exp.sum(1)).log()


@pytest.mark.parametrize("method", ["kd", "adip-plus"])
def test_an_adapted_teacher_takes_the_place_of_the_zero_shot_one(method, output, targets):
    texts = targets.texts
    same = torch.cat([targets.scale * texts, torch.zeros(C, 1)], 1)
    other = torch.cat([random(C, D, seed=7), random(C, 1, seed=8)], 1)
    assert torch.allclose(replace(targets, adapted=same).logits(), targets.logits())
    assert torch.allclose(replace(targets, adapted=other).logits(), targets.images @ other[:, :D].T + other[:, D])
    output = output if method == "adip-plus" else Output(output.features, random(N, C, seed=9))
    task = made(method, {"lambda": 0.5, "temperature": 2.0} if method == "adip-plus" else {})
    step = task.stages[-1].training_step
    old = step(output, targets)["loss"]
    assert torch.allclose(step(output, replace(targets, adapted=same))["loss"], old)
    assert not torch.allclose(step(output, replace(targets, adapted=other))["loss"], old)


def test_erm_text_is_cross_entropy_under_the_frozen_texts(output, targets):
    expected = negative_log_likelihood(7 * output.z @ targets.texts.T, LABELS).mean()
    assert text_cross_entropy(output, targets)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_vl2v_adds_the_divergence_between_classes(output, targets):
    teacher = (7 / 4 * targets.images @ targets.texts.T).double().softmax(1)
    student = (7 / 4 * output.z @ targets.texts.T).double().softmax(1)
    divergence = (teacher * (teacher / student).log()).sum(1).mean()
    expected = cosine_loss(output, targets, 0.5)["loss"].item() + 0.5 * 16 / 7 * divergence.item()
    task = made("adip-plus", {"lambda": 0.5, "class_weight": 0.5, "temperature": 4.0})
    assert task.classwise(output, targets)["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_feature_distillation_is_one_minus_the_cosine(output, targets):
    expected = np.mean(
        [1 - float(normalize(p, dim=0) @ i) for p, i in zip(output.projected, targets.images, strict=True)]
    )
    assert cosine_distance(output, targets)["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_simkd_is_the_squared_distance_of_the_projection_itself(output, targets):
    expected = np.mean([float(((p - i) ** 2).sum()) for p, i in zip(output.projected, targets.images, strict=True)])
    assert squared_distance(output, targets)["loss"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [cosine_distance, squared_distance])
def test_an_image_that_was_not_queried_adds_nothing(loss, output, targets):
    images = targets.images.clone()
    images[2:] = 0
    some = Targets(LABELS, images, targets.texts)
    of_queried = Targets(LABELS[:2], images[:2], targets.texts)
    first = Output(output.features[:2], output.projected[:2])
    assert loss(output, some)["loss"].item() == pytest.approx(loss(first, of_queried)["loss"].item() * 2 / N, rel=1e-5)


def test_rise_adds_the_absolute_and_the_relative_distance(targets):
    logits, embedding = random(N, C, seed=8), random(N, D, seed=9)
    output = Output(random(N, P, seed=5), logits, embedding)
    e = normalize(embedding, dim=-1)
    absolute, relative = [], []
    for i, y in enumerate(LABELS):
        text, anchors = targets.texts[y], targets.anchors[y]
        absolute.append(1 - e[i] @ text)
        student = torch.stack([e[i] @ a for a in anchors]).softmax(0)
        teacher = torch.stack([text @ a for a in anchors]).softmax(0)
        relative.append(((student - teacher) ** 2).mean())
    distillation = kd_loss(output, targets, 3.0, 0.9)["loss"]
    expected = distillation + 0.5 * (torch.stack(absolute).mean() + 10 * torch.stack(relative).mean())
    assert made("rise", {"temperature": 3.0, "kd_weight": 0.9}).training_step(output, targets)[
        "loss"
    ].item() == pytest.approx(expected.item(), rel=1e-5)


def test_rise_uses_the_published_weights():
    from vl2v.runs.settings import resolve

    loss = resolve({"method": "rise", "data": {"path": "x"}}).loss
    assert loss == {"temperature": 3.0, "kd_weight": 0.9}


def softened(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits / 3)
    return exp / exp.sum(-1, keepdims=True)


@pytest.mark.parametrize(("done", "chosen"), [(0.0, [1, 4]), (0.75, [1, 4]), (0.76, range(10))])
def test_scmd_distils_the_hardest_fifth_and_at_last_all(done, chosen):
    """Two of ten images are a fifth; image 4 has no label, and counts as of the class that the teacher names."""
    logits, cosines, images = (random(10, n, seed=i) for i, n in enumerate((C, D, D)))
    images, texts = normalize(images, dim=-1), normalize(random(C, D, seed=3), dim=-1)
    teacher = (7 * images @ texts.T).double().numpy()
    labels = logits.argmax(-1)  # easy ones
    labels[1], labels[4] = logits[1].argmin(), -1
    logits[4, teacher[4].argmax()] -= 9
    v, e = logits.double().numpy(), (cosines @ texts.T).double().numpy()
    expected = []
    for i in chosen:
        hard = 0 if i == 4 else np.log(np.exp(v[i]).sum()) - v[i, labels[i]]
        t = softened(teacher[i])
        divergences = [(t * np.log(t / softened(other[i]))).sum() for other in (v, e)]
        expected.append(hard + 0.5 * 9 * sum(divergences))
    targets = Targets(labels, images, texts, 7.0, done=done)
    output = Output(random(10, P, seed=4), logits, auxiliary=cosines)
    terms = made("scmd", {}).training_step(output, targets)
    assert terms["loss"].item() == pytest.approx(np.mean(expected), rel=1e-5)
    assert sum(terms[name].item() for name in ("label", "soft", "modal")) == pytest.approx(terms["loss"].item())


def test_scmds_cosines_have_a_scale_that_learns_up_to_a_hundred():
    net = cosines(SimpleNamespace(width=P), D)
    features = random(N, P, seed=1)
    assert net(features, Output(features, features)).norm(dim=-1).tolist() == pytest.approx([1 / 0.07] * N, rel=1e-5)
    with torch.no_grad():
        net.log_scale += 9
    found = net(features, Output(features, features))
    assert found.norm(dim=-1).tolist() == pytest.approx([100] * N, rel=1e-5)
    assert torch.allclose(found / 100, normalize(features @ net.projector.weight.T, dim=-1), atol=1e-6)
    found.sum().backward()
    assert net.log_scale.grad.abs() > 0 and net.projector.weight.grad.abs().sum() > 0


def test_mixup_mixes_every_image_with_one_of_another_domain(targets):
    torch.manual_seed(3)
    pixels = torch.arange(N).view(N, 1, 1, 1).expand(N, 2, 2, 3).to(torch.uint8)
    mixed, blended = between_domains(0.2)(pixels, targets)
    share = blended.share
    assert all(len(share[domain == DOMAINS].unique()) == 1 for domain in range(3)) and len(share.unique()) == 3
    partner = ((mixed[:, 0, 0, 0] - share * torch.arange(N)) / (1 - share)).round().long()
    assert (DOMAINS[partner] != DOMAINS).all()
    assert (LABELS[partner] == blended.partners).all()
    assert sorted(partner.tolist()) == list(range(N))
    logits = random(N, C, seed=4)
    expected = share * negative_log_likelihood(logits, LABELS) + (1 - share) * negative_log_likelihood(
        logits, LABELS[partner]
    )
    assert mixed_cross_entropy(Output(logits, logits), blended)["loss"].item() == pytest.approx(
        expected.mean().item(), rel=1e-5
    )


def test_mixup_of_one_domain_mixes_each_image_with_another_of_it(targets):
    torch.manual_seed(3)
    pixels = torch.arange(N).view(N, 1, 1, 1).expand(N, 2, 2, 3).to(torch.uint8)
    mixed, blended = between_domains(0.2)(pixels, replace(targets, domains=torch.zeros(N, dtype=torch.long)))
    partner = ((mixed[:, 0, 0, 0] - blended.share * torch.arange(N)) / (1 - blended.share)).round().long()
    assert (partner != torch.arange(N)).all() and (LABELS[partner] == blended.partners).all()


def test_coral_adds_the_differences_of_means_and_covariances(targets):
    features, logits = random(N, P, seed=1), random(N, C, seed=2)
    penalties = []
    for a, b in combinations([features[d == DOMAINS].double().numpy() for d in range(3)], 2):
        means = ((a.mean(0) - b.mean(0)) ** 2).mean()
        penalties.append(means + ((np.cov(a.T) - np.cov(b.T)) ** 2).mean())
    output = Output(features, logits)
    expected = cross_entropy(output, targets)["loss"].item() + 2.0 * np.mean(penalties)
    assert made("coral", {"coral_weight": 2.0}).training_step(output, targets)["loss"].item() == pytest.approx(
        expected, rel=1e-5
    )


def test_clipoods_margins_grow_with_the_distance_of_texts(output, targets):
    cosines = output.z @ targets.texts.T
    logits = torch.stack(
        [
            torch.stack([7 * (cosines[i, c] + 0.3 * (1 - targets.texts[y] @ targets.texts[c])) for c in range(C)])
            for i, y in enumerate(LABELS)
        ]
    )
    expected = negative_log_likelihood(logits, LABELS).mean()
    assert made("clipood", {"margin": 0.3}).training_step(output, targets)["loss"].item() == pytest.approx(
        expected.item(), rel=1e-5
    )
    assert made("clipood", {"margin": 0.0}).training_step(output, targets)["loss"].item() == pytest.approx(
        text_cross_entropy(output, targets)["loss"].item(), rel=1e-6
    )


def test_miro_is_the_gaussian_bound_on_the_pretrained_features():
    class Net(nn.Module):
        width = P

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(random(P, P, seed=0))

        def features(self, x: Tensor) -> Tensor:
            return x @ self.weight

    net = Net()
    auxiliary = oracle(net, 0)
    x = random(N, P, seed=1)
    known = net.features(x).detach()
    with torch.no_grad():
        net.weight += 0.1
    now = net.features(x)
    variance = 0.1 + 1e-5
    expected = 0.3 / 2 * (np.log(variance) + ((now - known) ** 2 / variance)).mean()
    logits = random(N, C, seed=2)
    output = Output(now, logits, auxiliary=auxiliary(x, Output(now, logits)))
    terms = made("miro", {"miro_weight": 0.3}).training_step(output, Targets(LABELS))
    assert terms["penalty"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert terms["loss"].item() == pytest.approx(
        negative_log_likelihood(logits, LABELS).mean().item() + expected.item(), rel=1e-5
    )
    terms["loss"].backward()
    assert net.weight.grad.abs().sum() > 0
    assert [name for name, p in auxiliary.named_parameters() if p.requires_grad] == ["raw"]


def test_stages_of_methods_that_change_the_step_or_the_weights():
    made = {name: find_method(name)() for name in ("sam", "sagm", "soup", "wise-ft", "clipood", "scmd")}
    for name, step in {"sam": {"rho": 0.05}, "sagm": {"rho": 0.05, "alpha": 1e-3, "first": 0.5}}.items():
        assert made[name].stages[0].second_pass.keywords == step
    assert [stage.key for stage in made["soup"].stages] == ["probe", *["finetune"] * 3]
    averagers = {name: [[new() for new in stage.averagers] for stage in task.stages] for name, task in made.items()}
    assert [(a.member, a.members) for stage in averagers["soup"] for a in stage] == [(1, 3), (2, 3), (3, 3)]
    assert [a.shares for a in averagers["wise-ft"][0]] == [(0.5,)]
    assert [type(a) for a in averagers["clipood"][0]] == [BetaAverage]
    (average,) = averagers["scmd"][0]
    for step in range(1, 1001):
        average.step({"w": torch.tensor([float(step)])})
    assert average.finish({}, {}, lambda weights: Scores(0, 0))["w"].item() == pytest.approx((299 + 1000) / 2)


def test_the_gradient_is_taken_where_the_slope_leads_up():
    weights = {"w": torch.tensor([3.0, 4.0], requires_grad=True)}

    def again():
        weights["w"].grad = weights["w"].detach().clone()  # of |w|^2 / 2

    again()
    climb(weights, again, lambda x: x, rho=0.5, alpha=0.1, first=0.25)
    assert weights["w"].tolist() == [3, 4]
    assert weights["w"].grad.tolist() == pytest.approx([3 * (1 + 0.75 * (0.5 / 5 - 0.1)), 4.0], rel=1e-6)
    again()
    climb(weights, again, lambda x: x, rho=0.5)
    assert weights["w"].grad.tolist() == pytest.approx([3.3, 4.4])  # half a unit further along (3, 4) / 5


@pytest.mark.parametrize("cut", [0, 2])
def test_the_beta_average_weighs_the_ends_most_and_continues_from_its_state(cut):
    average = BetaAverage()
    average.begin({"w": torch.tensor([0.0])}, 4)
    for step in range(1, 5):
        average.step({"w": torch.tensor([float(step)])})
        if step == cut:
            numbers, tensors = average.state()
            average = BetaAverage()
            average.begin({"w": torch.tensor([9.0])}, 4)
            average.restore(numbers, tensors)
    shares = [((t + 0.5) / 5 * (4.5 - t) / 5) ** -0.5 for t in range(5)]
    mean = average.finish({}, {}, lambda weights: Scores(0, 0))["w"].item()
    assert mean == pytest.approx(sum(t * share for t, share in enumerate(shares)) / sum(shares), rel=1e-6)


def test_an_interpolation_ends_at_the_first_of_the_best():
    worth = {0.0: 0.5, 0.5: 0.9, 1.0: 0.9}
    start, trained = {"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}
    found = Interpolation([0.0, 0.5, 1.0]).finish(trained, start, lambda w: Scores(worth[w["w"].item()], 1.0))
    assert found["w"].item() == 0.5


def test_members_of_a_soup_start_alike_and_end_in_their_mean():
    start, mean = {"w": torch.tensor([0.0])}, {}
    for member, weight in ((1, 3.0), (2, 6.0), (3, 9.0)):
        soup = Soup(member, 3)
        soup.take_over(mean)
        ended = soup.finish({"w": torch.tensor([weight])}, start, lambda weights: Scores(0, 0))
        mean = soup.hands_on
        assert ended["w"].item() == (6.0 if member == 3 else 0.0)
    assert not mean


def test_making_a_method_is_light():
    code = """
import sys
from vl2v.methods import METHODS
for task in METHODS.values():
    task().stages
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
