"""Many clients at once: batches, turns, rates and quotas."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from loopback import until
from vl2v.vendor.keys import read_keys
from vl2v.vendor.meter import Meter

from .helpers import ask, sold
from .servers import row, running


def test_requests_of_many_are_answered_in_batches(vendor):
    with ThreadPoolExecutor(24) as pool:
        vendor.teacher.gate.clear()
        futures = [pool.submit(ask, vendor, f"text {i}") for i in range(24)]
        until(lambda: vendor.meter.held("client") == 24)
        vendor.teacher.gate.set()
        for i, future in enumerate(futures):
            np.testing.assert_allclose(future.result().json()["data"][0]["embedding"], row(f"text {i}".encode()))
    assert sum(vendor.teacher.batches) == 24 and len(vendor.teacher.batches) <= 4
    assert sold(vendor) == [("client", "text", 1, 5)] * 24


def test_overload_is_turned_away_not_collapsed_under(tmp_path):
    with running(tmp_path / "vendor", waiting=4, batch=1) as vendor:
        vendor.teacher.gate.clear()
        with ThreadPoolExecutor(12) as pool:
            futures = [pool.submit(ask, vendor, f"text {i}") for i in range(12)]
            until(lambda: sum(future.done() for future in futures) >= 7)
            vendor.teacher.gate.set()
            answers = [future.result() for future in futures]
        busy = [answer for answer in answers if answer.status_code == 429]
        assert 7 <= len(busy) <= 8 and all(answer.headers["Retry-After"] == "1" for answer in busy)
        assert vendor.meter.sold("client") == 12 - len(busy) and vendor.meter.held("client") == 0


def test_a_rate_and_a_quota_are_distinguished(tmp_path):
    with running(tmp_path / "vendor", rate=3, quota=4) as vendor:
        assert [ask(vendor, "a").status_code for _ in range(3)] == [200] * 3
        fast = ask(vendor, "a")
        assert fast.status_code == 429 and 0 < int(fast.headers["Retry-After"]) <= 60
        assert fast.json()["error"]["code"] == "rate_limit_exceeded"
    with running(tmp_path / "other", quota=4) as vendor:
        assert ask(vendor, ["a", "b", "c"]).status_code == 200
        assert ask(vendor, ["a", "b"]).json()["error"]["code"] == "insufficient_quota"
        assert ask(vendor, "a").status_code == 200
        assert ask(vendor, "a").status_code == 403


def test_a_quota_holds_when_many_ask_at_once_and_after_a_restart(tmp_path):
    with running(tmp_path / "vendor", quota=10) as vendor:
        with ThreadPoolExecutor(30) as pool:
            statuses = [answer.status_code for answer in pool.map(lambda i: ask(vendor, f"{i}"), range(30))]
        assert statuses.count(200) == 10 and statuses.count(403) == 20
        key = vendor.key

    meter = Meter(tmp_path / "vendor" / "sold.sqlite")
    assert meter.sold("client") == 10
    assert not meter.hold(read_keys(tmp_path / "vendor" / "keys.toml").find(key), 1)
    meter.close()
