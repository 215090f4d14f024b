from __future__ import annotations

import numpy as np

from vl2v.training.batches import DomainBalancedSampler

GROUPS = [np.arange(10), np.arange(10, 13), np.arange(13, 40)]


def test_every_batch_has_the_same_number_of_each_domain() -> None:
    sampler = DomainBalancedSampler(GROUPS, 4, seed=0)
    for number in range(20):
        images, _ = sampler.batch(number)
        assert [np.isin(group, images).any() for group in GROUPS] == [True, True, True]
        assert len(images) == 12
        assert sum(image < 10 for image in images) == 4


def test_a_domain_is_gone_through_before_it_repeats() -> None:
    sampler = DomainBalancedSampler([np.arange(10)], 5, seed=0)
    first = np.concatenate([sampler.batch(0)[0], sampler.batch(1)[0]])
    second = np.concatenate([sampler.batch(2)[0], sampler.batch(3)[0]])
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second)
    assert set(sampler.batch(1)[1]) == {0} and set(sampler.batch(2)[1]) == {1}


def test_a_batch_can_be_asked_for_at_any_time() -> None:
    one, other = DomainBalancedSampler(GROUPS, 4, seed=3), DomainBalancedSampler(GROUPS, 4, seed=3)
    ordered = [one.batch(number)[0] for number in range(30)]
    assert all((other.batch(number)[0] == ordered[number]).all() for number in reversed(range(30)))
    assert (DomainBalancedSampler(GROUPS, 4, seed=4).batch(0)[0] != ordered[0]).any()
