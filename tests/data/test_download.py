"""A file comes whole or not at all: from a real server that cuts, changes, lies and refuses."""

from __future__ import annotations

import hashlib
import re
import resource
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vl2v.data import download
from vl2v.data.download import Lock, fetch, megabytes, sha256_of
from vl2v.errors import DataError

DATA = bytes(range(256)) * 12_000  # 3 MB
OTHER = DATA[::-1]

Fault = Callable[["Handler"], bool]
"""Answers in the server's place and returns True, or returns False to let it answer."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, data: bytes = DATA) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.etag, self.ranges = data, '"one"', True
        self.date: str | None = None
        self.faults: list[Fault] = []  # the next requests', one each
        self.cuts: list[int] = []  # the next answers' lengths
        self.requests: list[dict[str, str]] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/set.zip"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.requests.append({key.lower(): value for key, value in self.headers.items()})
        if server.faults and server.faults.pop(0)(self):
            return
        start = 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and server.ranges and self.headers.get("If-Range") in (None, server.etag, server.date):
            start = int(wanted[1])
        if start >= len(server.data):
            self.answer(416, {"Content-Range": f"bytes */{len(server.data)}", "Content-Length": "0"}, b"")
            return
        body = server.data[start:]
        headers = {"Content-Length": str(len(body))}
        if server.etag:
            headers["ETag"] = server.etag
        if server.date:
            headers["Last-Modified"] = server.date
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(server.data) - 1}/{len(server.data)}"
        cut = server.cuts.pop(0) if server.cuts else len(body)
        self.answer(206 if start else 200, headers, body[:cut])
        self.close_connection = True

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)


def status(code: int, **headers: str) -> Fault:
    def answer(handler: Handler) -> bool:
        handler.answer(code, {"Content-Length": "0", **headers}, b"")
        return True

    return answer


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as opened:
        yield opened
        opened.shutdown()


def got(server: Server, target: Path, **more: Any) -> str:
    return fetch([server.url], target, pause=0, **more)


def left(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def ranges(server: Server) -> list[str | None]:
    return [request.get("range") for request in server.requests]


def test_a_file_arrives_with_its_hash_and_progress(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    sha256 = got(server, tmp_path / "set.zip", progress=lambda task, done, total, remark: seen.append((done, total)))
    assert sha256 == hashlib.sha256(DATA).hexdigest() == sha256_of(tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == DATA and left(tmp_path) == {"set.zip"}
    assert seen[-1] == (megabytes(len(DATA)),) * 2 and seen == sorted(seen)
    assert server.requests[0]["accept-encoding"] == "identity"  # lengths and ranges are of the file's own bytes


def test_cut_connections_are_resumed(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000, 500_000, 700_000]
    got(server, tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == DATA
    assert ranges(server) == [None, "bytes=1000000-", "bytes=1500000-", "bytes=2200000-"]
    assert [request.get("if-range") for request in server.requests] == [None, '"one"', '"one"', '"one"']


def test_the_next_run_goes_on(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.cuts = [1_000_000]
    monkeypatch.setattr(download, "TRIES", 1)
    with pytest.raises(DataError, match=r"closed connection.*; 1,000,000 bytes are saved, the same command resumes"):
        got(server, tmp_path / "set.zip")
    assert left(tmp_path) == {"set.zip.part", "set.zip.part.json"}
    got(server, tmp_path / "set.zip")
    assert ranges(server)[-1] == "bytes=1000000-"
    assert (tmp_path / "set.zip").read_bytes() == DATA and left(tmp_path) == {"set.zip"}


def test_a_file_that_changed_in_between_begins_anew(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000]

    def change(handler: Handler) -> bool:
        handler.server.data, handler.server.etag = OTHER, '"two"'
        return False

    server.faults = [lambda _handler: False, change]
    got(server, tmp_path / "set.zip")
    assert ranges(server) == [None, "bytes=1000000-"]
    assert (tmp_path / "set.zip").read_bytes() == OTHER  # and not the one's beginning with the other's end


def test_a_server_without_ranges_begins_anew(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cuts = False, [1_000_000]
    got(server, tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == DATA


def test_a_date_does_where_there_is_no_strong_etag(server: Server, tmp_path: Path) -> None:
    server.etag, server.date = 'W/"weak"', "Tue, 24 Nov 2026 08:00:00 GMT"
    server.cuts = [1_000_000]
    got(server, tmp_path / "set.zip")
    assert server.requests[1]["if-range"] == server.date and (tmp_path / "set.zip").read_bytes() == DATA


def test_without_etag_and_date_nothing_is_glued_together(server: Server, tmp_path: Path) -> None:
    server.etag, server.cuts = "", [1_000_000]
    got(server, tmp_path / "set.zip")
    assert ranges(server) == [None, None] and (tmp_path / "set.zip").read_bytes() == DATA


def test_a_wrong_range_is_not_glued_together(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000]
    wrong = status(206, **{"Content-Range": f"bytes 7-{len(DATA) - 1}/{len(DATA)}"})
    server.faults = [lambda _handler: False, wrong]
    got(server, tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == DATA


def test_a_part_that_is_the_whole_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000]

    def killed(task: str, done: int, total: int, remark: str) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        got(server, tmp_path / "set.zip", progress=killed)
    assert left(tmp_path) == {"set.zip.part", "set.zip.part.json"}
    before = len(server.requests)
    got(server, tmp_path / "set.zip")
    assert len(server.requests) == before + 1 and (tmp_path / "set.zip").read_bytes() == DATA


def test_a_wrong_checksum_is_deleted(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"set\.zip: SHA-256 is [0-9a-f]{64}, it should be 0000.* was deleted"):
        got(server, tmp_path / "set.zip", sha256="0" * 64)
    assert left(tmp_path) == set()


@pytest.mark.parametrize("code", [403, 404])
def test_a_refusal_is_not_requested_again(server: Server, tmp_path: Path, code: int) -> None:
    server.faults = [status(code)]
    with pytest.raises(DataError, match=f"the server says {code}"):
        got(server, tmp_path / "set.zip")
    assert len(server.requests) == 1


def test_a_busy_server_is_tried_again_but_not_for_ever(server: Server, tmp_path: Path) -> None:
    server.faults = [status(503), status(429)]
    got(server, tmp_path / "set.zip")
    server.faults, server.requests = [status(503)] * 50, []
    with pytest.raises(DataError, match="503"):
        got(server, tmp_path / "again.zip")
    assert len(server.requests) == download.TRIES


def test_another_address_is_tried(server: Server, tmp_path: Path) -> None:
    with Server() as gone:
        nobody = gone.url
        gone.shutdown()
    with Server() as broken:
        broken.faults = [status(500)] * 50
        fetch([nobody, broken.url, server.url], tmp_path / "set.zip", pause=0)
        broken.shutdown()
    assert (tmp_path / "set.zip").read_bytes() == DATA


def test_a_part_is_kept_while_the_first_address_is_down(server: Server, tmp_path: Path) -> None:
    with Server() as gone:
        nobody = gone.url
        gone.shutdown()
    server.cuts, server.faults = [1_000_000], [lambda _handler: False, *[status(503)] * 5]
    with pytest.raises(DataError, match="127"):
        fetch([nobody, server.url], tmp_path / "set.zip", pause=0)
    fetch([nobody, server.url], tmp_path / "set.zip", pause=0)
    assert ranges(server)[-1] == "bytes=1000000-" and (tmp_path / "set.zip").read_bytes() == DATA


def test_redirects_are_followed_but_not_without_end(server: Server, tmp_path: Path) -> None:
    server.faults = [status(302, Location="/there.zip")]
    got(server, tmp_path / "set.zip")
    server.faults = [status(302, Location="/round.zip")] * 50
    with pytest.raises(DataError, match="redirects"):
        got(server, tmp_path / "again.zip")


def test_more_than_there_should_be_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="should have 1,000 at most"):
        got(server, tmp_path / "set.zip", most=1000)

    def endless(handler: Handler) -> bool:
        handler.answer(200, {"Connection": "close"}, DATA)  # no length told
        handler.close_connection = True
        return True

    server.faults = [endless]
    with pytest.raises(DataError, match="more than 1,000 bytes"):
        got(server, tmp_path / "set.zip", most=1000)
    assert left(tmp_path) == set()


def test_the_lock_keeps_the_first_hash(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock.json")
    assert lock.sha256("pacs", "PACS.zip") is None
    lock.add("pacs", "PACS.zip", "ab" * 32, 7)
    lock.add("vlcs", "VLCS.tar.gz", "cd" * 32, 8)
    assert Lock(tmp_path / "lock.json").sha256("pacs", "PACS.zip") == "ab" * 32
    assert left(tmp_path) == {"lock.json", ".lock.json.lock"}
    (tmp_path / "lock.json").write_text("{")
    with pytest.raises(DataError, match=r"lock\.json: can't be read"):
        lock.sha256("pacs", "PACS.zip")


def test_a_full_disk_is_reported_where_the_hash_can_not_be_kept(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock.json")
    lock.add("pacs", "PACS.zip", "ab" * 32, 7)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(DataError, match=r"lock\.json: can't be written .*free some space"):
            lock.add("vlcs", "VLCS.tar.gz", "cd" * 32, 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert lock.sha256("pacs", "PACS.zip") == "ab" * 32
