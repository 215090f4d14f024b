"""Broken uploads: some hundreds here, ten thousand in benchmarks/fuzz_serve.py."""

from __future__ import annotations

import asyncio
from collections import Counter

from .conftest import Servers
from .fuzz import FILES, REQUESTS, send


def test_broken_uploads_are_refused_and_whole_ones_answered(served: Servers) -> None:
    url = served()
    found = asyncio.run(send(int(url.rpartition(":")[2]), 0, 400))
    assert found.total() == 400 and {kind for kind, _ in found} >= {*FILES, *REQUESTS} - {"bomb", "very large"}
    assert not [each for each in found if each[1] == 0 or each[1] >= 500]
    assert Counter({each: count for each, count in found.items() if each[0] == "whole"}) == {("whole", 200): 40}
