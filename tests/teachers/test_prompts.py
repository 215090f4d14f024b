from __future__ import annotations

import numpy as np
import pytest

from vl2v.config import PromptConfig
from vl2v.errors import ConfigError
from vl2v.teachers import open_teacher
from vl2v.teachers.prompts import check_prompts, prompts_for, text_classifier


def said(name: str, **settings) -> list[str]:
    return prompts_for([name], PromptConfig(**settings))[0]


@pytest.mark.parametrize(
    "name",
    [
        "an elephant",
        "an umbrella",
        "an hour",
        "an LED lamp",
        "an X-ray",
        "a U-boat",
        "a euro",
        "a one-way street",
        "a unicorn",
        "a dog",
        "a European roller",
        "an X-ray",
        "a TV",
        "a T-shirt",
        "a one-way sign",
        "a yo-yo",
        "a bus",
        "a lens",
        "a cactus",
        "a compass",
        "a cross",
        "a dress",
        "a gas",
        "a glass",
        "a walrus",
        "an octopus",
        "an iris",
        "a sheep",
        "a fish",
        "an opera",
        "a canvas",
        "a school bus",
        "an animal series",
        "a wine glass",
        "a starfish",
        "an Alarm Clock",
        "scissors",
        "glasses",
        "pants",
        "sunglasses",
        "Flowers",
        "Knives",
        "Postit Notes",
        "people",
        "mice",
        "skis",
        "lenses",
        "buses",
        "The Eiffel Tower",
    ],
)
def test_articles(name):
    bare = name.removeprefix("a ").removeprefix("an ")
    assert said(bare) == [f"a photo of {name}"]


def test_underscores_are_spaces():
    assert said("alarm_clock") == ["a photo of an alarm clock"]
    assert said("polar_bears") == ["a photo of polar bears"]


def test_articles_off_reproduces_the_authors_code():
    assert said("elephant", articles=False) == ["a photo of a elephant"]
    assert said("scissors", articles=False) == ["a photo of a scissors"]


def test_only_the_article_before_the_class_changes():
    templates = ["a one-colour icon of a {class}", "A {class}, a fruit", "the {class}", "{class}"]
    texts = said("apple", templates=templates)
    assert texts == ["a one-colour icon of an apple", "An apple, a fruit", "the apple", "apple"]


def test_overrides():
    overrides = {"tv": "television set", "bat": ["flying bat", "animal_bat"]}
    texts = prompts_for(["tv", "bat", "dog"], PromptConfig(overrides=overrides))
    assert texts[0] == ["a photo of a television set"]
    assert texts[1] == ["a photo of a flying bat", "a photo of an animal_bat"]
    assert texts[2] == ["a photo of a dog"]


def test_domain_prompts():
    prompts = PromptConfig(domain_prompts=True)
    texts = prompts_for(["dog", "elephant"], prompts, ["art_painting", "cartoon", "sketches"])
    assert texts[0] == [
        "a photo of a dog",
        "an art painting of a dog",
        "a cartoon of a dog",
        "sketches of a dog",
    ]
    assert "an art painting of an elephant" in texts[1]
    bare = prompts_for(["elephant"], PromptConfig(domain_prompts=True, articles=False), ["art_painting"])
    assert bare == [["a photo of a elephant", "a art painting of a elephant"]]


def test_domains_are_not_used_unless_asked():
    assert prompts_for(["dog"], PromptConfig(), ["cartoon"]) == [["a photo of a dog"]]


def test_none_twice():
    assert said("dog", templates=["a {class}", "a {class}"]) == ["a dog"]


def test_a_name_with_braces_is_left_alone():
    assert said("{x}", templates=["{class}"]) == ["{x}"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"templates": []}, "empty"),
        ({"templates": ["a photo"]}, "'a photo' has no {class}"),
        ({"templates": ["a {domain} of a {class}"]}, "domain_prompts=true"),
        ({"overrides": {"dog": ""}}, "overrides.dog: empty"),
        ({"overrides": {"dog": []}}, "overrides.dog: empty"),
        ({"overrides": {"dog": ["hound", ""]}}, "overrides.dog: empty"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message.replace("{", r"\{")):
        said("dog", **settings)


