"""requirements.lock is what pyproject.toml asks for, all of it by hash, from no particular host."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKED = {
    name: [Version(version) for version in re.findall(rf"^{re.escape(name)}==([^ ]+)", LOCK, re.M)]
    for name in re.findall(r"^([a-z0-9-]+)==", LOCK, re.M)
}


def wanted() -> list[Requirement]:
    """Return what `pip install '.[dev]'` wants itself, and the versions that the lock is bound to."""
    extras = PROJECT["project"]["optional-dependencies"]
    texts = [*PROJECT["project"]["dependencies"], *PROJECT["tool"]["uv"]["constraint-dependencies"]]
    open_, seen = ["dev"], set()
    while open_:
        extra = open_.pop()
        seen.add(extra)
        for text in extras[extra]:
            one = Requirement(text)
            if one.name == PROJECT["project"]["name"]:
                open_ += one.extras - seen
            else:
                texts.append(text)
    return [Requirement(text) for text in texts]


def test_the_lock_has_all_that_is_wanted() -> None:
    missing = [
        str(one)
        for one in wanted()
        if one.name not in LOCKED or not all(one.specifier.contains(version) for version in LOCKED[one.name])
    ]
    assert not missing, "run `make lock`"


def test_every_file_is_known_by_its_hash() -> None:
    entries = re.split(r"^(?=[a-z0-9])", LOCK, flags=re.M)[1:]
    assert len(entries) > 100
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)


def test_the_lock_names_no_host() -> None:
    assert "://" not in LOCK and not re.search(r"^--?(index|extra|find|trusted)", LOCK, re.M)


def test_the_demonstration_has_a_part_of_the_lock() -> None:
    part = (ROOT / "requirements-demo.lock").read_text(encoding="utf-8")
    entries = re.split(r"^(?=[a-z0-9])", part, flags=re.M)[1:]
    assert 50 < len(entries) < len(LOCKED) / 2, "run `make lock`"
    for entry in entries:
        head, *lines = entry.splitlines()
        assert head.split(" ")[0] in LOCK and any("--hash=sha256:" in line for line in lines), head
        assert all(line.strip().rstrip(" \\") in LOCK for line in lines if "--hash" in line), head
    names = {entry.split("==")[0] for entry in entries}
    extras = PROJECT["project"]["optional-dependencies"]
    direct = [*PROJECT["project"]["dependencies"], *extras["export"], *extras["serve"]]
    assert {Requirement(one).name for one in direct} <= names, "run `make lock`"
