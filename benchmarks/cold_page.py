"""How long a page of `vl2v export --format web` takes from nothing to its first prediction, on loopback.

    python benchmarks/cold_page.py PAGE IMAGE [--rounds 5]

Each round is a new headless Chromium with an empty profile. Measured from the navigation's start, by the browser's own
clock: until the student is ready (everything is downloaded and cached by then), and until the first image, given as
soon as the page listens, has its verdict. Printed with the size of the page.
"""

from __future__ import annotations

import argparse
import base64
import statistics
import sys
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from browser import DROP, chromium

TIMES = """
const done = arguments[0];
let ready = 0;
(function look() {
  const text = id => document.getElementById(id).textContent;
  if (text("count") && !ready) ready = performance.now();
  if (text("verdict") && ready) done([ready, performance.now()]);
  else requestAnimationFrame(look);
})();
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *words: None})
    found = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(given.page))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for _ in range(given.rounds):
            with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as browser:
                browser.set_script_timeout(300)
                browser.get(f"http://127.0.0.1:{server.server_port}/")
                browser.execute_script(DROP, base64.b64encode(given.image.read_bytes()).decode(), "drop")
                found.append([float(value) / 1000 for value in browser.execute_async_script(TIMES)])
        server.shutdown()
    size = sum(file.stat().st_size for file in given.page.iterdir()) / 1e6
    for name, times in zip(("student ready", "first prediction"), zip(*found, strict=True), strict=True):
        print(
            f"{name}: {statistics.median(times):.2f} s (median of {len(times)}; {min(times):.2f} to {max(times):.2f})"
        )
    print(f"page: {size:.1f} MB")


if __name__ == "__main__":
    main()
