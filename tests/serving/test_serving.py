"""A student behind HTTP, as clients meet it."""

from __future__ import annotations

import base64
import io
import re
import shutil
import signal
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from typer.testing import CliRunner

import vl2v
import vl2v.deploy.runtime
from loopback import started_server, until, until_accepted
from vendor.servers import Running, running
from vl2v.cli.app import app
from vl2v.data.augment import evaluation_view
from vl2v.data.decoding import decode
from vl2v.embeddings.schema import text_key
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import ConfigError, StudentError
from vl2v.serving import app as application
from vl2v.serving import serve as serving
from vl2v.serving.access import OPEN
from vl2v.serving.requests import BODY, NewClass
from vl2v.serving.service import Network
from vl2v.teachers import open_teacher
from vl2v.teachers.protocol import Teacher
from vl2v.web.batches import Busy

from .conftest import Servers, http


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_images_come_as_files_or_base64_one_or_many(served: Servers, opened: Path, shapes: Path) -> None:
    url = served()
    images = [file.read_bytes() for file in sorted((shapes / "paint").rglob("*.png"))[::5]]
    expected = vl2v.deploy.runtime.load(opened).predict(images)
    files = [("image", (f"{i}.png", data, "image/png")) for i, data in enumerate(images)]
    for answer in (
        http.post(f"{url}/predict", files=files),
        http.post(f"{url}/predict", json={"images": [b64(data) for data in images]}),
        http.post(f"{url}/predict", json={"images": [f"data:image/png;base64,{b64(data)}" for data in images]}),
    ):
        assert answer.status_code == 200, answer.text
        for said, wanted in zip(answer.json()["predictions"], expected, strict=True):
            assert (said["label"], said["best"]) == (wanted.label, wanted.best)
            assert said["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-5)
    one = http.post(f"{url}/predict", json={"images": b64(images[0])}).json()
    assert one["model"] == "student" and len(one["predictions"]) == 1


def test_the_kserve_protocol_takes_pixels_and_files(served: Servers, opened: Path, image: bytes) -> None:
    url = served(name="shapes")
    for path in ("health/live", "health/ready", "models/shapes/ready"):
        assert http.get(f"{url}/v2/{path}").status_code == 200
    about = http.get(f"{url}/v2/models/shapes").json()
    assert about["platform"] == "onnxruntime_onnx" and about["inputs"][1]["shape"] == [-1, 32, 32, 3]
    (wanted,) = vl2v.deploy.runtime.load(opened).predict([image])
    pixels = evaluation_view(decode(image), 32)
    file = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [b64(image)]}
    flat = {"name": "pixels", "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": pixels.ravel().tolist()}
    nested = {**flat, "data": pixels[None].tolist()}
    for given in (file, flat, nested):
        answer = http.post(f"{url}/v2/models/shapes/infer", json={"id": "7", "inputs": [given]}).json()
        outputs = {output["name"]: output["data"] for output in answer["outputs"]}
        assert answer["id"] == "7" and outputs["label"] == [wanted.label] and outputs["best"] == [wanted.best]
        assert outputs["probabilities"] == pytest.approx(list(wanted.probabilities.values()), abs=1e-5)
    body = {"inputs": [file], "outputs": [{"name": "label"}]}
    assert len(http.post(f"{url}/v2/models/shapes/infer", json=body).json()["outputs"]) == 1
    assert http.post(f"{url}/v2/models/other/infer", json=body).status_code == 404
    wrong = {**flat, "shape": [1, 16, 16, 3]}
    assert "[n, 32, 32, 3]" in http.post(f"{url}/v2/models/shapes/infer", json={"inputs": [wrong]}).json()["error"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"images": [b64(b"no image")]}, 400, "images[0] can't be decoded: not "),
        ({"images": "http://169.254.169.254/latest"}, 400, "addresses are not fetched"),
        ({"images": "file:///etc/passwd"}, 400, "addresses are not fetched"),
        ({"images": []}, 422, "images: List should have at least 1 item"),
        ({"images": []}, 422, "images: List should have at least 1 item"),
        ({"images": ["AAAA"] * 65}, 422, "images: List should have at most 64 items"),
        ({"image": "AAAA"}, 422, "images: Field required"),
    ],
)
def test_what_is_not_answered_is_explained(served: Servers, body: Any, status: int, words: str) -> None:
    answer = http.post(f"{served()}/predict", json=body)
    assert answer.status_code == status and words in answer.json()["error"]


