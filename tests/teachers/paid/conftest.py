"""A vendor on loopback, and a teacher behind its API."""

from __future__ import annotations

import pytest

from vl2v.teachers import open_teacher

from .helpers import KINDS, PRICES
from .vendor import KEY, Budget, Vendor


@pytest.fixture
def vendor():
    with Vendor() as server:
        yield server
        server.shutdown()


@pytest.fixture
def rent(vendor, monkeypatch, tmp_path):
    def opened(kind="openai-compatible", more="", budget=10**9, model="m-1"):
        table = tmp_path / "vendors.toml"
        table.write_text(PRICES.format(kind=kind, more=more))
        monkeypatch.setenv("VL2V_VENDORS", str(table))
        monkeypatch.setenv(KINDS[kind], KEY)
        teacher = open_teacher(f"{kind}:{vendor.url}#{model}")
        teacher.budget = Budget(budget)
        return teacher

    return opened
