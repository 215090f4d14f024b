"""The teacher adapted in closed form to labelled images: where it helps, where it can't, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vl2v.evaluation.adapted import AdaptedTeacher, Embedded, adapted, left_out_predictions
from vl2v.evaluation.metrics import fit_temperature

CLASSES, DIM, EACH = 4, 12, 20


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def drawn(seed: int, domains: int = 3, noise: float = 0.3, misnamed: float = 0.0) -> Embedded:
    """Return images about their class's mean, moved by domain; texts lie at the means, or by `misnamed` elsewhere."""
    rng = np.random.default_rng(seed)
    means, moved = rng.normal(size=(CLASSES, DIM)), 0.5 * rng.normal(size=(domains, DIM))
    labels = np.tile(np.repeat(np.arange(CLASSES), EACH), domains)
    groups = np.repeat(np.arange(domains), CLASSES * EACH)
    images = means[labels] + moved[groups] + noise * DIM**0.5 * rng.normal(size=(len(labels), DIM))
    texts = (1 - misnamed) * means + misnamed * means[::-1]
    return Embedded(unit(images), unit(texts), labels, groups, 20.0)


def accuracy(images: np.ndarray, labels: np.ndarray, teacher: AdaptedTeacher) -> float:
    return float((teacher.logits(images).argmax(1) == labels).mean())


@pytest.mark.parametrize("seed", range(3))
def test_a_teacher_whose_texts_mislead_is_mended_on_a_domain_that_nothing_was_fitted_to(seed: int) -> None:
    embedded = drawn(seed, domains=4, misnamed=0.6)
    unseen = embedded.groups == 3
    found = adapted(embedded.of(~unseen))
    images, labels = embedded.images[unseen], embedded.labels[unseen]
    zero_shot = float(((images @ embedded.texts.T).argmax(1) == labels).mean())
    assert found.blend > 0 and accuracy(images, labels, found) > zero_shot + 0.2
    predictions = left_out_predictions(embedded)
    assert (predictions == embedded.labels).mean() > (
        (embedded.images @ embedded.texts.T).argmax(1) == embedded.labels
    ).mean() + 0.2


@pytest.mark.parametrize("domains", [1, 3])
def test_where_the_texts_are_right_already_the_old_teacher_stays_exactly(domains: int) -> None:
    embedded = drawn(5, domains, noise=0.05)
    found = adapted(embedded)
    assert found.blend == 0 and not found.bias.any()
    np.testing.assert_array_equal(found.weight, np.float32(20.0) * embedded.texts)


def test_a_class_without_images_keeps_its_text() -> None:
    embedded = drawn(2, misnamed=0.6)
    found = adapted(embedded.of(embedded.labels != 1))
    assert found.blend > 0 and found.bias[1] == 0
    centred = embedded.texts - embedded.texts.mean(0)
    cosine = found.weight[1] @ centred[1] / np.linalg.norm(found.weight[1]) / np.linalg.norm(centred[1])
    assert cosine == pytest.approx(1, abs=1e-5)


def test_domains_weigh_alike_however_many_images_each_has() -> None:
    embedded = drawn(3, misnamed=0.6)
    twice = np.concatenate([np.flatnonzero(embedded.groups == 0), np.arange(len(embedded.labels))])
    more = embedded._replace(
        images=embedded.images[twice], labels=embedded.labels[twice], groups=embedded.groups[twice]
    )
    one, other = adapted(embedded), adapted(more)
    assert (one.blend, one.shrinkage) == (other.blend, other.shrinkage)
    scale = np.linalg.norm(other.weight) / np.linalg.norm(one.weight)  # calibration counts images
    np.testing.assert_allclose(scale * one.weight, other.weight, atol=1e-3 * np.abs(other.weight).max())


def test_logits_are_calibrated_on_domains_that_were_left_out() -> None:
    embedded = drawn(4, domains=4, noise=0.5, misnamed=0.6)
    unseen = embedded.groups == 3
    logits = torch.from_numpy(adapted(embedded.of(~unseen)).logits(embedded.images[unseen]))
    assert 0.5 < fit_temperature(logits, torch.from_numpy(embedded.labels[unseen])) < 2


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_handful_of_images_is_no_error(count: int) -> None:
    few = drawn(6).of(np.arange(3 * CLASSES * EACH) < count)
    assert left_out_predictions(few).shape == (count,)
    assert adapted(few).logits(few.images).shape == (count, CLASSES)
