"""Prices, keys, metrics and logs; how the server stops."""

from __future__ import annotations

import base64
import os
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx2
import numpy as np
import pytest

from loopback import started_server, until, until_accepted
from vl2v.errors import ConfigError
from vl2v.vendor.keys import add_key, read_keys, revoke_key
from vl2v.vendor.meter import Meter, Sale
from vl2v.vendor.serve import _reload_on_hangup

from .helpers import ask, image, sold, uri
from .servers import DIM, Stub, row, running

http = httpx2.Client(timeout=300, limits=httpx2.Limits(max_keepalive_connections=0))  # patient, and without a memory


def test_prices_by_kind(tmp_path):
    with running(tmp_path / "vendor", price=5, price_image=40) as vendor:
        ask(vendor, ["a", "b"])
        ask(vendor, [uri(image(0))], "image")
        assert [sale[1:] for sale in sold(vendor)] == [("text", 2, 10), ("image", 1, 40)]
        headers = {"Authorization": f"Bearer {vendor.key}"}
        about = http.get(f"{vendor.url}/v1/models/stub:m", headers=headers).json()
        assert about["price_micro"] == {"image": 40, "text": 5} and about["id"] == "stub:m"
        assert about == http.get(f"{vendor.url}/v1/models", headers=headers).json()["data"][0]
        assert http.get(f"{vendor.url}/v1/models/other", headers=headers).status_code == 404


def test_what_other_clients_send_by_default(vendor):
    headers = {"Authorization": f"Bearer {vendor.key}"}
    bodies = [  # LangChain without its tokens, LlamaIndex, litellm, curl
        {"input": ["a"], "model": "stub:m", "encoding_format": "base64"},
        {"input": ["a"], "model": "stub:m", "encoding_format": "base64", "user": None},
        {"input": ["a"], "model": "stub:m", "encoding_format": None, "dimensions": None},
        {"input": "a", "model": "stub:m"},
        {"input": "a", "model": "stub:m", "dimensions": DIM},
    ]
    for body in bodies:
        answer = http.post(f"{vendor.url}/v1/embeddings", json=body, headers=headers)
        assert answer.status_code == 200, (body, answer.text)
        sent = answer.json()["data"][0]["embedding"]
        vector = np.frombuffer(base64.b64decode(sent), "<f4") if isinstance(sent, str) else sent
        np.testing.assert_allclose(vector, row(b"a"), atol=1e-6)
    other = http.post(f"{vendor.url}/v1/embeddings", json={**bodies[3], "dimensions": 8}, headers=headers)
    assert other.status_code == 400 and other.json()["error"]["param"] == "dimensions"
    assert f"8; this model's embeddings have {DIM}" in other.json()["error"]["message"]
    wrong = http.put(f"{vendor.url}/v1/embeddings", json=bodies[3], headers=headers)
    assert wrong.status_code == 405 and wrong.headers["Allow"] == "POST"


def test_metrics_count_and_name_nobody(vendor):
    ask(vendor, ["a", "b"])
    ask(vendor, "a", key="wrong")
    text = http.get(f"{vendor.url}/metrics").text
    assert 'vl2v_questions_total{kind="text"} 2.0' in text and 'vl2v_requests_total{status="401"} 1.0' in text
    assert "client" not in text


def test_a_failing_model_tells_its_log_alone(tmp_path, caplog):
    class Broken(Stub):
        def rows(self, contents):
            raise RuntimeError("out of memory")

    with running(tmp_path / "vendor", Broken()) as vendor:
        answer = ask(vendor, "what only the client knows")
        assert answer.status_code == 500
        assert answer.json()["error"]["message"] == "the model failed; nothing was billed"
        assert sold(vendor) == []
        (record,) = caplog.records
        assert record.levelname == "ERROR" and "RuntimeError: out of memory" in caplog.text
        assert "what only the client knows" not in caplog.text and vendor.key not in caplog.text


