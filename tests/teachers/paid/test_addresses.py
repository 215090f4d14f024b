"""An address is one address however it is spelt, holds no password, and has a price before it has a budget."""

from __future__ import annotations

import http.server
import threading

import pytest

from vl2v.embeddings.bill import LedgerBudget
from vl2v.embeddings.fetch import fetch_texts
from vl2v.embeddings.ledger import Ledger
from vl2v.embeddings.schema import text_key
from vl2v.embeddings.store import EmbeddingStore
from vl2v.errors import ConfigError, TeacherError, VL2VWarning
from vl2v.privacy import canonical_url, is_loopback, public_name, read_secret, without_secrets
from vl2v.runs.folder import Run, open_run
from vl2v.runs.settings import resolve
from vl2v.teachers import open_teacher
from vl2v.teachers.paid.client import fingerprint_of
from vl2v.teachers.paid.limits import canonical_spec
from vl2v.teachers.paid.teacher import BudgetReached, Query, micro_of

from .vendor import KEY, Budget, Vendor

HERE = "http://127.0.0.1:8000/v1"


@pytest.fixture
def vendor(monkeypatch, tmp_path):
    monkeypatch.setenv("VL2V_API_KEY", KEY)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with Vendor() as server:
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("url", "one"),
    [
        ("http://localhost:8000/v1", HERE),
        ("http://LOCALHOST:8000/v1/", HERE),
        ("HTTP://127.0.0.1:8000/v1//", HERE),
        ("http://[::1]:8000/v1", HERE),
        ("http://[0:0:0:0:0:0:0:1]:08000/v1", HERE),
        ("http://[::ffff:127.0.0.1]:8000/v1", HERE),
        ("http://127.1:8000/v1", HERE),
        ("http://0.0.0.0:8000/./x/../v1", HERE),
        ("http://localhost.:8000/%761", HERE),
        ("http://api.localhost:8000/v1", HERE),
        ("http://Host.Example:80", "http://host.example"),
        ("http://host.example:/", "http://host.example"),
        ("https://host.example:443/a%2fb/%7Ec", "https://host.example/a/b/~c"),
        ("https://host.example:80/v1", "https://host.example:80/v1"),
        ("https://bücher.example/v1", "https://xn--bcher-kva.example/v1"),
        ("https://xn--bcher-kva.example/v1", "https://xn--bcher-kva.example/v1"),
        ("https://b%C3%BCcher.example/v%31", "https://xn--bcher-kva.example/v1"),
        ("https://host.example/V1", "https://host.example/V1"),
        ("http://[2001:DB8::0:1]:99/v1", "http://[2001:db8::1]:99/v1"),
    ],
)
def test_every_spelling_of_an_address_is_one(url, one):
    assert canonical_url(url) == one == canonical_url(one)
    assert is_loopback(one) == (one == HERE)


@pytest.mark.parametrize("url", ["http://", "host", "http://h:x", "http://h:99999", "http://me:word@h", "http://h h"])
def test_what_is_no_address_is_none(url):
    with pytest.raises(ValueError, match="not an address") as raised:
        canonical_url(url)
    assert "word" not in str(raised.value)


@pytest.mark.parametrize(
    ("spec", "one"),
    [
        ("jina:https://API.jina.ai:443/v1/#m?dimensions=064", "jina:m?dimensions=64"),
        ("jina:m", "jina:m"),
        ("openai-compatible:http://localhost/v1/#org/M", "openai-compatible:http://127.0.0.1/v1#org/M"),
        ("open_clip:ViT-B-16/openai", "open_clip:ViT-B-16/openai"),
        ("recorded:http://x/#m", "recorded:http://x/#m"),
    ],
)
def test_a_spec_has_one_spelling(spec, one):
    assert canonical_spec(spec) == one


def test_a_budget_holds_for_all_spellings_and_old_ledgers_are_summed(vendor, tmp_path):
    port = vendor.server_address[1]
    spellings = [f"openai-compatible:http://{host}:{port}/v1{end}#m" for host in ("localhost", "127.0.0.1", "[::1]")
                 for end in ("", "/")]  # fmt: skip
    query = Query("image", 1, 1, 400)
    with Ledger(tmp_path) as ledger:
        for number, spelling in enumerate(spellings[:2]):  # as earlier versions wrote it
            ledger.settle(ledger.reserve(spelling, f"runs/{number}", "USD", query, None), "answered", 1, 400)
        for spelling in spellings:
            name = open_teacher(spelling).name
            assert name == f"openai-compatible:http://127.0.0.1:{port}/v1#m"
            assert ledger.committed(name) == ledger.committed(spelling) == 800
            with pytest.raises(BudgetReached):
                LedgerBudget(ledger, name, "USD", 1100, "embed").reserve(query)
        LedgerBudget(ledger, name, "USD", 1200, "embed").reserve(query)
        assert ledger.committed(spellings[0]) == 1200
        assert {entry.teacher for entry in ledger.entries()} == {name}
    assert len({open_teacher(spelling).fingerprint for spelling in spellings}) == 1


