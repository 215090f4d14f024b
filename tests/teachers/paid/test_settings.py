"""Keys, entries of the table, images and texts as a vendor takes them."""

from __future__ import annotations

import io
import json
import logging
import os
import ssl
import subprocess
import traceback

import httpx2
import pytest
from PIL import Image

from vl2v.errors import ConfigError, TeacherError
from vl2v.teachers import open_teacher
from vl2v.teachers.paid.requests import prepare
from vl2v.teachers.prompts import check_prompts

from .helpers import cut, encoded, status
from .vendor import DIM, KEY, Budget, Vendor

pytestmark = pytest.mark.usefixtures("quick_retries")


def test_the_key_is_nowhere_to_be_seen(rent, vendor, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    seen = [repr(teacher := rent())]
    vendor.always = status(401, {"error": {"message": f"the key {KEY} is wrong"}})
    for trouble in (status(401, {"error": {"message": f"the key {KEY} is wrong"}}), cut, status(500, KEY.encode())):
        vendor.always = trouble
        try:
            teacher.embed_texts(["a"])
        except TeacherError as error:
            seen += [str(error), repr(error)]
            seen += traceback.TracebackException.from_exception(error, capture_locals=True).format()
            assert error.__context__ is None or not isinstance(error.__context__, httpx2.HTTPError)
    seen += [caplog.text, *capsys.readouterr(), json.dumps([e["note"] for e in teacher.budget.settled.values()])]
    assert len(seen) > 9 and not [text for text in seen if KEY in text]


def test_a_key_from_a_file_that_others_cannot_read(rent, monkeypatch, tmp_path, vendor):
    teacher = rent("jina")
    monkeypatch.delenv("JINA_API_KEY")
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    monkeypatch.setenv("JINA_API_KEY_FILE", str(file))
    os.chmod(file, 0o644)
    with pytest.raises(ConfigError, match=r"JINA_API_KEY_FILE: others can read .*; chmod 600 it"):
        teacher.embed_texts(["a"])
    os.chmod(file, 0o600)
    teacher.embed_texts(["a"])
    assert vendor.requests[0][0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("jina:", "write it as jina:MODEL, or URL#MODEL"),
        ("openai-compatible:m", "write it as openai-compatible:URL#MODEL"),
        ("openai-compatible:ftp://x#m", "write it as"),
        ("jina:m?size=3", "unknown option 'size'; there is"),
    ],
)
def test_specs_that_say_too_little(spec, words):
    with pytest.raises(TeacherError, match=words):
        open_teacher(spec)


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        ("voyage:voyage-multimodal-3", {(100, 100): 90, (1000, 1000): 1786, (4000, 4000): 3572}),
        ("cohere:embed-v4.0", {(227, 227): 1639, (512, 512): 1639, (1000, 1000): 6250, (4000, 4000): 15367}),
        ("jina:jina-clip-v2", {(227, 227): 4000, (512, 513): 8000, (2000, 1000): 32_000}),
    ],
)
def test_the_tokens_of_an_image_are_as_the_vendor_counts_them(spec, sizes, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    teacher = open_teacher(spec)
    assert {size: teacher.forecast("image", [size]).tokens for size in sizes} == sizes
    assert teacher.forecast("text", [(len("zoë".encode()), 1)]).tokens == 12


def test_a_price_that_nobody_published_is_called_unverified_until_it_is_ones_own(monkeypatch, tmp_path):
    table = tmp_path / "vendors.toml"
    monkeypatch.setenv("VL2V_VENDORS", str(table))
    table.write_text("[jina]\nin_flight = 50\n")
    assert open_teacher("jina:jina-clip-v2").doubt.startswith("price and tokens of an image not found in public")
    assert open_teacher("voyage:voyage-multimodal-3").doubt == ""
    table.write_text('[jina.models."jina-clip-v2"]\nprice = { image_tokens = 0.02 }\n')
    teacher = open_teacher("jina:jina-clip-v2")
    assert teacher.doubt == "" and teacher.dim == 1024
    assert teacher.forecast("image", [(500, 500)] * 1000).micro == 80_000
    table.write_text("[jina]\nprice = { image = 1 }\n[openai-compatible]\nprice = { image = 0.5 }\n")
    assert open_teacher("jina:jina-clip-v2").doubt, "the model's price is still the table's"
    assert open_teacher("openai-compatible:http://127.0.0.1:1#m").doubt == ""


def test_another_treatment_of_images_is_another_teacher(rent):
    plain, faster = rent(), rent(more="in_flight = 3\nrequests_a_minute = 7")
    assert plain.fingerprint == faster.fingerprint
    for more in ("image_pixels = 4000", "image_bytes = 4000", 'formats = ["PNG"]'):
        assert rent(more=more).fingerprint != plain.fingerprint


def test_a_wrong_entry_in_the_table(rent):
    with pytest.raises(TeacherError, match=r"vendors\.toml: jina\.in_flight: must be greater than"):
        rent("jina", more="in_flight = 0")


def test_images_are_sent_as_they_are_where_that_is_clear():
    for data in (encoded(1), encoded(1, form="JPEG"), encoded(1, "L", "JPEG")):
        assert prepare(data, ("JPEG", "PNG"), 10**6, 10**6).data is data
    exif = Image.Exif()
    exif[0x0112] = 6
    unclear = {
        "rotated": encoded(1, form="JPEG", exif=exif),
        "CMYK": encoded(1, "CMYK", "JPEG"),
        "palette": encoded(1, "P", "PNG"),
        "alpha": encoded(1, "RGBA", "PNG"),
        "16 bits": encoded(1, "I;16", "PNG") if hasattr(Image, "I16") else encoded(1, "1", "PNG"),
        "BMP": encoded(1, form="BMP"),
        "animated": encoded(1, "P", "GIF"),
    }
    for name, data in unclear.items():
        sent = prepare(data, ("JPEG", "PNG"), 10**6, 10**6)
        assert sent.data is not data and sent.mime == "image/png", name
        assert Image.open(io.BytesIO(sent.data)).mode == "RGB", name


def test_images_are_made_to_fit():
    large = encoded(1, size=300)
    small = prepare(large, ("JPEG", "PNG"), 10**6, 100 * 100)
    assert (small.width, small.height) == (100, 100) and small.mime == "image/png"
    light = prepare(large, ("JPEG", "PNG"), 60_000, 10**6)
    assert light.mime == "image/jpeg" and len(light.data) <= 60_000
    tiny = prepare(large, ("JPEG", "PNG"), 2_000, 10**6)
    assert len(tiny.data) <= 2_000 and tiny.width < 300


def test_a_self_made_certificate_is_reported_and_can_be_trusted(tmp_path, monkeypatch):
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run([*made, *names, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server = Vendor(context)
    monkeypatch.setenv("VL2V_API_KEY", KEY)
    spec = f"openai-compatible:{server.url.replace('http:', 'https:')}#m"
    teacher = open_teacher(spec)
    teacher.budget = Budget()
    with pytest.raises(TeacherError, match=r"its certificate isn't trusted \(.*self.signed.*SSL_CERT_FILE") as error:
        teacher.embed_texts(["a"])
    assert "\n" not in str(error.value) and set(teacher.budget.statuses()) == {"rejected"} and not server.requests
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    trusting = open_teacher(spec)
    trusting.budget = Budget()
    assert trusting.embed_texts(["a"]).shape == (1, DIM)
    server.shutdown()


def test_images_are_scaled_to_the_sides_that_a_vendor_takes() -> None:
    def side(width: int, height: int) -> tuple[int, int]:
        buffer = io.BytesIO()
        Image.new("RGB", (width, height)).save(buffer, "PNG")
        sent = prepare(buffer.getvalue(), ("JPEG", "PNG"), 10**6, 10**6, (11, 1000))
        assert Image.open(io.BytesIO(sent.data)).size == (sent.width, sent.height)
        return sent.width, sent.height

    assert side(64, 48) == (64, 48)
    assert side(5, 10) == (11, 22)
    assert side(2000, 400) == (1000, 200)
    assert side(2000, 3) == (1000, 11)


@pytest.mark.parametrize(
    ("spec", "words", "fits"),
    [
        ("azure-vision:https://a.example#2023-04-15", 70, True),
        ("azure-vision:https://a.example#2023-04-15", 71, False),
        ("gemini:gemini-embedding-2", 8192, True),
        ("gemini:gemini-embedding-2", 8193, False),
        ("jina:jina-clip-v2", 8192, True),
        ("jina:jina-clip-v2", 8193, False),
    ],
)
def test_texts_longer_than_a_vendor_documents_are_refused_before_the_first_query(
    spec: str, words: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AZURE_VISION_KEY", "GEMINI_API_KEY", "JINA_API_KEY"):
        monkeypatch.setenv(name, "k")
    text, teacher = " ".join(["word"] * words), open_teacher(spec)
    if fits:
        assert not check_prompts(["one", "two"], [["a"], [text]], teacher)
        return
    with pytest.raises(ConfigError, match=f"class 'two': .* too long \\({words} words.*prompts.overrides.two"):
        check_prompts(["one", "two"], [["a"], [text]], teacher)