def test_a_ledger_that_can_not_be_written_is_reported_logged_and_does_not_stop_it(vendor, caplog):
    with closing(sqlite3.connect(vendor.ledger)) as db:
        db.execute("CREATE TRIGGER full BEFORE INSERT ON sold BEGIN SELECT RAISE(ABORT, 'no room'); END")
        for _ in range(2):
            answer = ask(vendor, "what only the client knows")
            assert answer.status_code == 503
            assert answer.json()["error"]["message"] == "the ledger can't be written; nothing was billed"
        db.execute("DROP TRIGGER full")
    assert [record.exc_info[1].args for record in caplog.records] == [("no room",)] * 2
    assert "what only the client knows" not in caplog.text and vendor.key not in caplog.text
    assert ask(vendor, "a").status_code == 200
    assert sold(vendor) == [("client", "text", 1, 5)]
    assert vendor.meter.sold("client") == 1 and vendor.meter.held("client") == 0


def test_keys_are_kept_as_hashes_and_never_written(vendor, tmp_path, capfd):
    ask(vendor, "a")
    ask(vendor, ["x"] * 3000)
    files = [file for file in (tmp_path / "vendor").rglob("*") if file.is_file()]
    assert len(files) >= 2
    assert not [file for file in files if vendor.key.encode() in file.read_bytes()]
    assert vendor.key not in "".join(capfd.readouterr())
    assert os.stat(tmp_path / "vendor" / "keys.toml").st_mode & 0o077 == 0


def test_key_files(tmp_path):
    file = tmp_path / "keys.toml"
    one, two = add_key(file, "one", quota=3), add_key(file, "two")
    keys = read_keys(file)
    assert keys.find(one).quota == 3 and keys.find(two).name == "two" and keys.find("three") is None
    with pytest.raises(ConfigError, match="there is a key named 'one' already"):
        add_key(file, "one")
    file.write_text('[[key]]\nname = "x"\nsha256 = "short"\n')
    with pytest.raises(ConfigError, match=r"\[\[key\]\] sha256: string should match"):
        read_keys(file)
    with pytest.raises(ConfigError, match="`vl2v vendor keys add` makes it"):
        read_keys(tmp_path / "none.toml")


def test_a_revoked_key_is_not_accepted_and_its_name_not_given_away(vendor, tmp_path):
    file = tmp_path / "vendor" / "keys.toml"
    before = read_keys(file).keys
    revoke_key(file, "client")
    (after,) = read_keys(file).keys
    assert after.revoked is not None and after.model_copy(update={"revoked": None}) == before[0]
    assert read_keys(file).find(vendor.key) is None and os.stat(file).st_mode & 0o077 == 0
    assert ask(vendor, "a").status_code == 200, "until the server reads the file again"
    vendor.keys.replace(read_keys(file).keys)
    assert ask(vendor, "a").status_code == 401
    for name, words in (("client", "was revoked on"), ("nobody", "its keys are client")):
        with pytest.raises(ConfigError, match=words):
            revoke_key(file, name)
    with pytest.raises(ConfigError, match="there is a key named 'client' already"):
        add_key(file, "client")


