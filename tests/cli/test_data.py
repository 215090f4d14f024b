"""`vl2v data` as a person types it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import tomli_w

from little import DOMAINS, quick_settings
from typed import Said, typed
from vl2v.data.catalogue import catalogue

Typed = Callable[..., Said]


@pytest.fixture
def vl2v(capfd: pytest.CaptureFixture[str]) -> Typed:
    return partial(typed, capfd)


def test_list_names_every_benchmark(vl2v: Typed) -> None:
    done = vl2v("data", "list")
    assert done.returncode == 0 and all(name in done.stdout for name in catalogue())
    assert "586,575" in done.stdout


def test_the_licence_comes_first(vl2v: Typed, tmp_path: Path) -> None:
    done = vl2v("data", "download", "pacs", "--out", tmp_path / "data")
    assert done.returncode == 2 and "licence: none is given" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("then add --accept-licence") and not (tmp_path / "data").exists()


def test_what_can_not_be_downloaded_is_explained(vl2v: Typed, tmp_path: Path) -> None:
    done = vl2v("data", "download", "pacs", "--out", tmp_path / "data", "--accept-licence")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "https://drive.google.com/" in last
    assert last.endswith(f"then: vl2v data download pacs --accept-licence --out {tmp_path / 'data'} --from PACS.zip")


def test_another_archive_is_recognised_by_its_counts(vl2v: Typed, shapes: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "PACS.zip", "w") as archive:
        for file in shapes.rglob("*.png"):
            archive.write(file, "kfold/" + file.relative_to(shapes).as_posix())
    done = vl2v(
        "data", "download", "pacs", "--accept-licence", "--out", tmp_path / "data", "--from", tmp_path / "PACS.zip"
    )
    assert done.returncode == 2 and "108 images, not 9,991" in done.stderr
    assert json.loads((tmp_path / "data" / "vl2v-data.lock.json").read_text())["pacs"]["PACS.zip"]["sha256"]


def test_a_run_is_measured_on_corruptions(vl2v: Typed, shapes: Path, recording: Path, tmp_path: Path) -> None:
    made = vl2v("data", "corrupt", shapes, "--out", tmp_path / "c", "--types", "snow,contrast", "--severities", "1,5")
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip() == f"{tmp_path / 'c'}: 108 images in each of 5 domains"
    config = tmp_path / "config.toml"
    config.write_text(tomli_w.dumps(quick_settings(shapes, recording, "erm")))
    run, store = tmp_path / "run", tmp_path / "store"
    trained = vl2v("distill", "--config", config, "--out", run, "--store", store)
    assert trained.returncode == 0, trained.stderr
    done = vl2v("evaluate", run, "--data", tmp_path / "c", "--store", store, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    result = {(row["who"], row["domain"], row["role"]) for row in rows}
    names = ("clean", "snow-1", "snow-5", "contrast-1", "contrast-5")
    assert result == {("student", name, "unseen") for name in names}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--types", "frost"), "corruption 'frost' is left out"),
        (("--types", "rain"), "no corruption is called 'rain'"),
        (("--severities", "three"), "numbers from 1 to 5"),
        (("--domain", "oil"), f"its domains are {', '.join(DOMAINS)}"),
    ],
)
def test_mistakes_are_explained(
    vl2v: Typed, shapes: Path, tmp_path: Path, words: tuple[str, str], message: str
) -> None:
    done = vl2v("data", "corrupt", shapes, "--out", tmp_path / "c", *words)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1
