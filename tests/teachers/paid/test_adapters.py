"""Adapters against a server that speaks the documented form and refuses any other."""

from __future__ import annotations

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from vl2v.teachers import open_teacher
from vl2v.teachers.paid.limits import find_limits
from vl2v.teachers.protocol import EncodedImage

from .vendor import KEY, Budget, row


def gemini(path, body):
    assert path == "/models/m:batchEmbedContents" and set(body) == {"requests"}
    found = []
    for request in body["requests"]:
        assert request["model"] == "models/m"
        (part,) = request["content"]["parts"]
        data = part.get("inlineData")
        assert data is None or data["mimeType"] == "image/png"
        found.append(part["text"].encode() if data is None else base64.b64decode(data["data"]))
    return {"embeddings": [{"values": row(thing).tolist()} for thing in found]}


def titan(path, body):
    assert path == "/model/titan-m/invoke" and len(body) == 1
    thing = body["inputText"].encode() if "inputText" in body else base64.b64decode(body["inputImage"])
    return {"embedding": row(thing).tolist(), "inputTextTokenCount": 3}


def nova(path, body):
    assert path == "/model/nova-v1%3A0/invoke" and body["taskType"] == "SINGLE_EMBEDDING"
    about = body["singleEmbeddingParams"]
    assert ("text" in about) != ("image" in about) and about["embeddingPurpose"] == "CLASSIFICATION"
    if "text" in about:
        thing = about["text"]["value"].encode()
    else:
        assert about["image"]["format"] == "png"
        thing = base64.b64decode(about["image"]["source"]["bytes"])
    return {"embeddings": [{"embeddingType": "TEXT", "embedding": row(thing).tolist()}]}


def vllm(path, body):
    assert path == "/embeddings" and body["model"] == "m" and "input" not in body
    ((part,),) = (message["content"] for message in body["messages"])
    text = part["type"] == "text"
    thing = part["text"].encode() if text else base64.b64decode(part["image_url"]["url"].partition("base64,")[2])
    return {"data": [{"index": 0, "embedding": row(thing).tolist()}], "model": "m", "usage": {"total_tokens": 5}}


def azure(path, body):
    what = "Text" if isinstance(body, dict) else "Image"
    assert path == f"/computervision/retrieval:vectorize{what}?api-version=2024-02-01&model-version=2023-04-15"
    thing = body if isinstance(body, bytes) else body.pop("text").encode()
    assert not isinstance(body, dict) or not body
    return {"modelVersion": "2023-04-15", "vector": np.resize(row(thing), 1024).tolist()}


@pytest.mark.parametrize(
    ("kind", "model", "speaks", "variable", "header"),
    [
        ("gemini", "m", gemini, "GEMINI_API_KEY", ("x-goog-api-key", KEY)),
        ("bedrock", "titan-m", titan, "AWS_BEARER_TOKEN_BEDROCK", ("Authorization", f"Bearer {KEY}")),
        ("bedrock", "nova-v1:0", nova, "AWS_BEARER_TOKEN_BEDROCK", ("Authorization", f"Bearer {KEY}")),
        ("azure-vision", "2023-04-15", azure, "AZURE_VISION_KEY", ("Ocp-Apim-Subscription-Key", KEY)),
        ("vllm", "m", vllm, "VLLM_API_KEY", ("Authorization", f"Bearer {KEY}")),
    ],
)
def test_the_documented_form_is_spoken(kind, model, speaks, variable, header, monkeypatch, tmp_path):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Content-Type"] != "application/octet-stream":
                assert self.headers["Content-Type"] == "application/json"
                body = json.loads(body)
            assert self.headers[header[0]] == header[1]
            data = json.dumps(speaks(self.path, body)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    monkeypatch.setenv(variable, KEY)
    monkeypatch.setenv("VL2V_VENDORS", str(tmp_path / "vendors.toml"))
    (tmp_path / "vendors.toml").write_text(f'[{kind}.models."{model}"]\nprice = {{ image = 0.001, text = 0.0005 }}\n')
    images = []
    for grey in (0, 200, 90):
        buffer = io.BytesIO()
        Image.new("RGB", (12, 12), (grey, 3, 4)).save(buffer, "PNG")
        images.append(EncodedImage("x", buffer.getvalue()))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        teacher = open_teacher(f"{kind}:http://127.0.0.1:{server.server_address[1]}#{model}")
        teacher.budget = Budget()
        found = [teacher.embed_images(images), teacher.embed_texts(["a cat", "a dog"])]
        server.shutdown()
    for rows, things in zip(found, ([image.data for image in images], [b"a cat", b"a dog"]), strict=True):
        due = np.stack([np.resize(row(thing), teacher.dim) for thing in things])
        np.testing.assert_allclose(rows, due / np.linalg.norm(due, axis=1, keepdims=True), atol=1e-5)
    assert teacher.budget.committed == 3 * 1000 + 2 * 500


@pytest.mark.parametrize(
    ("kind", "model", "most", "unit"),
    [
        ("azure-vision", "2023-04-15", 70, "words"),
        ("bedrock", "amazon.titan-embed-image-v1", 256, "tokens"),
        ("bedrock", "amazon.nova-2-multimodal-embeddings-v1:0", 8_192, "tokens"),
        ("cohere", "embed-english-v3.0", 512, "tokens"),
        ("cohere", "embed-multilingual-v3.0", 512, "tokens"),
        ("cohere", "embed-v4.0", 128_000, "tokens"),
        ("gemini", "gemini-embedding-2", 8_192, "tokens"),
        ("jina", "jina-clip-v2", 8_192, "tokens"),
        ("voyage", "voyage-multimodal-3", 32_000, "tokens"),
    ],
)
def test_texts_beyond_a_documented_length_are_found(kind: str, model: str, most: int, unit: str) -> None:
    limits = find_limits(kind, model, None)
    assert limits.too_long("dog " * most) is None
    assert limits.too_long("dog " * (most + 1)) == f"{most + 1} words, the vendor takes {most:,} {unit}"