def test_text_classifier_averages_directions():
    rows = np.array([[10, 0, 0], [0, 0.1, 0]], np.float32)
    classifier = text_classifier([rows, np.array([[0, 0, 3]], np.float32)])
    assert classifier.dtype == np.float32
    np.testing.assert_allclose(classifier, [[2**-0.5, 2**-0.5, 0], [0, 0, 1]], atol=1e-6)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("hot_dog", "hot dog"),
        ("Circle", "circle"),
        ("caf\u00e9", "cafe\u0301"),
        ("hot  dog", "HOT DOG"),
        ("\uff21\uff22", "AB"),
        ("stra\u00dfe", "STRASSE"),
    ],
)
def test_classes_with_one_text_are_refused(one: str, other: str) -> None:
    names = ["taco", one, other]
    groups = prompts_for(names, PromptConfig())
    with pytest.raises(ConfigError, match=r"have the same text .*prompts\.overrides\..*, or rename"):
        check_prompts(names, groups)


def test_an_override_tells_classes_apart() -> None:
    names = ["hot_dog", "hot dog"]
    assert check_prompts(names, prompts_for(names, PromptConfig(overrides={"hot dog": "warm dog"}))) == []


def test_overrides_can_make_two_classes_one() -> None:
    names = ["dog", "hound"]
    with pytest.raises(ConfigError, match="'dog' and 'hound' have the same text"):
        check_prompts(names, prompts_for(names, PromptConfig(overrides={"hound": "dog"})))
    assert check_prompts(names, prompts_for(names, PromptConfig(overrides={"hound": ["dog", "hound"]}))) == []


LONG = "a view of a long room full of old things that somebody looked at for a while " * 6


def test_texts_that_the_tower_cuts_are_reported_and_refused_where_nothing_is_left_to_distinguish() -> None:
    tiny = open_teacher("tiny")
    names = ["circle", "square"]
    different = prompts_for(names, PromptConfig(templates=["a {class}, " + LONG]))
    assert [note.partition(":")[0] for note in check_prompts(names, different, tiny)] == [
        "class 'circle'",
        "class 'square'",
    ]
    alike = prompts_for(names, PromptConfig(templates=[LONG + "{class}"]))
    with pytest.raises(ConfigError, match=r"reads the same [0-9]+ tokens of both, the rest is cut off"):
        check_prompts(names, alike, tiny)
    assert "reads the same" in " ".join(check_prompts(names, alike, tiny, refuse=False))
    assert check_prompts(names, prompts_for(names, PromptConfig()), tiny) == []


def test_a_text_that_just_fits_is_not_cut() -> None:
    tiny = open_teacher("tiny")
    texts = ["dog " * count for count in range(1, 100)]
    cut = [was_cut for _, was_cut in tiny.read_texts(texts)]
    assert cut == sorted(cut) and not cut[0] and cut[-1]
    whole = [tokens for (tokens, was_cut) in tiny.read_texts(texts) if not was_cut]
    assert len(set(whole)) == len(whole), "no two of those that fit are read alike"


@pytest.mark.parametrize(
    ("names", "overrides", "mute"),
    [
        (["0", "dog"], {}, "classes 0: the teacher is queried with names that say nothing, such as 'a photo of a 0'"),
        (["class_1", "n02084071"], {}, "classes class_1, n02084071: "),
        (["10", "11", "12", "13"], {}, "classes 10, 11, 12 and 1 more: "),
        (["10", "11"], {"10": ["cat"], "11": ["dog"]}, ""),
        (["cat", "dog"], {}, ""),
    ],
)
def test_names_that_tell_a_teacher_nothing_are_reported(names, overrides, mute):
    prompts = PromptConfig(templates=["a photo of a {class}"], overrides=overrides)
    found = "".join(check_prompts(names, prompts_for(names, prompts)))
    assert mute in found and bool(found) == bool(mute)