def test_keys_are_listed_with_what_they_bought(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from vl2v.cli.vendor import app

    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    runner.invoke(app, ["keys", "add", "alice", "--price", "20", "--price-image", "30"], catch_exceptions=False)
    runner.invoke(app, ["keys", "add", "bob", "--rate", "60"], catch_exceptions=False)
    with closing(Meter(tmp_path / "sold.sqlite")) as meter:
        for client, kind, count, micro in [("alice", "image", 3, 90), ("alice", "text", 2, 40), ("eve", "text", 1, 7)]:
            meter.write([(Sale(client, kind, count, micro, "n"), np.ones((count, DIM), np.float32))])
    runner.invoke(app, ["keys", "revoke", "bob"], catch_exceptions=False)
    printed = runner.invoke(app, ["keys", "list"], catch_exceptions=False).stdout
    rows = [line.strip("\u2502 ") for line in printed.splitlines() if line.startswith("\u2502")]
    alice, bob, eve = [" ".join(row.replace("\u2502", "").split()) for row in rows]
    assert alice == "alice - - 30 20 2 3 2 0.000130 -"
    assert bob.startswith("bob 60 - 0 0 0 0 0 0.000000 20")
    assert eve == "eve - - - - 1 0 1 0.000007 no key"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")
def test_a_second_hangup_while_keys_are_read_is_not_lost(tmp_path, monkeypatch):
    file = tmp_path / "keys.toml"
    add_key(file, "one")
    keys, two, failed = read_keys(file), [], []

    def reading(path):
        failed.append(1)
        if len(failed) == 1:
            raise PermissionError("not now")
        read = read_keys(path)
        if not two:
            two.append(add_key(path, "two"))
            signal.raise_signal(signal.SIGHUP)
        return read

    monkeypatch.setattr("vl2v.vendor.serve.read_keys", reading)
    before = signal.getsignal(signal.SIGHUP)
    try:
        _reload_on_hangup(keys, file)
        signal.raise_signal(signal.SIGHUP)
        until(lambda: failed)
        signal.raise_signal(signal.SIGHUP)
        until(lambda: two and keys.find(two[0]))
    finally:
        signal.signal(signal.SIGHUP, before)


# Answers what it accepted however slow the machine is.
PATIENT = "from vl2v.web import server; server.GRACE = 300; from vl2v.cli import main; main()"


def test_stopped_it_answers_and_bills_what_it_accepted(tmp_path, quick_python):
    files = ["--keys", str(tmp_path / "keys.toml")]
    key = add_key(tmp_path / "keys.toml", "me")
    more = ["--teacher", "tiny", "--ledger", str(tmp_path / "sold.sqlite")]
    process, url = started_server("vendor", "serve", *files, *more, program=PATIENT, python=quick_python)
    try:
        body = {"model": "tiny", "input": [uri(image(i)) for i in range(8)], "modality": "image"}
        headers = {"Authorization": f"Bearer {key}"}
        (tmp_path / "broken").write_text("[[key")
        keys = (tmp_path / "keys.toml").read_bytes()
        os.replace(tmp_path / "broken", tmp_path / "keys.toml")
        process.send_signal(signal.SIGHUP)  # the keys stay as they were
        (tmp_path / "keys.toml.new").write_bytes(keys)
        os.replace(tmp_path / "keys.toml.new", tmp_path / "keys.toml")
        other = add_key(tmp_path / "keys.toml", "other")
        process.send_signal(signal.SIGHUP)
        models = f"{url}/v1/models"
        until(lambda: http.get(models, headers={"Authorization": f"Bearer {other}"}).status_code == 200)
        assert http.get(models, headers=headers).status_code == 200
        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(http.post, f"{url}/v1/embeddings", json=body, headers=headers) for _ in range(4)]
            until_accepted(url, 32)
            process.send_signal(signal.SIGTERM)
            answers = [future.result() for future in futures]
        assert process.wait(300) in (0, -signal.SIGTERM)
    finally:
        process.kill()
    assert [answer.status_code for answer in answers] == [200] * 4
    with sqlite3.connect(tmp_path / "sold.sqlite") as db:
        assert db.execute("SELECT sum(count) FROM sold").fetchone() == (32,)
    assert "Traceback" not in process.stderr.read()


def test_it_keeps_to_its_own_openapi_document(tmp_path):
    import schemathesis
    from hypothesis import HealthCheck, given, settings

    with running(tmp_path / "vendor") as vendor:
        schema = schemathesis.openapi.from_url(f"{vendor.url}/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) == 5
        for operation in operations:

            @given(case=operation.as_strategy())
            @settings(
                max_examples=25 if operation.method == "post" else 5,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            )
            def conforms(case: Any) -> None:
                case.call_and_validate(headers={"Authorization": f"Bearer {vendor.key}"})

            conforms()
