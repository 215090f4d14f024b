from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from vl2v.data import leave_out, open_dataset
from vl2v.data.dataset import DomainDataset, domainbed_split, seed_hash
from vl2v.errors import DataError


def dataset(counts: dict[str, int], classes: int = 2, splits: tuple[str | None, ...] | None = None) -> DomainDataset:
    ids = np.concatenate([np.full(n, i) for i, n in enumerate(counts.values())])
    paths = tuple(f"{i}.png" for i in range(len(ids)))
    labels = np.arange(len(ids)) % classes
    return DomainDataset(Path("x"), tuple("abcdef"[:classes]), tuple(counts), paths, labels, ids, splits)


@pytest.mark.parametrize(("count", "trial", "domain"), [(2048, 0, 0), (1670, 1, 3), (11, 2, 1)])
def test_the_split_is_domainbeds(count: int, trial: int, domain: int) -> None:
    seed = int(hashlib.md5(str((trial, domain)).encode("utf-8")).hexdigest(), 16) % (2**31)
    assert seed_hash(trial, domain) == seed
    keys = list(range(count))
    np.random.RandomState(seed).shuffle(keys)
    train, val = domainbed_split(count, 0.2, seed)
    assert val.tolist() == keys[: int(count * 0.2)] and train.tolist() == keys[int(count * 0.2) :]


def test_targets_are_kept_apart_and_sources_split_by_their_own_index() -> None:
    data = dataset({"p": 50, "q": 40, "r": 30})
    split = leave_out(data, ["q"], trial_seed=5)
    assert split.target.tolist() == list(range(50, 90))
    assert len(split.val) == 10 + 6 and len(split.train) == 40 + 24
    _, val = domainbed_split(30, 0.2, seed_hash(5, 2))
    assert set(val + 90) <= set(split.val.tolist())
    everything = np.concatenate([split.train, split.val, split.target])
    assert sorted(everything) == list(range(120))


def test_other_targets_leave_a_domains_split_as_it_is() -> None:
    data = dataset({"p": 50, "q": 40, "r": 30})
    one, other = leave_out(data, ["q"]), leave_out(data, ["r"])
    assert [i for i in one.val if i < 50] == [i for i in other.val if i < 50]


def test_a_manifests_splits_win() -> None:
    splits = tuple(["train"] * 10 + ["val"] * 5 + ["test"] * 5 + [None] * 20)
    split = leave_out(dataset({"p": 20, "q": 20}, splits=splits), [])
    assert [i for i in split.train if i < 20] == list(range(10))
    assert [i for i in split.val if i < 20] == list(range(10, 15))
    assert len([i for i in split.val if i >= 20]) == 4


@pytest.mark.parametrize(
    ("counts", "classes", "target", "message"),
    [
        ({"p": 20, "q": 20}, 2, ["z"], "no domain 'z'"),
        ({"p": 20, "q": 20}, 2, ["p", "q"], "every domain is a target"),
        ({"p": 20, "q": 20}, 1, [], "only one class"),
        ({"p": 20, "q": 2}, 2, ["p"], "domain q has 2 usable images"),
        ({"p": 20, "q": 0}, 2, ["q"], "target q has no images"),
    ],
)
def test_what_cannot_be_split_says_why(counts: dict[str, int], classes: int, target: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        leave_out(dataset(counts, classes), target)


def test_images_without_labels_are_in_no_split_and_a_targets_nowhere() -> None:
    data = dataset({"p": 20, "q": 20, "unlabelled": 5})
    data.labels[40:] = -1
    data.labels[[3, 23]] = -1
    split = leave_out(data, ["q"])
    assert split.unlabelled.tolist() == [3, *range(40, 45)]
    assert not {3, 23, *range(40, 45)} & {*split.train, *split.val, *split.target}
    assert len(split.val) == int(19 * 0.2)
    with pytest.raises(DataError, match="without labels can't be a target"):
        leave_out(data, ["unlabelled"])


def test_a_near_miss_of_a_domain_is_guessed() -> None:
    with pytest.raises(DataError, match="did you mean sketch"):
        leave_out(dataset({"sketch": 9, "photo": 9}), ["sketches"])


def test_a_source_that_a_manifest_leaves_without_validation_is_named() -> None:
    with pytest.raises(DataError, match="domain p has 10 usable images and none for validation"):
        leave_out(dataset({"p": 10, "q": 10}, splits=("train",) * 10 + (None,) * 10), ["q"])


def test_pacs_splits_are_domainbeds_over_imagefolder() -> None:
    """Against DomainBed's own steps, on the published benchmark where it is at hand."""
    from torchvision.datasets import ImageFolder

    root = Path(__file__).parents[3] / "shared" / "data" / "PACS"
    if not root.exists():
        pytest.skip("PACS is not here")
    data = open_dataset(root)
    split = leave_out(data, ["photo"], trial_seed=1)
    held_out = {data.paths[i] for i in split.val}
    expected = set()
    for index, entry in enumerate(sorted(entry.name for entry in root.iterdir())):
        if entry == "photo":
            continue
        files = [Path(name).relative_to(root).as_posix() for name, _ in ImageFolder(str(root / entry)).samples]
        keys = list(range(len(files)))
        seed = int(hashlib.md5(str((1, index)).encode()).hexdigest(), 16) % 2**31
        np.random.RandomState(seed).shuffle(keys)
        expected |= {files[key] for key in keys[: int(len(files) * 0.2)]}
    assert held_out == expected
