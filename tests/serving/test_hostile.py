"""What strangers send: images that are large in memory, keys that are guessed, clients that flood."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vl2v.data.augment import evaluation_view
from vl2v.data.decoding import decode
from vl2v.errors import ConfigError
from vl2v.serving import access, decoders
from vl2v.serving import serve as serving
from vl2v.serving.decoders import BadImage, Decoders, Turns
from vl2v.web.batches import Batches, Busy, Waited

from .conftest import Servers, http


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


LARGE = encoded(Image.linear_gradient("L").resize((3000, 2000)).convert("RGB"), "JPEG")
GREY = encoded(Image.new("I;16", (8000, 8000)))  # 384 MB while it is decoded
BROKEN = LARGE[: len(LARGE) // 2]


def test_large_images_are_decoded_elsewhere_to_the_same_pixels_and_small_ones_here() -> None:
    async def both() -> None:
        elsewhere, small = Decoders(32, "stretch"), encoded(Image.new("RGB", (40, 30), "red"))
        try:
            views = await elsewhere.views([LARGE, small, b"no image", LARGE], "a")
            assert views[1:3] == [small, b"no image"]
            for view in (views[0], views[3]):
                assert (np.asarray(view) == evaluation_view(decode(LARGE), 32)).all()
            with pytest.raises(
                BadImage, match=r"images\[1\] can't be decoded: too large \(8000x8000 pixels need 384 MB"
            ):
                await elsewhere.views([small, GREY], "a")
            with pytest.raises(BadImage, match=r"images\[0\] can't be decoded: truncated or corrupt"):
                await elsewhere.views([BROKEN], "a")
            assert len(await elsewhere.views([LARGE], "a")) == 1, "a broken one costs the next nothing"
        finally:
            await elsewhere.close()

    asyncio.run(both())


def test_processor_time_is_bounded_and_the_next_image_gets_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    async def late() -> None:
        elsewhere = Decoders(32, "stretch")
        try:
            monkeypatch.setattr(decoders, "SECONDS", 0.001)
            with pytest.raises(BadImage, match=r"takes over 0\.001 s of processor time to decode"):
                await elsewhere.views([encoded(Image.new("RGB", (7000, 7000)))], "a")
            monkeypatch.undo()
            assert len(await elsewhere.views([LARGE], "a")) == 1
        finally:
            await elsewhere.close()

    asyncio.run(late())


def test_clients_take_turns() -> None:
    async def order() -> list[str]:
        turns, had = Turns(1, waiting=3), []

        async def one(client: str) -> None:
            async with turns.turn(client):
                had.append(client)
                await asyncio.sleep(0)

        async with turns.turn("first"):
            waiting = [asyncio.create_task(one(client)) for client in ("a", "a", "a", "b", "c")]
            await asyncio.sleep(0)
            with pytest.raises(Busy):
                await one("a")
        await asyncio.gather(*waiting)
        turns.seconds = 0.01
        async with turns.turn("a"):
            with pytest.raises(Waited):
                await one("b")
        await one("c")
        assert turns.free == 1
        return had

    assert asyncio.run(order()) == ["a", "b", "c", "a", "a", "c"]


def test_a_client_that_floods_the_queue_leaves_room_for_others() -> None:
    import threading

    begun, gate, batches_of = threading.Event(), threading.Event(), []

    def work(requests: list[str]) -> list[str]:
        begun.set()
        gate.wait(60)
        batches_of.append(list(requests))
        return requests

    async def flood() -> None:
        batches: Batches[str, str] = Batches(work, most=2, waiting=4)
        tasks = [asyncio.create_task(batches.submit("first", 1, "a"))]
        assert await asyncio.to_thread(begun.wait, 60)
        tasks += [asyncio.create_task(batches.submit("a", 1, "a")) for _ in range(4)]
        await asyncio.sleep(0)
        assert batches.full(1, "a") and not batches.full(1, "b")
        with pytest.raises(Busy):
            await batches.submit("a", 1, "a")
        tasks.append(asyncio.create_task(batches.submit("b", 1, "b")))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*tasks)
        batches.close()

    asyncio.run(flood())
    assert "b" in batches_of[1], "in the first batch after it came"


def test_wrong_keys_are_not_compared_for_ever(served: Servers) -> None:
    url = served(key="a right key")
    wrong, right = {"Authorization": "Bearer no"}, {"Authorization": "Bearer a right key"}
    statuses = [http.get(f"{url}/about", headers=wrong).status_code for _ in range(access.TRIES + 1)]
    assert statuses == [401] * access.TRIES + [429]
    assert http.get(f"{url}/about", headers=right).status_code == 429, "a guess that is right isn't told apart"
    assert http.get(f"{url}/health", headers=wrong).status_code == 200
    assert http.get(f"{url}/about").status_code == 401
    other = served(key="a right key")
    assert http.get(f"{other}/about", headers=right).status_code == 200
    assert {http.get(f"{other}/about", headers=wrong).status_code for _ in range(access.TRIES + 1)} == {401}
    assert http.get(f"{other}/about", headers=right).status_code == 200, "whoever had the key goes on"


@pytest.mark.parametrize("key", ["secret", "a" * 40, "0123456789abcde", "abcabcabcabcabcabcabc"])
def test_a_key_that_is_easy_to_guess_is_refused(key: str, opened: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VL2V_SERVE_KEY", key)
    with pytest.raises(ConfigError, match=r"VL2V_SERVE_KEY: too easy to guess; at least 16 characters, 8 of them"):
        serving.serve(opened)


def test_the_health_check_of_the_container_follows_the_port(served: Servers) -> None:
    import os

    check = [sys.executable, str(Path(__file__).parents[2] / "docker" / "health.py"), str(os.getpid())]
    served()
    assert subprocess.run(check, check=False).returncode == 0
    served.stop()
    assert subprocess.run(check, check=False).returncode == 1
