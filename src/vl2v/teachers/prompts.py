"""From class names to texts, and from texts' embeddings to the classifier T."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vl2v.config import PromptConfig
from vl2v.data.dataset import one_form
from vl2v.errors import ConfigError
from vl2v.names import listed, same_name, says_nothing
from vl2v.tree import toml_key

DOMAIN_TEMPLATE = "a {domain} of a {class}"


def prompts_for(classes: Sequence[str], prompts: PromptConfig, domains: Sequence[str] = ()) -> list[list[str]]:
    """Return every text of every class, none of them twice.

    Args:
        classes: names; underscores are read as spaces.
        domains: the source domains; used by domain prompts only.

    Raises:
        ConfigError: no template, one without `{class}` or with another placeholder, or an empty override.
    """
    if not prompts.templates:
        raise ConfigError("prompts.templates: empty; give at least one text with {class} in it")
    for template in prompts.templates:
        if "{class}" not in template:
            raise ConfigError(f"prompts.templates: {template!r} has no {{class}} in it")
        if "{domain}" in template:
            raise ConfigError(f"prompts.templates: {template!r}: for {{domain}} set prompts.domain_prompts=true")
    for name, value in prompts.overrides.items():
        if not value or not all(value):
            raise ConfigError(f"prompts.overrides.{name}: empty; give a name or a list of names")
    templates = list(prompts.templates)
    if prompts.domain_prompts:
        templates += [domain_template(domain, articles=prompts.articles) for domain in domains]
    return [
        list(dict.fromkeys(_fill(text, "{class}", name, prompts.articles) for text in templates for name in names))
        for names in (_names(name, prompts.overrides) for name in classes)
    ]


def check_prompts(
    classes: Sequence[str], groups: Sequence[Sequence[str]], teacher: object = None, *, refuse: bool = True
) -> list[str]:
    """Return a line about each class of whose prompts the teacher reads the beginning only, and about mute names.

    Args:
        teacher: of one with `read_texts` it is checked how it reads them.
        refuse: classes that only this teacher can't tell apart; else they are reported.

    Raises:
        ConfigError: two classes have the same prompts, as people or as the teacher reads them: it would never tell one
            from the other; or one is longer than a paid teacher takes.
    """
    for line in same_prompts(classes, groups):
        raise ConfigError(line)
    alike, cut = read_prompts(classes, groups, teacher)
    alike = long_prompts(classes, groups, teacher) + alike
    if refuse and alike:
        raise ConfigError(alike[0])
    return alike + cut + _mute_names(classes, groups)


def _mute_names(classes: Sequence[str], groups: Sequence[Sequence[str]]) -> list[str]:
    """Return a line about the classes whose prompts have a name in them that says nothing of what is to be seen."""
    spoken = {
        name: re.compile(rf"(?<!\w){re.escape(name.replace('_', ' '))}(?!\w)")
        for name in classes
        if len(name) > 1 or name.isdigit()  # "a" is in every prompt
    }
    mute = [
        name
        for name, texts in zip(classes, groups, strict=True)
        if says_nothing(name) and name in spoken and any(map(spoken[name].search, texts))
    ]
    if not mute:
        return []
    return [
        f"classes {listed(mute, 3)}: the teacher is queried with names that say nothing, such as "
        f"{groups[classes.index(mute[0])][0]!r}; write what they are into prompts.overrides"
    ]


def same_prompts(classes: Sequence[str], groups: Sequence[Sequence[str]]) -> list[str]:
    """Return a line about each class whose prompts are those of an earlier one, as people read them."""
    lines: list[str] = []
    first: dict[frozenset[str], str] = {}
    for name, texts in zip(classes, groups, strict=True):
        other = first.setdefault(frozenset(re.sub(r"\ban ", "a ", same_name(text)) for text in texts), name)
        if other != name:
            lines.append(
                f"classes {other!r} and {name!r} have the same text ({texts[0]!r}), so no teacher can tell them "
                f"apart: {_remedy(name)}"
            )
    return lines


def long_prompts(classes: Sequence[str], groups: Sequence[Sequence[str]], teacher: object) -> list[str]:
    """Return a line about each class with a prompt that is longer than a paid teacher's documented limit."""
    too_long: Callable[[str], str | None] = getattr(teacher, "too_long", lambda text: None)
    lines = []
    for name, texts in zip(classes, groups, strict=True):
        if found := next(((text, why) for text in texts if (why := too_long(text))), None):
            lines.append(
                f"class {name!r}: the text {found[0]!r:.200} is too long ({found[1]}); shorten it with "
                f"prompts.overrides.{toml_key(name)}"
            )
    return lines