@pytest.mark.parametrize("secret", ["", "me:word@"])
def test_embeddings_bought_under_an_old_spelling_are_found(secret, vendor, tmp_path):
    port = vendor.server_address[1]
    teacher = open_teacher(f"openai-compatible:http://127.0.0.1:{port}/v1#m")
    url = f"http://{secret}localhost:{port}/v1"

    class Old:
        name = f"openai-compatible:{url}#m"
        fingerprint = fingerprint_of(name, url, "m", None, teacher.limits)
        dim, logit_scale = 12, None

    teacher.budget = Budget()
    with EmbeddingStore(tmp_path) as store:
        fetch_texts(store, teacher, ["a cat"])
        bought = vendor.sold
        store._db.execute("UPDATE teachers SET fingerprint = ?, name = ?", (Old.fingerprint, Old.name))
        store._db.execute("UPDATE answers SET crc = 0")
    with EmbeddingStore(tmp_path) as store:
        store.sign(1)
        for number, key, vector in store._db.execute("SELECT id, key, vector FROM answers").fetchall():
            crc = store_modulecrc(Old.fingerprint, key, vector)
            store._db.execute("UPDATE answers SET crc = ? WHERE id = ?", (crc, number))
    with EmbeddingStore(tmp_path) as store:
        fetch_texts(store, teacher, ["a cat"])
        assert vendor.sold == bought
        assert all("word" not in known.name for known in store.teachers())
    with EmbeddingStore(tmp_path, read_only=True) as store, EmbeddingStore(tmp_path / "other") as other:
        assert len(store.get(teacher.fingerprint, [text_key("a cat")])) == 1  # as a run's report asks for it
        with other.absorbing(store, teacher.fingerprint) as new:
            pass
        other.recognise(teacher)
        assert new == bought and other.cached(teacher.fingerprint, [text_key("a cat")])[0]
        fetch_texts(other, teacher, ["a dog"])
        assert len(other.get(teacher.fingerprint, [text_key("a cat"), text_key("a dog")])) == 2


def store_modulecrc(fingerprint, key, vector):
    from vl2v.embeddings.schema import crc

    return crc(fingerprint, key, vector)


def test_the_sides_of_images_are_part_of_the_fingerprint_and_what_was_bought_before_they_were_is_found(
    tmp_path, monkeypatch
):
    def opened(sides):
        file = tmp_path / "vendors.toml"
        file.write_text(f"[azure-vision]\nimage_sides = {sides}\n")
        monkeypatch.setenv("VL2V_VENDORS", str(file))
        return open_teacher("azure-vision:https://me.example.com/#2023-04-15")

    small, large = opened([11, 500]), opened([11, 900])
    assert small.fingerprint != large.fingerprint
    before = small.limits.model_copy(update={"image_sides": None})
    old = fingerprint_of(small.name, "https://me.example.com", "2023-04-15", None, before)
    assert old not in (small.fingerprint, large.fingerprint)
    assert small.was_spelt(small.name, old) and not small.was_spelt(small.name, large.fingerprint)


@pytest.mark.parametrize(
    "spec",
    [
        "openai-compatible:http://me:s3cret@host/v1#m",
        "openai-compatible:http://s3cret@host/v1#m",
        "openai-compatible:http://me:s3/cret@host/v1#m",
        "openai-compatible:http://me:s3#cret@host/v1#m",
        "jina:https://me:s3cret@api.jina.ai/v1#m",
        "openai-compatible:http://host/v1?api_key=s3cret#m",
        "openai-compatible:http://host/v1#m?token=s3cret",
        "openai-compatible:http://host/v1#m?s3cret",
        "openai-compatible:http://host/v1#m?dimensions=3&key=s3cret",
    ],
)
def test_a_secret_in_a_spec_is_refused_with_a_hint_and_not_repeated(spec):
    with pytest.raises(TeacherError, match=r"into the environment as \w+_API_KEY") as raised:
        open_teacher(spec)
    assert "s3" not in str(raised.value) and "cret" not in str(raised.value) and "\n" not in str(raised.value)
    assert "s3" not in without_secrets(spec).replace("?s3cret", "") and "s3" not in public_name(spec).replace(
        "?s3cret", ""
    )


