from __future__ import annotations

import numpy as np
import pytest

from vl2v.embeddings.plan import balanced_order, k_center_order, nearest_order, random_order, uncertain_order


@pytest.fixture
def features():
    """Three tight clouds, far apart: 50, 5 and 2 images."""
    rng = np.random.default_rng(0)
    centres = np.eye(3, 8, dtype=np.float32)
    return np.concatenate([centres[i] + 0.01 * rng.standard_normal((n, 8)) for i, n in enumerate((50, 5, 2))]).astype(
        np.float32
    )


def test_random_is_a_permutation_and_the_seeds():
    order = random_order(20, 1)
    assert sorted(order) == list(range(20))
    np.testing.assert_array_equal(order, random_order(20, 1))
    assert list(order) != list(random_order(20, 2))


def test_balanced_takes_every_cell_in_turn():
    labels, domains = [0] * 10 + [1] * 3 + [0] * 2, [0] * 13 + [1] * 2
    order = balanced_order(labels, domains, 0)
    assert sorted(order) == list(range(15))
    cells = [(labels[i], domains[i]) for i in order]
    assert len(set(cells[:3])) == len(set(cells[3:6])) == 3
    assert set(cells[6:8]) == {(0, 0), (1, 0)}
    assert set(cells[8:]) == {(0, 0)}


def test_k_center_goes_to_every_cloud_before_it_goes_back(features):
    cloud = np.repeat([0, 1, 2], [50, 5, 2])
    order = k_center_order(features, 20)
    assert sorted(cloud[order[:3]]) == [0, 1, 2]
    assert len(set(order.tolist())) == 20
    np.testing.assert_array_equal(order[:7], k_center_order(features, 7))


def test_k_center_begins_farthest_from_what_is_known(features):
    cloud = np.repeat([0, 1, 2], [50, 5, 2])
    order = k_center_order(features, 2, features[cloud == 0])
    assert sorted(cloud[order]) == [1, 2]
    cosine = (
        features
        @ features[cloud == 0].T
        / np.outer(*(np.linalg.norm(f, axis=1) for f in (features, features[cloud == 0])))
    )
    assert order[0] == cosine.max(1).argmin()


def test_k_center_covers_better_than_chance(features):
    def radius(chosen):
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        return 1 - (unit @ unit[chosen].T).max(1).min()

    assert radius(k_center_order(features, 6)) < min(radius(random_order(57, seed)[:6]) for seed in range(20))


def test_k_center_of_all_copies_and_of_all():
    same = np.ones((4, 3), np.float32)
    assert sorted(k_center_order(same, 4)) == [0, 1, 2, 3]
    assert len(k_center_order(same, 0)) == 0


def test_uncertain_puts_the_closest_calls_first():
    logits = np.array([[9, 0, 0], [3, 2.9, 0], [0, 1, 3], [1, 1, 1]], np.float32)
    assert uncertain_order(logits).tolist() == [3, 1, 2, 0]


def test_the_nearest_come_first_and_what_is_of_no_class_last() -> None:
    cosines = np.array([[0.1, 0.2], [0.9, 0.1], [0.0, 0.05], [0.3, 0.95]], np.float32)
    assert nearest_order(cosines).tolist() == [3, 1, 0, 2]