def read_prompts(
    classes: Sequence[str], groups: Sequence[Sequence[str]], teacher: object
) -> tuple[list[str], list[str]]:
    """Return lines about classes that are the same to a teacher, and about those whose prompts it cuts off."""
    read_texts = getattr(teacher, "read_texts", None)
    alike: list[str] = []
    shortened: list[str] = []
    if read_texts is None:
        return alike, shortened
    first: dict[frozenset[tuple[int, ...]], str] = {}
    for name, texts in zip(classes, groups, strict=True):
        tokens, cut = zip(*read_texts(texts), strict=True)
        other = first.setdefault(frozenset(tokens), name)
        if other != name:
            why = "the rest is cut off" if any(cut) else "to it they are the same"
            alike.append(
                f"classes {other!r} and {name!r}: the teacher reads the same {len(tokens[0])} tokens of both, {why}: "
                f"{_remedy(name)}"
            )
        if any(cut):
            shortened.append(
                f"class {name!r}: a text is cut at the {len(tokens[0])} tokens that the teacher reads "
                f"({texts[cut.index(True)]!r:.200}); shorten it with prompts.overrides.{toml_key(name)}"
            )
    return alike, shortened


def _remedy(name: str) -> str:
    key = toml_key(name)
    return (
        f"give one of them another text with prompts.overrides.{key}, or rename them to the same if they are one class"
    )


def domain_template(domain: str, *, articles: bool) -> str:
    """Return the text for classes in a domain's words, for example "an art painting of a {class}"."""
    return _fill(DOMAIN_TEMPLATE, "{domain}", domain.replace("_", " "), articles)


def text_classifier(embeddings: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return T [C, d]: each text's embedding normalised, averaged over a class, normalised again.

    Args:
        embeddings: for each class its texts' [m, d].
    """
    return np.stack([unit(unit(rows).mean(0)) for rows in embeddings]).astype(np.float32)


def unit(rows: NDArray[Any]) -> NDArray[Any]:
    """Return rows [..., d] of length 1."""
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def _names(name: str, overrides: dict[str, str | list[str]]) -> list[str]:
    by_name = {one_form(key): value for key, value in overrides.items()}
    names = by_name.get(one_form(name), name.replace("_", " "))
    return [names] if isinstance(names, str) else names


def _fill(template: str, field: str, name: str, articles: bool) -> str:
    if articles:
        article = rf"\b([Aa])n? (?={re.escape(field)})"
        template = re.sub(article, lambda found: _article(found.group(1), name), template)
    return template.replace(field, name)


def _article(letter: str, name: str) -> str:
    """Return "a ", "an ", or nothing before a plural ("scissors") or a name that has one ("The Eiffel Tower")."""
    words = name.lower().split() or [""]
    if words[0] == "the" or _is_plural(words[-1]):
        return ""
    return f"{letter}n " if _begins_with_a_vowel(name) else f"{letter} "


def _begins_with_a_vowel(name: str) -> bool:
    """Return whether a name begins with the sound of a vowel: "hour" and "X-ray" do, "unicorn" and "euro" don't."""
    first = name.split()[0]
    head = re.split(r"[-.]", first)[0]
    spelt = head.isupper() and (len(head) <= 3 or not re.search("[AEIOUY]", head[:4]))  # letter by letter
    if len(head) == 1 or spelt:
        return head[0].upper() in "AEFHILMNORSX8"
    return bool(_VOWEL.match(first))


def _is_plural(word: str) -> bool:
    if _ODD_PLURALS.fullmatch(word):
        return True
    return word.endswith("s") and not word.endswith(("ss", "us", "is", "'s")) and not _SINGULAR.fullmatch(word)


_ODD_PLURALS = re.compile("children|feet|geese|kiwis|men|mice|people|skis|taxis|teeth|women")
_SINGULAR = re.compile(
    "asbestos|atlas|bias|biceps|canvas|chaos|christmas|cosmos|gas|lens|pancreas|rhinoceros|series|species|thermos"
    "|triceratops"
)
_VOWEL = re.compile(
    r"(?!eu|ewe|one\b|once\b|one-|ouija|uni(?!n|m(?!o))|u[bcfghjkpqrtv][aeiou]|us[aeu]|ukr|ural)[aeiou8]|hour(?!i)|heir|hono|hones|1[18]\b",
    re.IGNORECASE,
)
