"""Images by address, from a real server on loopback: what is fetched, and what never is."""

from __future__ import annotations

import asyncio
import io
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from vl2v.errors import ConfigError
from vl2v.vendor import addresses
from vl2v.vendor.addresses import Addresses, Unfetched

from .servers import Running, row, running


def image() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


IMAGE = image()


class Gallery(ThreadingHTTPServer):
    """Images, and the tricks of a server that means no good."""

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Hand)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.seen: list[tuple[str, str]] = []
        self.closing = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that were given up."""


class _Hand(BaseHTTPRequestHandler):
    server: Gallery

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers["Host"]))
        status = {"/moved.png": 302, "/none.png": 404}.get(self.path, 200)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", f"http://127.0.0.1:{self.server.port}/a.png")
        self.end_headers()
        if self.path == "/large.png":
            for _ in range(64):
                self.wfile.write(bytes(2**20))
        elif self.path == "/half.png":
            self.wfile.write(bytes(600 * 2**10))
        elif self.path == "/slow.png":
            while not self.server.closing.wait(0.05):
                self.wfile.write(b".")
        elif status == 200:
            self.wfile.write(b"<html>" if self.path == "/page.png" else IMAGE)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def showing(context: ssl.SSLContext | None = None) -> Iterator[Gallery]:
    gallery = Gallery(context)
    try:
        yield gallery
    finally:
        gallery.closing.set()
        gallery.shutdown()
        gallery.server_close()


@pytest.fixture
def gallery() -> Iterator[Gallery]:
    with showing() as opened:
        yield opened


def ask(vendor: Running, urls: list[str]) -> tuple[httpx2.Response, int]:
    """Return a vendor's answer about images, and what it has sold."""
    body = {"model": "stub:m", "modality": "image", "input": urls}
    headers = {"Authorization": f"Bearer {vendor.key}"}
    answer = httpx2.post(f"{vendor.url}/v1/embeddings", json=body, headers=headers, timeout=30)
    assert vendor.meter.held("client") == 0
    return answer, vendor.meter.sold("client")


def fetched(place: str, path: str = "a.png", scheme: str = "http", context: ssl.SSLContext | None = None) -> bytes:
    """Return what is fetched from the only place on an allow-list."""

    async def fetch() -> bytes:
        allowed = Addresses([place], 2**20, context)
        try:
            (data,) = await allowed.fetch([allowed.parse(f"{scheme}://{place}/{path}")])
            return data
        finally:
            await allowed.close()

    return asyncio.run(fetch())


def test_images_of_an_allowed_host_are_answered_as_if_they_had_been_sent(gallery: Gallery, tmp_path: Path) -> None:
    place = f"127.0.0.1:{gallery.port}"
    with running(tmp_path / "vendor", addresses=Addresses([place], 2**20)) as vendor:
        answer, sold = ask(vendor, [f"http://{place}/a.png?size=1#top", f"http://{place}/b.png"])
    np.testing.assert_allclose([item["embedding"] for item in answer.json()["data"]], [row(IMAGE)] * 2, atol=1e-6)
    assert sold == 2 and sorted(gallery.seen) == [("/a.png?size=1", place), ("/b.png", place)]


def test_what_a_server_can_try(gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tricks = {
        "moved.png": r"can't be fetched \(status 302\)",
        "none.png": r"can't be fetched \(status 404\)",
        "large.png": "too large: at most 1048576 bytes a request",
        "page.png": r"input\[0\] can't be decoded: not an image",
        "slow.png": "not fetched within 0.5 s",
    }
    place = f"127.0.0.1:{gallery.port}"
    with running(tmp_path / "vendor", addresses=Addresses([place], 2**20)) as vendor:
        assert ask(vendor, [f"http://{place}/half.png"] * 2)[0].status_code == 400, "too large together"
        for path, words in tricks.items():
            if path == "slow.png":
                monkeypatch.setattr(addresses, "SECONDS", 0.5)
            answer, sold = ask(vendor, [f"http://{place}/{path}"])
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], sold) == (400, "invalid_image", 0)
            assert re.search(words, error["message"]), path
    assert len(gallery.seen) == len(tricks) + 2, "a redirect isn't followed"


