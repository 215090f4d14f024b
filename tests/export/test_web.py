"""`export --format web`: a finished page whose student predicts what Python does, without a network."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

import vl2v
import vl2v.deploy.runtime
from browser import AXE, DROP, PREDICT_ALL, accessible, chromium
from vl2v.errors import ConfigError
from vl2v.export import parity
from vl2v.export import student as making
from vl2v.export.int8 import int8_trials
from vl2v.export.student import export_student
from vl2v.export.web import RUNTIME, runtime_files, write_web

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

    from .conftest import Made

IMAGES = 200


@pytest.fixture(scope="module")
def star() -> np.ndarray[Any, np.dtype[np.float32]]:
    vector = np.random.default_rng(3).normal(size=16).astype(np.float32)
    return vector / np.linalg.norm(vector)


@pytest.fixture(scope="module")
def dist(node_modules: Path) -> Path:
    return node_modules / "onnxruntime-web" / "dist"


@pytest.fixture(scope="module", params=["closed", "open"])
def folder(
    request: pytest.FixtureRequest, made: Callable[..., Made], dist: Path, star: Any, tmp_path_factory: Any
) -> Path:
    page: Path = tmp_path_factory.mktemp(request.param) / "page"
    file, others = made(form=request.param).path, {"star": star} if request.param == "open" else {}
    write_web(file, json.loads(file.with_suffix(".json").read_text("utf-8")), page, others=others, runtime=dist)
    return page


@dataclass
class Site:
    """A page on its server; `sent` counts the files whose contents were sent."""

    folder: Path
    address: str
    server: ThreadingHTTPServer
    sent: Counter[str]

    def open(self, browser: Chrome) -> None:
        """Open the page, and wait until it can predict and all of it is cached."""
        browser.get_log("browser")  # what is in it is of the page before
        browser.get(self.address)
        WebDriverWait(browser, 300).until(lambda _: browser.find_element(By.ID, "count").text)
        assert browser.execute_script("return navigator.serviceWorker.controller.state") == "activated"


@pytest.fixture
def site(folder: Path) -> Iterator[Site]:
    sent: Counter[str] = Counter()

    class Counting(SimpleHTTPRequestHandler):
        def log_request(self, code: Any = "-", size: Any = "-") -> None:
            sent[self.path] += code == HTTPStatus.OK

        def log_message(self, *given: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Counting, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Site(folder, f"http://127.0.0.1:{server.server_port}/", server, sent)
        server.shutdown()


@pytest.fixture(scope="module")
def files(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return 200 odd images as files: PNG, turned JPEG, transparent."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(5)
    sources, made = sorted(shapes.rglob("*.png")), []
    for number in range(IMAGES):
        image = Image.fromarray(parity.odd(Image.open(sources[number % len(sources)]).convert("RGB"), number, rng))
        path = folder / f"{number:03d}.png"
        if number % 7 == 3:
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = 1 + number % 8
            path = path.with_suffix(".jpg")
            image.save(path, exif=exif, quality=100, subsampling=0)
        elif number % 7 == 5:
            image.putalpha(Image.linear_gradient("L").resize(image.size).point(lambda level: 0 if level < 64 else 255))
            image.save(path)
        else:
            image.save(path)
        made.append(path)
    return made


def test_it_predicts_what_python_does(site: Site, files: list[Path], run: vl2v.Run, browser: Chrome) -> None:
    for file in files:
        (site.folder / file.name).write_bytes(file.read_bytes())
    site.open(browser)
    found = browser.execute_async_script(PREDICT_ALL, [file.name for file in files])
    for file in files:
        (site.folder / file.name).unlink()
    assert not isinstance(found, str), found
    wanted = run.classifier.predict(files)
    for file, ours, theirs in zip(files, found, wanted, strict=True):
        apart = 0.02 if file.suffix == ".jpg" else 1e-3  # another JPEG decoder
        assert (ours["label"], ours["best"]) == (theirs.label, theirs.best), file.name
        assert ours["probabilities"] == pytest.approx(theirs.probabilities, abs=apart)


def test_no_file_is_downloaded_twice(site: Site, browser: Chrome) -> None:
    for _ in range(2):
        site.open(browser)
    wanted = {f"/{file.name}" for file in site.folder.iterdir()} - {"/index.html"} | {"/"}
    assert site.sent == dict.fromkeys(wanted, 1)


def test_a_person_uses_it_without_a_network(site: Site, files: list[Path], run: vl2v.Run, browser: Chrome) -> None:
    folder = site.folder
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    site.open(browser)
    site.server.shutdown()
    site.server.server_close()  # from here on there is nobody
    browser.get(site.address)
    waiting = WebDriverWait(browser, 300)
    browser.find_element(By.ID, "file").send_keys(str(files[0]))
    verdict = browser.find_element(By.ID, "verdict")
    waiting.until(lambda _: verdict.text)
    (wanted,) = run.classifier.predict(files[:1])
    assert verdict.text.lower() == wanted.label
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth && scrollY === 0")
    assert browser.execute_script("return arguments[0].getBoundingClientRect().bottom < innerHeight", verdict)
    count = browser.find_element(By.ID, "count")
    if json.loads((folder / "student.json").read_text("utf-8"))["form"] == "open":
        waiting.until(lambda _: browser.find_element(By.ID, "name").is_displayed())
        browser.find_element(By.ID, "name").send_keys("moon\n")
        problem = browser.find_element(By.ID, "problem-words")
        waiting.until(lambda _: "This page has no class embedding of moon" in problem.text)
        browser.find_element(By.ID, "name").clear()
        browser.find_element(By.ID, "name").send_keys("Star\n")
        waiting.until(lambda _: count.text == "4 classes")
        obstacle = browser.find_element(By.ID, "obstacle").text
        assert obstacle == "No class can be added by name: all that this page has are there."
    else:
        waiting.until(lambda _: count.text == "3 classes")
        assert not browser.find_element(By.ID, "add").is_displayed()
    errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    flags = "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"
    with chromium(tmp_path_factory.mktemp("profile"), *flags) as opened:
        yield opened


def test_images_are_dropped_pasted_and_photographed(
    site: Site, files: list[Path], run: vl2v.Run, camera: Chrome, axe: str
) -> None:
    site.open(camera)
    result, waiting = camera.find_element(By.ID, "told"), WebDriverWait(camera, 300)
    found = run.classifier.predict(files)
    first = found[0].label
    second = next(n for n, one in enumerate(found) if files[n].suffix == ".png" and one.label != first)
    for how, number in (("drop", 0), ("paste", second)):
        camera.execute_script(DROP, base64.b64encode(files[number].read_bytes()).decode(), how)
        wanted = found[number].label
        waiting.until(lambda _, wanted=wanted: result.get_attribute("textContent").lower().startswith(wanted))
    camera.execute_script("told.textContent = ''")
    camera.find_element(By.ID, "look").click()
    waiting.until(lambda _: camera.execute_script("return camera.videoWidth > 0"))
    camera.find_element(By.ID, "take").click()
    waiting.until(lambda _: result.get_attribute("textContent"))
    assert not camera.find_element(By.ID, "camera").is_displayed()
    nodes = accessible(camera)
    assert len(nodes) > 5 and all(name for _, name in nodes)
    camera.execute_script(axe)
    assert camera.execute_async_script(AXE) == []
    assert not [entry for entry in camera.get_log("browser") if entry["level"] == "SEVERE"]


def test_nothing_of_the_page_is_elsewhere_and_it_is_small(folder: Path) -> None:
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5e6  # a student of nothing, so that 15 MB are left
    icons = [icon["src"] for icon in json.loads((folder / "manifest.webmanifest").read_text("utf-8"))["icons"]]
    icons += re.findall(r'<link rel="apple-touch-icon" href="(.*)">', (folder / "index.html").read_text("utf-8"))
    assert [Image.open(folder / name).size for name in icons] == [(192, 192), (512, 512), (180, 180)]
    assert all(f'"{name}"' in (folder / "sw.js").read_text("utf-8") for name in icons)
    for name in ("index.html", "student.js", "sw.js", "manifest.webmanifest"):
        text = (folder / name).read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text and "https:" not in text


def test_a_page_is_in_int8_where_that_keeps_its_predictions(
    run: vl2v.Run, store: Path, dist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def precision(name: str) -> tuple[str, str]:
        made = export_student(run, tmp_path / name, "web", store=store, runtime=dist)
        return json.loads((tmp_path / name / "student.json").read_text())["precision"], made.refused

    assert precision("one") == ("int8", "")
    monkeypatch.setattr(making, "int8_trials", lambda *given: islice(int8_trials(*given), 1))  # the others take long
    monkeypatch.setattr(parity, "POINTS", -1.0)  # of accuracy: as if no file were good enough
    assert precision("other") == ("fp32", "int8 loses accuracy")


def test_other_versions_and_other_folders_are_refused(run: vl2v.Run, store: Path, dist: Path, tmp_path: Path) -> None:
    assert runtime_files(dist).keys() == RUNTIME.keys()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="isn't that of onnxruntime-web"):
        runtime_files(tmp_path)
    with pytest.raises(ConfigError, match="has other files in it"):
        export_student(run, tmp_path / "mine", "web", store=store, runtime=dist)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["letter.txt"]