@pytest.mark.parametrize(
    "spec", ["openai-compatible:http://h:8000#m@v1", "openai-compatible:http://h/v1#org/m@2", "hf:a/b"]
)
def test_what_is_no_secret_stays(spec):
    assert without_secrets(spec) == spec


def test_a_budget_needs_a_price_and_what_has_none_is_said(vendor, monkeypatch, caplog):
    spec = "openai-compatible:http://localhost.example.invalid/v1#m"
    away = open_teacher(spec)
    away.budget = Budget(budget=10)
    with pytest.raises(TeacherError, match=r'budget can\'t be enforced.*put \[openai-compatible\.models\."m"\] price'):
        away.embed_texts(["a"])
    with pytest.raises(TeacherError, match="budget can't be enforced"):
        away.forecast("image", [(9, 9)])
    assert away.budget.statuses() == []
    here = open_teacher(f"openai-compatible:{vendor.url}#m")
    here.budget = Budget(budget=10)
    here.embed_texts(["a"])
    assert caplog.text.count("no price known: counted as free") == 1
    assert [query.micro for query in here.budget.reserved] == [0]


def test_without_a_budget_an_unknown_price_is_said_before_the_first_query(vendor, caplog, monkeypatch):
    monkeypatch.setattr("vl2v.teachers.paid.client.is_loopback", lambda url: False)
    teacher = open_teacher(f"openai-compatible:{vendor.url}#m")
    teacher.budget = Budget(budget=0)
    said = []
    vendor.always = lambda handler, body: said.append(caplog.text)  # type: ignore[func-returns-value]
    teacher.embed_texts(["a"])
    assert "no price known: counted as free" in said[0]


@pytest.mark.parametrize("cut", [None, 40])
def test_a_server_that_takes_images_for_texts_is_refused_before_more_is_paid(cut, vendor, tmp_path):
    from .vendor import row

    def overlooks(handler, body):
        vectors = [row(thing[:cut].encode()).tolist() for thing in body["input"]]
        data = [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        handler.answer(200, {"data": data, "model": "m", "usage": {"total_tokens": 1}})
        return True

    vendor.always = overlooks
    teacher = open_teacher(f"openai-compatible:{vendor.url}#m")
    teacher.budget = Budget()
    with EmbeddingStore(tmp_path) as store:
        with pytest.raises(TeacherError, match='overlook the field "modality"'):
            fetch_texts(store, teacher, ["a cat"])
        assert store.teachers() == []
    assert len(vendor.requests) == 3 and teacher.budget.statuses() == ["answered"] * 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("\ufeffKEY\r\n".encode(), None),
        ("KEY\n".encode("utf-16"), None),
        (b"\n  KEY \n\n", None),
        (b"KEY\nother\n", "has 2 lines"),
        (b"my KEY", "has spaces"),
        ("KEY\u2019".encode(), "characters that no key has"),
        (b"KEY\x00", "characters that no key has"),
        (b"\xff\xfe\xff", "isn't text"),
        (b"K\x80EY", "isn't text"),
    ],
)
def test_a_key_file_is_read_whoever_wrote_it_or_refused_without_its_key(content, words, tmp_path, monkeypatch):
    file = tmp_path / "key"
    file.write_bytes(content.replace(b"KEY", KEY.encode()) if b"K\0" not in content else content)
    file.chmod(0o600)
    monkeypatch.setenv("A_KEY_FILE", str(file))
    if words is None:
        assert read_secret("A_KEY") in (KEY, "KEY")
        return
    with pytest.raises(ConfigError, match=words) as raised:
        read_secret("A_KEY")
    assert KEY not in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("budget", [float("nan"), float("inf"), -1.0, -0.001])
def test_a_budget_is_an_amount_of_money(budget):
    with pytest.raises(ConfigError, match="give an amount of money"):
        micro_of(budget)


