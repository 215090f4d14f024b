"""Lambda by domains left out: a teacher that knows is followed, one that doesn't is not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from vl2v.evaluation.ridge import (
    LAMBDAS,
    RIDGES,
    Taught,
    accuracies,
    best_lambda,
    fitted,
    fitted_head,
    lambda_accuracies,
    moments_of,
)

Table = NDArray[np.float32]
COUNT, FEATURES, DIM, CLASSES = 300, 6, 8, 4


def unit(rows: NDArray[np.floating]) -> Table:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def drawn() -> tuple[Table, Table, Table, NDArray[np.int64], NDArray[np.int64]]:
    """Return features, images, texts, labels and groups: embeddings that are linear in the features."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(COUNT, FEATURES)).astype(np.float32)
    texts = unit(rng.normal(size=(CLASSES, DIM)))
    images = unit(features @ rng.normal(size=(FEATURES, DIM)) + 0.1 * rng.normal(size=(COUNT, DIM)))
    return features, images, texts, (images @ texts.T).argmax(1), np.arange(COUNT) % 3


def test_a_teacher_that_knows_is_followed_one_that_guesses_is_not(
    drawn: tuple[Table, Table, Table, NDArray[np.int64], NDArray[np.int64]],
) -> None:
    features, images, texts, labels, groups = drawn
    known = lambda_accuracies(Taught(features, images, texts, labels, groups))
    assert known[1.0] > known[0.0] and best_lambda(known, COUNT) >= 0.5
    noise = unit(np.random.default_rng(1).normal(size=images.shape))
    guessed = lambda_accuracies(Taught(features, noise, texts, labels, groups))
    assert guessed[0.0] > guessed[1.0] + 0.2 and best_lambda(guessed, COUNT) <= 0.5


def test_it_is_ridge_regression_on_each_groups_others(
    drawn: tuple[Table, Table, Table, NDArray[np.int64], NDArray[np.int64]],
) -> None:
    features, images, texts, labels, _ = drawn
    groups = np.repeat([0, 1, 2], [200, 60, 40])  # of unlike sizes: each counts alike
    x = (features / features.std()).astype(float)
    found = {}
    for ridge in RIDGES:
        for lam in LAMBDAS:
            target, right = lam * images + (1 - lam) * texts[labels], []
            for held in range(3):
                weight = np.where(groups == held, 0, 1 / np.bincount(groups)[groups] / 2)
                centre, mean = weight @ x, weight @ target
                known = (x - centre) * np.sqrt(weight)[:, None]
                penalty = ridge * np.trace(known.T @ known) / FEATURES
                above = np.vstack([known, np.sqrt(penalty) * np.eye(FEATURES)])
                wanted = np.vstack([(target - mean) * np.sqrt(weight)[:, None], np.zeros((FEATURES, DIM))])
                projector = np.linalg.lstsq(above, wanted, rcond=None)[0]
                answers = (((x - centre) @ projector + mean) @ texts.T).argmax(1)
                right.append((answers == labels)[groups == held].mean())
            found[ridge, lam] = np.mean(right)
    best = max(RIDGES, key=lambda ridge: max(found[ridge, lam] for lam in LAMBDAS))
    expected = {lam: found[best, lam] for lam in LAMBDAS}
    assert lambda_accuracies(Taught(features, images, texts, labels, groups)) == pytest.approx(expected)


def test_the_projector_fitted_is_the_regression_that_is_best_for_groups_left_out(
    drawn: tuple[Table, Table, Table, NDArray[np.int64], NDArray[np.int64]],
) -> None:
    features, images, texts, labels, _ = drawn
    groups = np.repeat([0, 1, 2], [200, 60, 40])
    by_lambda = lambda_accuracies(Taught(features, images, texts, labels, groups))
    fit = fitted(Taught(features, images, texts, labels, groups))
    assert fit.lambda_ == max(by_lambda, key=lambda lam: (by_lambda[lam], -abs(lam - 0.5)))
    weight, target = 1 / np.bincount(groups)[groups] / 3, fit.lambda_ * images + (1 - fit.lambda_) * texts[labels]
    centre, mean = weight @ features, weight @ target
    known, wanted = (
        (table - middle) * np.sqrt(weight)[:, None] for table, middle in ((features, centre), (target, mean))
    )
    gaps = []
    for ridge in RIDGES:
        inner = known.T @ known
        expected = np.linalg.solve(inner + ridge * np.trace(inner) / FEATURES * np.eye(FEATURES), known.T @ wanted).T
        gaps.append(np.abs(fit.weight - expected).max() + np.abs(fit.bias - (mean - expected @ centre)).max())
    assert min(gaps) < 1e-6
    targets, right = np.hstack([images, texts[labels]]), []
    for held in range(3):
        others = [moments_of(features[groups == one], targets[groups == one]) for one in range(3) if one != held]
        right.append(accuracies(others, features[groups == held], texts, labels[groups == held]))
    means = np.mean(right, 0)
    assert means[int(np.argmin(gaps)), LAMBDAS.index(fit.lambda_)] == means.max()


