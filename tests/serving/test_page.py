"""The page, in a real browser."""

from __future__ import annotations

import base64
import io
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from browser import AXE, DROP, accessible, chromium
from vl2v.deploy.runtime import load
from vl2v.serving.traffic_log import ImageLog

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

    from .conftest import Servers


class Page:
    """The page, as a person sees it."""

    def __init__(self, browser: Chrome, url: str) -> None:
        self.browser = browser
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.get_log("browser")  # what is in it is of the page before
        browser.get(url)

    def text(self, name: str) -> str:
        return self.browser.find_element(By.ID, name).text

    def shown(self, name: str) -> bool:
        return self.browser.find_element(By.ID, name).is_displayed()

    def until(self, condition: Callable[[], Any]) -> None:
        WebDriverWait(self.browser, 300, 0.05).until(lambda _: condition())

    def click(self, name: str) -> None:
        self.browser.find_element(By.ID, name).click()

    def give(self, image: bytes, how: str) -> None:
        self.browser.execute_script(DROP, base64.b64encode(image).decode(), how)

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.mark.parametrize("how", ["drop", "paste", "file"])
def test_an_image_is_predicted(
    how: str, browser: Chrome, served: Servers, opened: Path, shapes: Path, image: bytes
) -> None:
    page = Page(browser, served())
    page.until(lambda: page.shown("classes"))
    assert page.text("privacy") == "It is sent to this server alone, which doesn't save it."
    if how == "file":
        browser.find_element(By.ID, "file").send_keys(str(shapes / "paint" / "ball" / "00.png"))
    else:
        page.give(image, how)
    page.until(lambda: page.shown("answer"))
    (wanted,) = load(opened).predict([image])
    assert page.text("verdict") == (wanted.best if wanted.label == wanted.best else "Unknown")
    bars = [row.text.split("\n") for row in browser.find_elements(By.CSS_SELECTOR, "#bars li")]
    ranking = sorted(wanted.probabilities, key=lambda name: -wanted.probabilities[name])
    assert bars == [[name, f"{100 * wanted.probabilities[name]:.0f}%"] for name in ranking]
    assert browser.find_element(By.ID, "told").get_attribute("textContent")  # for those who hear the page
    assert page.errors() == []


def test_what_is_unknown_is_called_so_and_what_is_saved_is_said(
    browser: Chrome, served: Servers, opened: Path, image: bytes, tmp_path: Path
) -> None:
    student = load(opened, threads=1)
    student.card["threshold"] = 0.9
    page = Page(browser, served(student, images=ImageLog(tmp_path / "saved", 2**20)))
    page.until(lambda: page.shown("classes"))
    assert page.text("privacy") == "It is sent to this server alone, which saves it."
    page.give(image, "drop")
    page.until(lambda: page.shown("answer"))
    assert page.text("verdict") == "Unknown" and "and 90% is needed" in page.text("why")


def test_a_class_is_added_with_the_keyboard_and_the_teacher_queried(
    browser: Chrome, served: Servers, recording: Path, image: bytes
) -> None:
    page = Page(browser, served(teacher=f"recorded:{recording}"))
    page.until(lambda: page.shown("add"))
    page.give(image, "drop")
    page.until(lambda: page.shown("answer"))
    browser.find_element(By.ID, "name").send_keys("star", Keys.ENTER)
    page.until(
        lambda: page.text("count") == "4 classes" and len(browser.find_elements(By.CSS_SELECTOR, "#bars li")) == 4
    )
    browser.find_element(By.CSS_SELECTOR, "#all summary").send_keys(Keys.ENTER)
    browser.find_element(By.CSS_SELECTOR, "[aria-label='Remove star']").send_keys(Keys.ENTER)
    page.until(lambda: page.text("count") == "3 classes")
    page.click("ask")
    page.until(lambda: page.shown("opinion"))
    assert "ball" in page.text("agreement") and not page.shown("bill")
    browser.find_element(By.ID, "name").send_keys("comet", Keys.ENTER)
    page.until(lambda: page.shown("problem"))
    assert page.text("problem-words").startswith("The teacher can't be queried")


def test_what_is_lost_on_the_way_is_reported_and_tried_again(browser: Chrome, served: Servers, image: bytes) -> None:
    page = Page(browser, served())
    page.until(lambda: page.shown("classes"))
    network = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", {**network, "offline": True})
    page.give(image, "drop")
    page.until(lambda: page.shown("problem"))
    assert page.text("problem-words") == "There is no network." and not page.shown("answer")
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", {**network, "offline": False})
    page.click("retry")
    page.until(lambda: page.shown("answer"))
    assert not page.shown("problem")
    served.stop()
    page.give(image, "drop")
    page.until(lambda: page.shown("problem"))
    assert page.text("problem-words") == "The server can't be reached. Is it still running?" and not page.shown(
        "answer"
    )


def test_a_broken_image_is_reported(browser: Chrome, served: Servers) -> None:
    page = Page(browser, served())
    page.until(lambda: page.shown("classes"))
    page.give(b"no image", "drop")
    page.until(lambda: page.shown("problem"))
    assert "can't be decoded: not an image" in page.text("problem-words")