def test_base64_may_have_line_breaks(served: Servers, image: bytes) -> None:
    url, text = served(), base64.encodebytes(image).decode()
    for written in (text, text.replace("\n", "\r\n"), f"DATA:image/png;base64,{text}"):
        assert http.post(f"{url}/predict", json={"images": written}).status_code == 200
    assert http.post(f"{url}/predict", json={"images": text}).status_code == 200, "as the key was called"


def test_what_an_address_can_do_is_reported(served: Servers) -> None:
    url = served()
    for path, allowed in (("/classes", "GET, POST"), ("/predict", "POST"), ("/classes/cone", "DELETE")):
        answer = http.patch(url + path)
        assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)


def test_a_class_that_can_be_taken_for_another_is_refused_and_any_can_be_removed(
    served: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, text = served(), [1.0] * 16
    added = http.post(f"{url}/classes", json={"name": " Air  Plane ", "embedding": text})
    assert added.status_code == 201 and added.json()["classes"][-1] == "Air Plane"
    for name in ("air plane", "Unknown", "..", "st\u200bar", "Cone"):
        assert http.post(f"{url}/classes", json={"name": name, "embedding": text}).status_code == 409, name
    assert http.delete(f"{url}/classes/air%20plane").json()["classes"] == ["ball", "box", "cone"]
    monkeypatch.setattr(application, "ADDED", 1)
    bounded = served()
    statuses = [http.post(f"{bounded}/classes", json={"name": n, "embedding": text}).status_code for n in ("x", "y")]
    assert statuses == [201, 409]


def test_a_bomb_a_huge_body_and_one_that_never_ends(served: Servers, image: bytes) -> None:
    url = served()
    bomb = io.BytesIO()
    Image.new("1", (9000, 9000)).save(bomb, "PNG")
    answer = http.post(f"{url}/predict", files={"image": bomb.getvalue()})
    assert answer.status_code == 400 and "too large (9000x9000 pixels)" in answer.text
    result = HTTPConnection(url.removeprefix("http://"))
    result.putrequest("POST", "/predict")
    result.putheader("Content-Length", str(BODY + 1))
    result.endheaders()  # its first byte is never sent
    assert result.getresponse().status == 413
    sent: list[int] = []

    def endless() -> Any:
        while True:
            sent.append(1)
            yield b" " * 2**20

    try:
        streamed = http.post(f"{url}/predict", content=endless(), headers={"Content-Type": "application/json"})
        assert streamed.status_code == 413
    except (httpx2.WriteError, httpx2.ReadError):
        pass  # it hung up on us
    assert len(sent) < 3 * BODY // 2**20
    assert http.post(f"{url}/predict", files={"image": image}).status_code == 200


def test_another_clients_broken_image_fails_nobody_else(opened: Path, image: bytes) -> None:
    network = Network(vl2v.deploy.runtime.load(opened, threads=1))
    good, bad, both = network.compute([[image], [b"no"], [image, image]])
    assert isinstance(bad, Exception) and "images[0] can't be decoded" in str(bad)
    assert good.shape[0] == 1 and both.shape[0] == 2  # type: ignore[union-attr]
    np.testing.assert_allclose(both, np.repeat(good, 2, 0), atol=1e-6)  # type: ignore[arg-type]


def test_classes_are_added_by_text_and_taken_away(served: Servers, recording: Path, image: bytes) -> None:
    url = served(teacher=f"recorded:{recording}")
    assert http.get(f"{url}/classes").json() == {"classes": ["ball", "box", "cone"], "obstacle": None}
    added = http.post(f"{url}/classes", json={"name": " star "})
    assert added.status_code == 201 and added.json()["classes"] == ["ball", "box", "cone", "star"]
    said = http.post(f"{url}/predict", files={"image": image}).json()["predictions"][0]
    assert set(said["probabilities"]) == {"ball", "box", "cone", "star"}
    assert http.post(f"{url}/classes", json={"name": "star"}).status_code == 409
    reserved = http.post(f"{url}/classes", json={"name": "unknown"})
    assert reserved.status_code == 409 and "choose another name" in reserved.json()["error"]
    unknown = http.post(f"{url}/classes", json={"name": "comet"})  # nothing of the teacher's words, or paths
    assert (unknown.status_code, unknown.json()["error"]) == (
        502,
        "the teacher can't be queried; the server's log says why",
    )
    assert http.delete(f"{url}/classes/star").json()["classes"] == ["ball", "box", "cone"]
    assert http.delete(f"{url}/classes/star").status_code == 404
    for name in ("ball", "box"):
        http.delete(f"{url}/classes/{name}")
    last = http.delete(f"{url}/classes/cone")
    assert last.status_code == 409 and "the only one left" in last.json()["error"]


def test_without_a_teacher_a_class_needs_its_embedding_or_a_stored_one(
    served: Servers, closed: Path, recording: Path
) -> None:
    url = served()
    refused = http.post(f"{url}/classes", json={"name": "star"})
    assert refused.status_code == 409 and "start with --teacher" in refused.json()["error"]
    given = http.post(f"{url}/classes", json={"name": "star", "embedding": [1.0] * 16})
    assert given.status_code == 201
    assert http.post(f"{url}/classes", json={"name": "moon", "embedding": [1.0] * 3}).status_code == 409
    assert http.post(f"{url}/classes", json={"name": "moon", "embedding": [0.0] * 16}).status_code == 422
    taught = served(teacher=f"recorded:{recording}")
    assert http.post(f"{taught}/classes", json={"name": "star"}).status_code == 201
    other = served()  # the store knows the star from now on
    assert http.post(f"{other}/classes", json={"name": "star"}).status_code == 201
    missing = http.post(f"{other}/classes", json={"name": "comet"})
    assert missing.status_code == 409 and "no text of 'comet' is stored" in missing.json()["error"]
    fixed = served(closed)
    assert "the same `vl2v export` command with --open" in http.get(f"{fixed}/classes").json()["obstacle"]
    assert http.post(f"{fixed}/classes", json={"name": "star"}).status_code == 409
    assert http.delete(f"{fixed}/classes/ball").status_code == 409


def test_the_teacher_is_queried_on_request(served: Servers, recording: Path, image: bytes) -> None:
    alone = served()
    assert http.get(f"{alone}/about").json()["teacher"] is None
    assert http.post(f"{alone}/teacher", json={"image": b64(image)}).status_code == 409
    url = served(teacher=f"recorded:{recording}")
    said = http.post(f"{url}/teacher", json={"image": b64(image)}).json()
    assert said["answer"]["best"] == "ball" and said["teacher"] == {
        "name": "recorded:shapes-teacher",
        "paid": False,
        "bill": None,
    }
    assert http.post(f"{url}/teacher", json={"image": b64(b"no")}).status_code == 400


def test_another_teacher_is_refused(served: Servers) -> None:
    with pytest.raises(ConfigError, match="not the one that the student learned from"):
        served(teacher="tiny")


def pupil_of(vendor: Running, opened: Path) -> tuple[vl2v.deploy.runtime.Exported, Teacher]:
    """Return a student as if it had learned from a vendor's model, and that teacher."""
    teacher = open_teacher(f"openai-compatible:{vendor.url}/v1#stub:m")
    student = vl2v.deploy.runtime.load(opened, threads=1)
    student.card["teacher"] = teacher.fingerprint
    return student, teacher


def test_a_paid_teacher_is_paid_once_an_image_and_within_the_budget(
    served: Servers, opened: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path / "vendor", price=5) as vendor:
        monkeypatch.setenv("VL2V_API_KEY", vendor.key)
        student, teacher = pupil_of(vendor, opened)
        with pytest.raises(ConfigError, match="say how much with --budget"):
            served(student, teacher)
        url = served(student, teacher, budget=27e-6)
        assert http.get(f"{url}/about").json()["teacher"]["bill"] == "0.00 USD of 0.000027 USD"
        images = [b64(file.read_bytes()) for file in sorted((shapes / "paint").rglob("*.png"))[:3]]
        replies = [http.post(f"{url}/teacher", json={"image": images[number]}) for number in (0, 1, 0, 2)]
        assert [answer.status_code for answer in replies] == [200, 200, 200, 402]
        assert replies[2].json()["teacher"]["bill"] == "0.000025 USD of 0.000027 USD"
        assert replies[3].json() == {"error": "the budget for the teacher is used up"}
        assert (
            vendor.meter.sold("client") == 5
        )  # a known text, an image, and the image's bytes as a text: once; and two images
        assert vendor.key not in "".join(answer.text for answer in replies)


def test_the_bill_is_reported_while_a_query_is_in_flight(
    served: Servers, opened: Path, image: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path / "vendor", price=5) as vendor:
        monkeypatch.setenv("VL2V_API_KEY", vendor.key)
        student, teacher = pupil_of(vendor, opened)
        url = served(student, teacher, budget=1)
        with ThreadPoolExecutor(1) as pool:
            vendor.teacher.gate.clear()
            answer = pool.submit(http.post, f"{url}/teacher", json={"image": b64(image)})
            try:  # until something is reserved: the vendor holds it
                until(lambda: http.get(f"{url}/about").json()["teacher"]["bill"] != "0.00 USD of 1.00 USD", [answer])
                assert not answer.done()
            finally:
                vendor.teacher.gate.set()
            assert answer.result().status_code == 200, answer.result().text
        again = http.post(f"{url}/teacher", json={"image": b64(image)}).json()
        assert again["answer"] == answer.result().json()["answer"]
        assert again["teacher"]["bill"] == "0.00002 USD of 1.00 USD"
        assert vendor.meter.sold("client") == 4  # a known text, an image, and its bytes as a text; and the image: once


def test_every_address_without_the_key(served: Servers, image: bytes) -> None:
    url = served(key="secret")
    mine = {"Authorization": "Bearer secret"}
    routes = http.get(f"{url}/openapi.json", headers=mine).json()["paths"]
    assert {"/predict", "/classes", "/teacher", "/metrics", "/v2/models/{model}/infer"} < set(routes)
    for path, methods in [*routes.items(), ("/openapi.json", ["get"]), ("/docs", ["get"]), ("/any/other", ["post"])]:
        for method in methods:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic c2VjcmV0"}):
                answer = http.request(method, url + path.replace("{model}", "student"), headers=headers)
                assert answer.status_code == (200 if path in OPEN else 401), (path, method)
    assert http.post(f"{url}/predict", files={"image": image}, headers=mine).status_code == 200


def test_pages_elsewhere_can_do_nothing(served: Servers, image: bytes) -> None:
    url = served()
    rebound = http.get(f"{url}/about", headers={"Host": "evil.example"})  # a name that was pointed to 127.0.0.1
    assert rebound.status_code == 400
    simple = http.post(f"{url}/classes", content='{"name": "x"}', headers={"Content-Type": "text/plain"})
    assert simple.status_code == 415  # what a browser sends without asking first
    there = {"Origin": "https://there.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in http.options(f"{url}/classes", headers=there).headers
    other = served(origins=["https://there.example"])
    assert http.options(f"{other}/classes", headers=there).headers["access-control-allow-origin"] == there["Origin"]
    given: dict[str, Any] = {"files": {"image": image}}  # a form, which a browser sends without asking first
    for origin in (there["Origin"], "http://127.0.0.1:1", "null"):
        assert http.post(f"{url}/predict", headers={"Origin": origin}, **given).status_code == 403
        assert http.get(f"{url}/about", headers={"Origin": origin}).status_code == 200
        for path, methods in http.get(f"{url}/openapi.json").json()["paths"].items():
            for method in methods.keys() - {"get"}:
                assert http.request(method, url + path, headers={"Origin": origin}).status_code == 403, path
    for own in ({"Origin": url}, {"Origin": "https://a.proxy", "Sec-Fetch-Site": "same-origin"}):
        assert http.post(f"{url}/predict", headers=own, **given).status_code == 200
    assert http.post(f"{other}/predict", headers={"Origin": there["Origin"]}, **given).status_code == 200
    assert http.post(f"{other}/predict", headers={"Origin": "https://a.third"}, **given).status_code == 403
    policy = http.get(url).headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy


def test_overload_is_turned_away(served: Servers, opened: Path, image: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, run = threading.Event(), vl2v.deploy.runtime.Exported.run
    url = served(waiting=4)

    def held(self: vl2v.deploy.runtime.Exported, pixels: Any) -> Any:
        gate.wait(300)
        return run(self, pixels)

    monkeypatch.setattr(vl2v.deploy.runtime.Exported, "run", held)
    with ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(http.post, f"{url}/predict", files={"p": image}) for _ in range(16)]
        until(lambda: any(future.done() for future in futures))
        assert http.get(f"{url}/ready").status_code == 503 and http.get(f"{url}/health").status_code == 200
        gate.set()
        answers = [future.result() for future in futures]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert all(answer.headers["Retry-After"] == "1" for answer in answers if answer.status_code == 429)


def test_a_failure_tells_nothing_of_the_machine(served: Servers, image: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    url = served()

    def broken(self: Any, pixels: Any) -> Any:
        raise RuntimeError(f"secret path {Path.home()}")

    monkeypatch.setattr(vl2v.deploy.runtime.Exported, "run", broken)
    answer = http.post(f"{url}/predict", files={"image": image})
    assert (answer.status_code, answer.json()) == (500, {"error": "the server failed; its log says why"})


def test_metrics_count_answers(served: Servers, image: bytes) -> None:
    url = served()
    http.post(f"{url}/predict", files={"a": image, "b": image})
    text = http.get(f"{url}/metrics").text
    assert "vl2v_images_total 2.0" in text and 'vl2v_requests_total{status="200"} 1.0' in text
    assert "vl2v_drift_distance NaN" in text  # two images tell nothing


def test_the_document_describes_what_is_answered(served: Servers) -> None:
    import schemathesis
    from hypothesis import HealthCheck, given, settings
    from schemathesis.config import SchemathesisConfig

    # What fits the schema is accepted, unless its bytes are no image (400), which no schema can say; never 422.
    accepted = {"expected-statuses": ["2xx", 400, 401, 403, 404, 409, 429, "5xx"]}
    config = SchemathesisConfig.from_dict({"checks": {"positive_data_acceptance": accepted}})
    schema = schemathesis.openapi.from_url(f"{served()}/openapi.json", config=config)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 19
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(
            max_examples=8, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        def conforms(case: Any) -> None:
            case.call_and_validate()

        conforms()


# Lets only those packages be imported that the image has.
IMAGE = """
import re, sys
from importlib.metadata import packages_distributions
from pathlib import Path
plain = lambda name: re.sub(r"[-_.]+", "-", name).lower()
lines = Path({requirements!r}).read_text().splitlines()
there = {{plain(line.partition("==")[0]) for line in lines if not line.startswith("#")}} | {{"vl2v"}}
missing = {{name for name, owners in packages_distributions().items() if not there & set(map(plain, owners))}}
assert {{"torch", "timm", "open_clip", "matplotlib", "onnx"}} <= missing
sys.modules.update(dict.fromkeys(missing))  # importing them fails
from vl2v.cli import main
main()
"""


def test_a_file_is_served_with_what_the_image_has(opened: Path, run: vl2v.Run, image: bytes, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(run.folder.with_name("store"), store)
    with EmbeddingStore(store) as answers:  # the text of a star is known
        key = text_key("a photo of a star")
        answers.put(run.classifier.about["teacher"]["fingerprint"], [key], np.eye(1, 16, dtype=np.float32), kind="text")
    requirements = str(Path(__file__).parents[2] / "docker" / "requirements.txt")
    process, url = started_server("serve", opened, "--store", store, program=IMAGE.format(requirements=requirements))
    try:
        assert http.post(f"{url}/predict", files={"image": image}).status_code == 200
        assert http.post(f"{url}/classes", json={"name": "star"}).status_code == 201
        assert http.get(url).status_code == http.get(f"{url}/metrics").status_code == 200
    finally:
        process.kill()


# Answers what it accepted however slow the machine is.
PATIENT = "from vl2v.web import server; server.GRACE = 300; from vl2v.cli import main; main()"


def test_stopped_it_answers_what_it_accepted(run: vl2v.Run, image: bytes, quick_python: str) -> None:
    process, url = started_server("serve", run.folder, program=PATIENT, python=quick_python)
    try:
        body = {"images": [b64(image)] * 24}  # all of them together may wait
        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(http.post, f"{url}/predict", json=body) for _ in range(4)]
            until_accepted(url, 1 + 96, futures)  # the first gets it warm
            process.send_signal(signal.SIGTERM)
            answers = [future.result() for future in futures]
        assert process.wait(300) in (0, -signal.SIGTERM)
    finally:
        process.kill()
    assert [len(answer.json()["predictions"]) for answer in answers] == [24] * 4
    assert "Traceback" not in process.stderr.read()


def test_others_reach_it_only_with_a_key(opened: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--host 0\.0\.0\.0: others can reach it; .* VL2V_SERVE_KEY"):
        serving.serve(opened, host="0.0.0.0")
    (tmp_path / "key").write_text("secret\n")
    (tmp_path / "key").chmod(0o644)
    monkeypatch.setenv("VL2V_SERVE_KEY_FILE", str(tmp_path / "key"))
    with pytest.raises(ConfigError, match="others can read"):
        serving.serve(opened, host="0.0.0.0")


def test_a_run_without_an_export_is_exported_first(
    run: vl2v.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "bare"
    (bare / "student").mkdir(parents=True)
    (bare / "config.toml").write_text((run.folder / "config.toml").read_text())
    for file in (run.folder / "student").iterdir():
        (bare / "student" / file.name).write_bytes(file.read_bytes())
    taken: list[Path] = []
    monkeypatch.setattr(serving, "serve", lambda file, **options: taken.append(file))
    result = CliRunner().invoke(app, ["serve", str(bare), "--store", str(run.folder.with_name("store"))])
    assert result.exit_code == 0 and taken == [bare / "student.onnx"]
    assert vl2v.deploy.runtime.load(taken[0]).card["form"] == "open"
    with pytest.raises(StudentError, match=r"`vl2v export .*` makes one"):
        vl2v.deploy.runtime.exports_in(tmp_path)


def test_of_two_exports_one_is_served_and_the_other_named(
    opened: Path, closed: Path, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(closed, tmp_path / "student-int8.onnx")
    shutil.copyfile(opened, tmp_path / "student.onnx")
    taken: list[Path] = []
    monkeypatch.setattr(serving, "serve", lambda file, **options: taken.append(file))
    result = CliRunner().invoke(app, ["serve", str(tmp_path)])
    assert taken.pop().name == "student-int8.onnx" and "student.onnx (open form, fp32) isn't served" in result.stderr
    result = CliRunner().invoke(app, ["serve", str(tmp_path), "--teacher", f"recorded:{recording}"])
    assert taken.pop().name == "student.onnx" and "student-int8.onnx (closed form, fp32) isn't served" in result.stderr


def test_a_teacher_that_the_export_has_no_use_for_is_refused(served: Servers, closed: Path, recording: Path) -> None:
    with pytest.raises(ConfigError, match=r"--teacher: can't be queried, .* the same `vl2v export` .* --open"):
        served(closed, teacher=f"recorded:{recording}")


@pytest.mark.parametrize("name", ["", " ", "\u00a0", "\u2003\t"])
def test_a_name_of_blanks_is_refused_as_the_document_says(name: str) -> None:
    described = NewClass.model_json_schema()["properties"]["name"]
    assert not re.search(described["pattern"], name)
    with pytest.raises(ValidationError):
        NewClass(name=name)


def test_an_export_that_knows_other_classes_than_the_student_is_not_served(
    run: vl2v.Run, opened: Path, tmp_path: Path
) -> None:
    shutil.copytree(run.folder / "student", tmp_path / "student")
    shutil.copyfile(opened, tmp_path / "student.onnx")
    student = vl2v.Classifier.load(tmp_path / "student")
    student.add_class("star", np.eye(1, 16, dtype=np.float32)[0])
    student.save(tmp_path / "student")
    result = CliRunner().invoke(app, ["serve", str(tmp_path)])
    assert isinstance(result.exception, StudentError)
    assert "student.onnx: exported before the student's classes changed; export it again" in str(result.exception)
    (tmp_path / "student" / "student.json").write_text("{}")
    assert "student.json: corrupt" in str(CliRunner().invoke(app, ["serve", str(tmp_path)]).exception)


@pytest.mark.parametrize(("host", "address"), [("127.0.0.2", "http://127.0.0.2"), ("::1", "http://[::1]")])
def test_it_says_where_it_listens_and_answers_there(
    opened: Path, image: bytes, quick_python: str, host: str, address: str
) -> None:
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        pytest.skip(f"this machine has no {host}")
    command = [quick_python, "-m", "vl2v", "serve", str(opened), "--host", host, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline().strip()
        assert line.startswith(f"serving {opened} (open form, fp32) at {address}:") and not line.endswith(":0")
        url = line.rpartition(" at ")[2]
        assert http.post(f"{url}/predict", files={"image": image}).status_code == 200
        assert http.get(f"{url}/about", headers={"Host": "evil.example"}).status_code == 400
        port = url.rpartition(":")[2]
        with pytest.raises(ConfigError, match=r"can't be listened on \(Address already in use\); choose others"):
            serving.serve(opened, host=host, port=int(port))
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("command", [["serve", "x.onnx"], ["vendor", "serve", "--teacher", "tiny"]])
def test_a_port_is_one_that_there_is(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--port", "99999"])
    assert result.exit_code == 2 and "65535" in result.stderr


def test_requests_that_come_while_a_worker_ends_are_worked_on() -> None:
    import asyncio

    from vl2v.web.batches import Batches

    async def many() -> list[int]:
        batches: Batches[int, int] = Batches(lambda numbers: [2 * number for number in numbers], threads=2, most=3)
        found = [await asyncio.wait_for(batches.submit(number, 1), 20) for number in range(200)]
        found += await asyncio.gather(*(batches.submit(number, 1) for number in range(200)))
        with pytest.raises(Busy):
            await asyncio.gather(*(batches.submit(number, 100) for number in range(20)))
        return found

    assert asyncio.run(many()) == [2 * number for number in range(200)] * 2
