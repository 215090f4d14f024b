"""A real browser for tests of what people look at: headless Chromium with a profile of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-prefers-reduced-motion",  # a page that still scrolls can't be clicked
    "--window-size=1280,900",
)

DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), letter => letter.charCodeAt(0)), data = new DataTransfer();
data.items.add(new File([bytes], "image.png", { type: "image/png" }));
const event = arguments[1] === "paste" ? new ClipboardEvent("paste", { clipboardData: data })
  : new DragEvent(arguments[1], { dataTransfer: data, bubbles: true });
document.getElementById("drop").dispatchEvent(event);
if (arguments[1] === "paste") window.dispatchEvent(event);
"""
"""What a hand does that drops a file on the page or pastes one; arguments: its bytes in base64, "drop" or "paste"."""

IN_THE_BROWSER = """
const done = arguments[0];
(async () => {
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create("student.onnx");
  const pixels = new Uint8Array(await (await fetch("images.bin")).arrayBuffer());
  const found = [];
  let start = 0;
  for (const [height, width] of await (await fetch("images.json")).json()) {
    const data = pixels.slice(start, (start += height * width * 3));
    const out = await session.run({ image: new ort.Tensor("uint8", data, [height, width, 3]) });
    found.push(Array.from(out.probabilities.data));
  }
  return found;
})().then(done, error => done(String(error)));
"""
"""What student.onnx gives in onnxruntime-web for the images of images.json and images.bin, each in a list."""

PREDICT_ALL = """
const [names, done] = arguments;
(async () => {
  const found = [];
  for (const name of names) {
    const body = new FormData();
    body.append("image", await (await fetch(name)).blob());
    found.push((await (await fetch("predict", { method: "POST", body })).json()).predictions[0]);
  }
  return found;
})().then(done, error => done(String(error)));
"""
"""What a page predicts for files beside it; argument: their names."""

AXE = """
const done = arguments[0];
axe.run().then(found => done(found.violations.map(each => `${each.id}: ${each.nodes.map(node => node.html)}`)));
"""
"""What axe-core finds, once its script is in the page."""


def accessible(browser: Chrome) -> list[tuple[str, str]]:
    """Return role and name of what people who don't see the page work with."""
    tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    wanted = {"button", "textbox", "combobox", "list", "image", "region"}
    nodes = [node for node in tree if not node.get("ignored") and node["role"]["value"] in wanted]
    return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes]


@contextmanager
def chromium(profile: Path, *flags: str) -> Iterator[Chrome]:
    """Yield a driver of a Chromium that keeps its console's messages; the test is skipped where there is none.

    Args:
        profile: a new, empty folder.
        flags: of the command line, more of them.
    """
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = program
    for flag in (*_FLAGS, *flags, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options=options, service=ChromeService(driver))
    try:
        browser.set_script_timeout(300)
        browser.command_executor.client_config.timeout = 330  # longer than any of the browser's own
        yield browser
    finally:
        browser.quit()