def test_every_other_address_is_refused_unseen(gallery: Gallery, tmp_path: Path) -> None:
    here = f"127.0.0.1:{gallery.port}"
    urls = [
        f"http://127.0.0.1:{gallery.port + 1}/a.png",
        f"http://localhost:{gallery.port}/a.png",
        f"http://127.1:{gallery.port}/a.png",
        "http://images.test/a.png",
        "https://images.test:8443/a.png",
        "https://images.test.evil.test/a.png",
        f"https://images.test@{here}/a.png",
        "https://@images.test/a.png",
        f"ftp://{here}/a.png",
        f"//{here}/a.png",
        "file:///etc/passwd",
        f"http://[{here}/a.png",
        "https://images.test:port/a.png",
        "gopher:",
    ]
    with running(tmp_path / "vendor", addresses=Addresses([here, "images.test"], 2**20)) as vendor:
        for url in urls:
            answer, sold = ask(vendor, [url])
            assert answer.status_code == 400 and sold == 0, url
            assert "not on the list" in answer.text or "not an address" in answer.text, url
    assert gallery.seen == []


def names(monkeypatch: pytest.MonkeyPatch, **found: str) -> list[str]:
    """Let names stand for addresses, the first time that they are looked up; return what is asked for."""
    resolved: list[str] = []
    real = socket.getaddrinfo

    def look_up(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        if host not in found:
            return real(host, port, *args, **options)
        resolved.append(host)
        if resolved.count(host) > 1:
            raise AssertionError("looked up twice: it could stand for something else by now")
        return real(found[host], port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return resolved


PRIVATE = [
    *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "100.64.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1"),
    *("::1", "::", "fe80::1", "fd00::1", "ff02::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"),
]


@pytest.mark.parametrize("place", PRIVATE)
def test_a_name_that_stands_for_something_inside_is_refused(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = names(monkeypatch, **{"images.test": place})
    with pytest.raises(Unfetched, match="its host is not public"):
        fetched("images.test", scheme="https")
    assert resolved == ["images.test"]


def test_what_was_checked_is_what_is_connected_to(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = names(monkeypatch, **{"images.test": "127.0.0.1"})
    assert fetched(f"images.test:{gallery.port}") == IMAGE and resolved == ["images.test"]
    assert gallery.seen == [("/a.png", f"images.test:{gallery.port}")]


def test_http_is_for_this_machine_only() -> None:
    with pytest.raises(Unfetched, match="only https is fetched"):
        fetched("192.0.2.1:8080")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make certificates with")
def test_the_certificate_has_to_be_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subject = ["-subj", "/CN=images.test", "-addext", "subjectAltName=DNS:images.test", "-days", "2"]
    subprocess.run([*made, "-keyout", key, "-out", certificate, *subject], check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    trusting = ssl.create_default_context(cafile=str(certificate))
    with showing(server) as gallery:
        names(monkeypatch, **{"images.test": "127.0.0.1", "other.test": "127.0.0.1"})
        assert fetched(f"images.test:{gallery.port}", scheme="https", context=trusting) == IMAGE
        with pytest.raises(Unfetched, match="can't be fetched"):
            fetched(f"other.test:{gallery.port}", scheme="https", context=trusting)
        assert len(gallery.seen) == 1


@pytest.mark.parametrize("text", ["", "https://images.test", "images.test/a", "a@images.test", "images.test:x", ":443"])
def test_an_entry_that_is_no_host(text: str) -> None:
    with pytest.raises(ConfigError, match="write it as HOST or HOST:PORT"):
        Addresses([text], 1)