def test_a_key_is_asked_for(browser: Chrome, served: Servers, image: bytes) -> None:
    page = Page(browser, served(key="secret"))
    page.until(lambda: page.shown("locked"))
    for key in ("wrong", "secret"):
        assert not page.shown("classes")
        browser.find_element(By.ID, "key").send_keys(key, Keys.ENTER)
        page.until(lambda: page.shown("problem") or page.shown("classes"))
    page.give(image, "drop")
    page.until(lambda: page.shown("answer"))
    assert not page.shown("locked") and not page.shown("problem")


def test_the_camera_is_used(tmp_path: Path, served: Servers) -> None:
    with chromium(
        tmp_path / "profile", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"
    ) as browser:
        page = Page(browser, served())
        page.until(lambda: page.shown("classes"))
        page.click("look")
        page.until(lambda: page.shown("camera") and browser.execute_script("return camera.videoWidth > 0"))
        page.click("take")
        page.until(lambda: page.shown("answer"))
        assert page.shown("image") and not page.shown("camera") and page.errors() == []


def test_everything_has_a_name_and_fits_a_phone(
    browser: Chrome, served: Servers, recording: Path, image: bytes
) -> None:
    page = Page(browser, served(teacher=f"recorded:{recording}"))
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 320, "height": 700, "deviceScaleFactor": 1, "mobile": True}
    )
    page.until(lambda: page.shown("classes"))
    page.give(image, "drop")
    page.until(lambda: page.shown("answer"))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 320
    nodes = accessible(browser)
    assert len(nodes) > 5 and all(name for _, name in nodes)


def test_axe_core_finds_nothing(browser: Chrome, served: Servers, recording: Path, image: bytes, axe: str) -> None:
    page = Page(browser, served(teacher=f"recorded:{recording}"))
    page.until(lambda: page.shown("classes"))
    page.give(image, "drop")
    page.until(lambda: page.shown("answer"))
    browser.execute_script(axe)
    assert browser.execute_async_script(AXE) == []


def test_the_verdict_is_in_sight_on_a_phone(browser: Chrome, served: Servers, image: bytes) -> None:
    page = Page(browser, served())
    size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    tall = io.BytesIO()
    Image.new("RGB", (900, 1600), "red").save(tall, "JPEG")
    for given in (image, tall.getvalue()):
        page.give(given, "drop")
        page.until(lambda: page.shown("answer"))
        page.until(lambda: browser.execute_script("return document.querySelector('#image').naturalWidth > 0"))
        seen = "return document.querySelector('#verdict').getBoundingClientRect().bottom < innerHeight"
        assert browser.execute_script(seen)
        assert browser.execute_script("return scrollY") == 0


# Every way in which an answer can fail to be one: each has to end in words.
BROKEN = {
    "cut off": "new Response('{', { status: 200 })",
    "another": "new Response('[]', { status: 200 })",
    "nothing": "new Response('null', { status: 200 })",
    "without words": "new Response('{}', { status: 400 })",
    "of a proxy": "new Response('<html>', { status: 502 })",
    "aborted": "new Response(new ReadableStream({ start(c) { c.error(new TypeError('network error')); } }))",
    "stopped": "new Response(new ReadableStream({ start(c) { c.error(new DOMException('stop', 'AbortError')); } }))",
    "stopped before": "Promise.reject(new DOMException('stop', 'AbortError'))",
    "cut off by the network": "real(address)",
}


@pytest.fixture
def broken_off() -> Iterator[str]:
    """Return the address of a server that promises a thousand bytes, sends ten, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        head = b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nContent-Length: 1000\r\n\r\n"

        def serve() -> None:
            with suppress(OSError):  # the end of the test
                while True:
                    connection, _ = bound.accept()
                    with connection:
                        connection.recv(2**16)
                        connection.sendall(head + b'{"predicti')

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/"
        bound.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.mark.parametrize("how", BROKEN)
def test_a_response_that_is_none_is_reported(
    how: str, browser: Chrome, served: Servers, image: bytes, broken_off: str
) -> None:
    page = Page(browser, served())
    page.until(lambda: page.shown("classes"))
    browser.execute_script(
        f"window.failed = []; addEventListener('unhandledrejection', event => failed.push(String(event.reason)));"
        f"const [address] = arguments, real = window.fetch; window.fetch = async () => {BROKEN[how]};",
        broken_off,
    )
    page.give(image, "drop")
    page.until(lambda: page.shown("problem"))
    assert page.text("problem-words") and not page.shown("answer")
    assert browser.execute_script("return failed") == []


def test_an_image_that_is_gone_is_reported(browser: Chrome, served: Servers, shapes: Path, tmp_path: Path) -> None:
    page = Page(browser, served())
    page.until(lambda: page.shown("classes"))
    file = Path(shutil.copy(shapes / "paint" / "ball" / "00.png", tmp_path))
    browser.find_element(By.ID, "file").send_keys(str(file))
    page.until(lambda: page.shown("answer"))
    file.unlink()
    browser.execute_script("attempt(predict)()")
    page.until(lambda: page.shown("problem"))
    assert page.text("problem-words") == "The image can't be read any more." and not page.shown("answer")