def test_where_everything_is_right_neither_image_nor_label_is_left_out() -> None:
    labels = np.arange(30) % 3
    features, texts = np.eye(3, dtype=np.float32)[labels], np.eye(3, dtype=np.float32)
    assert fitted(Taught(features, texts[labels], texts, labels, np.arange(30) // 10)).lambda_ == 0.5


def test_of_one_domain_every_fifth_image_is_left_out(
    drawn: tuple[Table, Table, Table, NDArray[np.int64], NDArray[np.int64]],
) -> None:
    features, images, texts, labels, _ = drawn
    alone = lambda_accuracies(Taught(features, images, texts, labels, np.zeros(COUNT, np.int64)))
    assert alone == lambda_accuracies(Taught(features, images, texts, labels, np.arange(COUNT) % 5))


@pytest.mark.parametrize("away", [0, 5])
def test_one_image_teaches_its_own_embedding(
    away: float, drawn: tuple[Table, Table, Table, NDArray[np.int64], NDArray[np.int64]]
) -> None:
    """A domain of one answered image has no variance, only what rounding leaves of it."""
    features, images, texts, labels, _ = drawn
    features = np.round(features) if not away else features + np.float32(away)
    alone = moments_of(features[:1], np.hstack([images, texts[labels]])[:1])
    right = accuracies([alone], features[1:], texts, labels[1:])
    said = np.outer(LAMBDAS, images[0]) + np.outer(1 - np.array(LAMBDAS), texts[labels[0]])
    expected = [(labels[1:] == answer).mean() for answer in (said @ texts.T).argmax(1)]
    assert right == pytest.approx(np.tile(expected, (len(RIDGES), 1)))


def test_what_may_be_chance_is_left_at_the_lambda_nearest_to_a_half() -> None:
    accuracies = {0.0: 0.40, 0.4: 0.60, 0.7: 0.69, 0.8: 0.70, 1.0: 0.71}
    assert best_lambda(accuracies, 100_000) == 1.0  # a standard error of 0.1 points
    assert best_lambda(accuracies, 1_500) == 0.8  # 1.2
    assert best_lambda(accuracies, 400) == 0.7  # 2.3
    assert best_lambda({0.0: 0.5, 0.4: 0.7, 0.6: 0.7, 0.9: 0.7}, 1_000) in (0.4, 0.6)
    assert best_lambda({0.4: 0.69, 0.6: 0.7}, 1_000) == 0.6  # as near: the better one


def test_images_without_labels_are_a_group_of_their_own_that_is_always_learnt_from(
    drawn: tuple[Table, Table, Table, NDArray[np.int64], NDArray[np.int64]],
) -> None:
    features, images, texts, labels, groups = drawn
    some = np.where(np.arange(COUNT) < 60, -1, labels)
    plain = fitted(Taught(features, images, texts, labels, groups))
    with_labels = fitted(Taught(features[60:], images[60:], texts, labels[60:], groups[60:]))
    found = fitted(Taught(features, images, texts, some, groups))
    assert found.lambda_ in LAMBDAS and not np.allclose(found.weight, with_labels.weight)
    new = np.random.default_rng(3).normal(size=(500, FEATURES)).astype(np.float32)
    result = [(new @ fit.weight.T + fit.bias) @ texts.T for fit in (found, plain)]
    assert (result[0].argmax(1) == result[1].argmax(1)).mean() > 0.9  # embeddings alone teach nearly as much


def test_a_head_is_ridge_regression_of_labels_with_groups_alike() -> None:
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(CLASSES, size=COUNT), np.repeat([0, 1, 2], [200, 60, 40])
    features = (np.eye(CLASSES, FEATURES)[labels] + 0.3 * rng.normal(size=(COUNT, FEATURES))).astype(np.float32)
    fit = fitted_head(features, labels, groups, CLASSES)
    assert ((features @ fit.weight.T + fit.bias).argmax(1) == labels).mean() > 0.8 and fit.accuracy > 0.8
    weight = 1 / np.bincount(groups)[groups] / 3
    x, t = features.astype(float), np.eye(CLASSES)[labels]
    x, t = x - weight @ x, t - weight @ t
    square = (x * weight[:, None]).T @ x
    solutions = [
        np.linalg.solve(square + ridge * np.trace(square) / FEATURES * np.eye(FEATURES), (x * weight[:, None]).T @ t).T
        for ridge in RIDGES
    ]
    assert min(np.abs(fit.weight - solution).max() for solution in solutions) < 1e-4
