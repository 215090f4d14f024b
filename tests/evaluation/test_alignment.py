"""How images and texts fit together, on vectors that can be looked at."""

from __future__ import annotations

import numpy as np
import pytest

from vl2v.evaluation.alignment import Confusion, accuracy_by_group, align, confusions, probe

TEXTS = np.eye(3, dtype=np.float32)


def test_alignment_is_means_of_cosines() -> None:
    images = np.array([[0.8, 0.6, 0.0], [0.0, 1.0, 0.0]], np.float32)
    found = align(images, TEXTS, np.array([0, 1]))
    assert found.own == pytest.approx(0.9)
    assert found.other == pytest.approx(0.3)
    assert found.margin == pytest.approx(0.6)
    assert found.gap == pytest.approx(np.linalg.norm([0.4 - 1 / 3, 0.8 - 1 / 3, -1 / 3]))


def test_confusions_come_with_counts_and_an_example_the_most_frequent_first() -> None:
    labels, answers = np.array([0, 0, 1, 1, 1, 2]), np.array([0, 2, 0, 0, 1, 2])
    assert confusions(labels, answers) == [Confusion(1, 0, 2, 2), Confusion(0, 2, 1, 1)]
    assert confusions(labels, labels) == []


def test_groups_without_images_have_no_share() -> None:
    (share,) = accuracy_by_group(("ink", "paint"), np.array([1, 1]), np.array([True, False]))
    assert (share.name, share.images, share.correct) == ("paint", 2, 1)


def test_a_probe_predicts_each_group_from_the_others() -> None:
    rng = np.random.default_rng(0)
    labels, groups = np.arange(60) % 3, np.arange(60) // 20
    features = TEXTS[labels] + 0.1 * rng.normal(size=(60, 3)).astype(np.float32)
    assert (probe(features, labels, groups) == labels).mean() > 0.95
    twisted = features.copy()
    twisted[groups == 2] = np.roll(features[groups == 2], 1, axis=1)  # in group 2 the features mean something else
    right = probe(twisted, labels, groups) == labels
    assert right[groups == 2].mean() < 0.1
    assert (probe(features, labels, np.zeros(60, np.int64)) == -1).all()
