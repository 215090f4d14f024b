"""A vendor of one's own, whose teacher is a stub."""

from __future__ import annotations

import pytest

from .servers import running


@pytest.fixture
def vendor(tmp_path):
    with running(tmp_path / "vendor", price=5) as opened:
        yield opened
