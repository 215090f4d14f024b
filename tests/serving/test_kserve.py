"""The KServe protocol as its clients send it: binary tensors, compression, versions, no Content-Type."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

import vl2v.deploy.runtime
from vl2v.data.augment import evaluation_view
from vl2v.data.decoding import decode

from .conftest import Servers, http

LENGTH = "Inference-Header-Content-Length"
BINARY = {"binary_data_output": True}


def sent(url: str, head: dict[str, Any], tail: bytes = b"", path: str = "", **headers: str) -> httpx2.Response:
    text = json.dumps(head).encode()
    lengths = {LENGTH: str(len(text))} if tail else {}
    request = http.build_request("POST", f"{url}/v2/models/student{path}/infer", content=text + tail)
    request.headers.update({**lengths, **headers})
    assert "content-type" in headers or "content-type" not in request.headers
    return http.send(request)


def unpacked(answer: httpx2.Response) -> dict[str, Any]:
    """Return each output's values of an answer with binary tensors."""
    assert answer.status_code == 200, answer.text
    length = int(answer.headers[LENGTH])
    head, tail, found = json.loads(answer.content[:length]), answer.content[length:], {}
    for output in head["outputs"]:
        size = output["parameters"]["binary_data_size"]
        data, tail = tail[:size], tail[size:]
        if output["datatype"] == "FP32":
            found[output["name"]] = np.frombuffer(data, "<f4").reshape(output["shape"]).tolist()
            continue
        found[output["name"]] = words = []
        while data:
            (count,) = struct.unpack_from("<I", data)
            words.append(data[4 : 4 + count].decode())
            data = data[4 + count :]
    assert not tail
    return found


def test_binary_tensors_go_both_ways(served: Servers, opened: Path, image: bytes) -> None:
    url = served()
    (wanted,) = vl2v.deploy.runtime.load(opened).predict([image])
    pixels = evaluation_view(decode(image), 32).tobytes()
    size = {"parameters": {"binary_data_size": len(pixels)}}
    given = {"name": "pixels", "shape": [1, 32, 32, 3], "datatype": "UINT8", **size}
    found = unpacked(sent(url, {"inputs": [given], "parameters": BINARY}, pixels))
    assert (found["label"], found["best"]) == ([wanted.label], [wanted.best])
    assert found["probabilities"][0] == pytest.approx(list(wanted.probabilities.values()), abs=1e-5)
    for file in (image, base64.b64encode(image)):
        tail = struct.pack("<I", len(file)) + file
        tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(tail)}}
        one = {"name": "label", "parameters": {"binary_data": True}}
        assert unpacked(sent(url, {"inputs": [tensor], "outputs": [one]}, tail)) == {"label": [wanted.label]}
        plain = sent(url, {"inputs": [tensor], "outputs": [{"name": "label"}]}, tail).json()
        assert plain["outputs"][0]["data"] == [wanted.label] and plain["model_version"] == "1"
    short = {**given, "parameters": {"binary_data_size": 7}}
    assert sent(url, {"inputs": [short]}, pixels).status_code == 400
    assert sent(url, {"inputs": [given]}, pixels, **{LENGTH: "999999"}).status_code == 400
    assert sent(url, {"inputs": [{**given, "parameters": {}}]}, pixels).status_code == 400
    cut = struct.pack("<I", 1000) + b"abc"
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(cut)}}
    assert "end within an element" in sent(url, {"inputs": [tensor]}, cut).json()["error"]


def test_requests_and_answers_may_be_compressed(served: Servers, image: bytes) -> None:
    url = served()
    text = base64.encodebytes(image).decode()  # with line breaks
    head = {"inputs": [{"name": "image", "shape": [40], "datatype": "BYTES", "data": [text] * 40}]}
    plain = sent(url, head, **{"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    for coding, packed in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        raw = packed(json.dumps(head).encode())
        headers = {"Content-Encoding": coding, "Accept-Encoding": coding}
        answer = http.post(f"{url}/v2/models/student/infer", content=raw, headers=headers)
        assert answer.headers["content-encoding"] == coding and answer.json() == plain.json()
        for broken in (raw[:-6], b"no" + raw):
            refused = http.post(f"{url}/v2/models/student/infer", content=broken, headers=headers)
            assert refused.status_code == 400
    bomb = gzip.compress(bytes(40 * 2**20))
    assert sent(url, {}, path="").status_code == 422
    for path, kind in (("/v2/models/student/infer", ""), ("/predict", "application/json")):
        headers = {"Content-Encoding": "gzip", **({"Content-Type": kind} if kind else {})}
        assert http.post(url + path, content=bomb, headers=headers).status_code == 413
    unknown = http.post(f"{url}/v2/models/student/infer", content=b"x", headers={"Content-Encoding": "br"})
    assert unknown.status_code == 415 and unknown.headers["accept-encoding"] == "gzip, deflate"


def test_version_one_is_the_only_one(served: Servers, image: bytes) -> None:
    url = served()
    about = http.get(f"{url}/v2/models/student").json()
    assert about["versions"] == ["1"] and "binary_tensor_data" in http.get(f"{url}/v2").json()["extensions"]
    assert http.get(f"{url}/v2/models/student/versions/1").json() == about
    assert http.get(f"{url}/v2/models/student/versions/1/ready").json() == {"ready": True}
    text = base64.b64encode(image).decode()
    head = {"inputs": [{"name": "image", "shape": [1, 1], "datatype": "BYTES", "data": [[text]]}]}
    assert sent(url, head, path="/versions/1").json() == sent(url, head).json()
    for path in ("", "/ready"):
        assert http.get(f"{url}/v2/models/student/versions/2{path}").status_code == 404
    assert sent(url, head, path="/versions/2").status_code == 404


def test_a_form_of_a_page_elsewhere_is_refused(served: Servers) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert sent(served(), {}, **{"content-type": kind}).status_code == 415