def test_ones_own_prices_take_the_place_of_the_tables(tmp_path, monkeypatch):
    table = tmp_path / "vendors.toml"
    monkeypatch.setenv("VL2V_VENDORS", str(table))
    table.write_text('[cohere.models."embed-v4.0"]\nprice = { image = 0.001 }\n')
    price = open_teacher("cohere:embed-v4.0").limits.price
    assert (price.image, price.image_tokens, price.text_tokens) == (0.001, 0, 0.12)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("[jinna]\nin_flight = 1", "jinna: unknown vendor; did you mean jina?"),
        (
            '[jina.models."jina-clip-2"]\nprice = { image = 1 }',
            'no model in use; did you mean "jina-clip-v2"?',
        ),
        ('[jina.models."jina-clip-v2"]\nprize = { image = 1 }', "prize: unknown; did you mean price?"),
        ('[jina.models."jina-clip-v2"]\nprice = { images = 1 }', "images: unknown; did you mean image?"),
        ('[jina.models."jina-clip-v2"]\nprice = { image = inf }', "finite"),
        ("jina = 3", "jina: not a table"),
    ],
)
def test_a_misspelt_table_is_refused_with_a_suggestion(table, words, tmp_path, monkeypatch):
    (tmp_path / "vendors.toml").write_text(table)
    monkeypatch.setenv("VL2V_VENDORS", str(tmp_path / "vendors.toml"))
    with pytest.raises(TeacherError) as raised:
        open_teacher("jina:jina-clip-v2")
    assert words in str(raised.value)


def test_another_version_of_a_model_is_not_a_typo(tmp_path, monkeypatch):
    (tmp_path / "vendors.toml").write_text('[jina.models."jina-clip-v1"]\nprice = { image = 1 }')
    monkeypatch.setenv("VL2V_VENDORS", str(tmp_path / "vendors.toml"))
    assert open_teacher("jina:jina-clip-v2").limits.price.image == 0


def test_a_redirect_is_reported_and_the_key_goes_nowhere_else(vendor):
    def moved(handler, body):
        handler.answer(301, b"", Location=f"http://me:word@127.0.0.2:{vendor.server_address[1]}/v1")
        return True

    vendor.always = moved
    teacher = open_teacher(f"openai-compatible:{vendor.url}#m")
    teacher.budget = Budget()
    with pytest.raises(TeacherError, match=r"301, the server sends on to http://\*\*\*@127\.0\.0\.2") as raised:
        teacher.embed_texts(["a"])
    assert "word@" not in str(raised.value)
    assert len(vendor.requests) == 1 and teacher.budget.statuses() == ["rejected"]


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_a_proxy_that_wants_a_password_and_a_server_without_tls_cost_nothing(scheme, vendor, monkeypatch):
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_CONNECT(self):
            self.send_error(407)

        def do_GET(self):
            self.send_error(407)

        def do_POST(self):
            self.send_error(407)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.server_address[1]}")
        teacher = open_teacher(f"openai-compatible:{scheme}://vendor.invalid/v1#m")
        teacher.budget = Budget(budget=0)
        with pytest.raises(TeacherError, match="the proxy wants a login"):
            teacher.embed_texts(["a"])
        proxy.shutdown()
    assert teacher.budget.statuses() == ["rejected"]
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name)
    teacher = open_teacher(f"openai-compatible:{vendor.url.replace('http:', 'https:')}#m")
    teacher.budget = Budget()
    with pytest.raises(TeacherError, match="doesn't speak TLS"):
        teacher.embed_texts(["a"])
    assert teacher.budget.statuses() == ["rejected"]


def test_a_password_in_a_runs_settings_is_refused_and_cleaned_where_it_stands(tmp_path):
    spec = "openai-compatible:http://me:w0rd@host/v1#m"
    with pytest.raises(ConfigError, match="a password or key in an address") as raised:
        resolve({"teacher": {"spec": spec}, "data": {"path": "x"}})
    assert "w0rd" not in str(raised.value)
    config = resolve({"teacher": {"spec": spec.replace("me:w0rd@", "")}, "data": {"path": "x"}})
    (tmp_path / "config.toml").write_text(config.to_toml().replace("http://host", "http://me:w0rd@host"))
    with pytest.warns(VL2VWarning, match="has a password or key in teacher.spec") as warned:
        assert Run(tmp_path).config == config
    assert "w0rd" not in str(warned[0].message) and "w0rd" in (tmp_path / "config.toml").read_text()  # it only reads
    assert open_run(tmp_path, config, lambda run: True).config == config
    assert "w0rd" not in (tmp_path / "config.toml").read_text()
