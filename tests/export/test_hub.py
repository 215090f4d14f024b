"""A student that is shared: all that is needed, nothing of its maker's; and one from elsewhere, evaluated first."""

from __future__ import annotations

import getpass
import io
import json
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub.constants
import pytest
import timm
import torch
import yaml
from huggingface_hub.utils import close_session
from PIL import Image
from safetensors.torch import load_file, save
from typer.testing import CliRunner

import vl2v
import vl2v.deploy.runtime
from export import hub as stand_in
from export.hub import Hub
from vl2v.cli.app import app
from vl2v.errors import DataError, HubError, StudentError
from vl2v.export.cards import model_card, teacher_licence
from vl2v.export.hub import as_timm, parcel, push
from vl2v.export.parity import source_domains
from vl2v.export.student import open_images
from vl2v.serving import serve as serving
from vl2v.students.stored import fetch_export

if TYPE_CHECKING:
    from .conftest import Made

TOKEN, KEY = "hf_planted0123456789", "sk-planted0123456789"
REPO = "maker/shapes"


@pytest.fixture(scope="module")
def run(
    trained: Callable[[str], vl2v.Run], made: Callable[..., Made], tmp_path_factory: pytest.TempPathFactory
) -> vl2v.Run:
    """Return a copy of the run with exports in it, in fp32 and int8."""
    folder = shutil.copytree(trained("adip").folder, tmp_path_factory.mktemp("hub") / "adip")
    shutil.copy(made().path, folder / "student.onnx")
    shutil.copy(made(int8=True).path, folder / "student-int8.onnx")
    return vl2v.Run(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Return a hub that this process's client talks to, as HF_ENDPOINT, HF_HUB_CACHE and so on would have it."""
    opened = Hub("maker", TOKEN)
    files = opened.url + "/{repo_id}/resolve/{revision}/{filename}"
    places = {"ENDPOINT": opened.url, "HUGGINGFACE_CO_URL_TEMPLATE": files}
    others = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
    for name, value in {**places, **others}.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    close_session()
    yield opened
    opened.stop()
    close_session()


def test_what_was_pushed_predicts_what_the_run_does(hub: Hub, run: vl2v.Run, shapes: Path, tmp_path: Path) -> None:
    reference = push(run, REPO)
    commit, files = hub.head(REPO)
    assert reference == f"hf:{REPO}@{commit}"
    own = {".gitattributes", "README.md", "student.json", "student.safetensors", "student.onnx", "student-int8.onnx"}
    web = {"onnx/model.onnx", "onnx/model_quantized.onnx", "preprocessor_config.json"}
    assert set(files) == own | web | {"config.json", "model.safetensors"}
    images = sorted((shapes / "paint").rglob("*.png"))
    wanted = run.classifier.predict(images)
    assert vl2v.load(reference).predict(images) == vl2v.load(f"hf:{REPO}").predict(images) == wanted
    (tmp_path / "student.onnx").write_bytes(files["student.onnx"])
    assert vl2v.deploy.runtime.load(tmp_path / "student.onnx").predict(images)[0].label == wanted[0].label


def test_timm_loads_what_was_pushed(hub: Hub, run: vl2v.Run, shapes: Path) -> None:
    push(run, REPO)
    model = timm.create_model(f"hf-hub:{REPO}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    images = sorted((shapes / "paint").rglob("*.png"))
    with torch.inference_mode():
        found = [int(model(transform(Image.open(image).convert("RGB"))[None]).argmax()) for image in images]
    classes = model.pretrained_cfg["label_names"]
    assert [classes[index] for index in found] == [one.best for one in run.classifier.predict(images)]
    assert "validation images it gives the same classes there." in hub.head(REPO)[1]["README.md"].decode()


def test_a_linear_head_is_the_same_in_timm(trained: Callable[[str], vl2v.Run]) -> None:
    erm = trained("erm")
    domains = list(source_domains(erm.classifier, open_images(erm, erm.folder.with_name("store"))))
    made = as_timm(erm.classifier, domains)
    assert made.images == sum(len(domain.labels) for domain in domains) and made.apart < 1e-5


def test_timm_is_left_out_where_it_can_not_be(run: vl2v.Run, shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(run.classifier.student.spec.build, "kind", "open_clip")
    files = parcel(run, REPO)
    assert "model.safetensors" not in files and "onnx/model.onnx" in files
    assert "timm can't load it: its backbone isn't a model of timm." in files["README.md"].decode()


@pytest.mark.parametrize(("dtype", "file"), [("fp32", "student.onnx"), ("q8", "student-int8.onnx")])
def test_transformers_js_gives_the_same_probabilities(
    dtype: str, file: str, hub: Hub, run: vl2v.Run, shapes: Path, node_modules: Path, tmp_path: Path
) -> None:
    push(run, REPO)
    images = sorted(shapes.rglob("*.png"))[::7]
    for number, image in enumerate(images[::2]):  # of another size
        with Image.open(image) as opened:
            opened.resize((31 + 9 * number, 150)).save(tmp_path / f"{number}.png")
    images += sorted(tmp_path.glob("*.png"))
    program = node_modules.parent / "transformers.mjs"
    words = ["node", program, hub.url, REPO, tmp_path / "cache", dtype, *images]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    exported = vl2v.deploy.runtime.load(run.folder / file)
    for said, wanted in zip(json.loads(done.stdout), exported.predict(images), strict=True):
        assert said[0]["label"] == wanted.best
        assert {row["label"]: row["score"] for row in said} == pytest.approx(wanted.probabilities, abs=1e-3)


def test_the_space_predicts_what_the_run_does(
    hub: Hub, run: vl2v.Run, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(run, REPO)
    (program,) = re.findall(r"^```python\n(import json.*?)^```$", parcel(run, REPO)["README.md"].decode(), re.M | re.S)
    given: list[Any] = []
    launched = types.SimpleNamespace(launch=lambda: None)
    page = {"Image": dict, "Label": dict, "Interface": lambda *what: given.extend(what) or launched}
    monkeypatch.setitem(sys.modules, "gradio", types.SimpleNamespace(**page))
    exec(program, {})
    predict, image_options, _ = given
    assert image_options == {"type": "pil", "image_mode": None}
    image = Image.open(next(shapes.rglob("*.png"))).convert("RGBA").resize((61, 47))
    image.putalpha(Image.linear_gradient("L").resize(image.size).point(lambda level: 0 if level < 64 else 255))
    for each in (image, image.convert("RGB"), image.convert("RGB").quantize(), image.convert("L")):
        file = io.BytesIO()
        each.save(file, "PNG")
        (wanted,) = run.classifier.predict([file.getvalue()])
        assert predict(each) == pytest.approx(wanted.probabilities, abs=1e-3)


def test_nothing_of_its_maker_is_sent(run: vl2v.Run, shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("VL2V_API_KEY", KEY)
    config = (run.folder / "config.toml").read_text()
    assert str(shapes) in config  # the run knows
    machine = [str(Path.home()), f"/{getpass.getuser()}/", "site-packages", "src/vl2v"]
    names = [str(shapes), str(run.folder), TOKEN, KEY, *machine]
    names += sorted(image.name for image in shapes.rglob("*.png"))[:3]
    files = parcel(run, REPO)
    for name, data in files.items():
        assert not [word for word in names if word.encode() in data], name


def test_a_teachers_licence_is_given_by_its_name() -> None:
    assert "terms" in teacher_licence("voyage:voyage-multimodal-3")
    assert teacher_licence("open_clip:ViT-B-32/laion2b") == "check the licence of open_clip:ViT-B-32/laion2b"


def test_the_card_says_what_the_run_knows(run: vl2v.Run) -> None:
    card = parcel(run, REPO, licence="mit")["README.md"].decode()
    _, front, text = card.split("---\n", 2)
    data = yaml.safe_load(front)
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == ("mit", "timm", "image-classification")
    assert {"vl2v", "adip", "onnx"} <= set(data["tags"]) and "base_model" not in data  # it started from random weights
    (model,) = data["model-index"]
    found = {one["dataset"]["config"]: one["metrics"][0]["value"] for one in model["results"]}
    assert run.evaluation is not None
    rows = {row.domain: row.metrics for row in run.evaluation.of()}
    assert found == {domain: pytest.approx(m.accuracy, abs=1e-4) for domain, m in rows.items()}
    assert "| chalk (29), ink (29) |" in text and "ball, box, cone" in text
    assert f"| student | paint | unseen | 36 | {100 * rows['paint'].accuracy:.1f} (" in text
    assert "recorded:shapes-teacher" in text and "check the licence of recorded:shapes-teacher" in text
    assert 'vl2v.load("hf:maker/shapes")' in text and "arxiv" not in front and "@inproceedings" in text
    for block in text.split("```python\n")[1:]:
        compile(block.split("```")[0], "card", "exec")


def test_the_card_says_when_its_figures_are_of_other_classes(run: vl2v.Run) -> None:
    assert "These figures are of" not in model_card(run, REPO)
    run.classifier.classes.append("star")
    try:
        card = model_card(run, REPO)
    finally:
        run.classifier.classes.pop()
    assert "**These figures are of 3 classes, not of the 4 that it has now:** ball, box, cone." in card
    assert "model-index" not in card  # where there is no room for such words


def test_a_second_push_replaces_the_first_and_the_first_stays_pinned(
    hub: Hub, run: vl2v.Run, tmp_path: Path, shapes: Path
) -> None:
    first = push(run, REPO)
    before = hub.head(REPO)[1]["student.json"]
    exports = sorted(run.folder.glob("student*.onnx"))
    for export in exports:
        export.rename(tmp_path / export.name)
    run.classifier.threshold += 0.25
    try:
        second = push(run, REPO)
    finally:
        for export in exports:
            (tmp_path / export.name).rename(export)
        run.classifier.threshold -= 0.25
    assert "student.onnx" not in hub.head(REPO)[1]  # it would be of other weights
    assert vl2v.load(second).threshold == pytest.approx(json.loads(before)["threshold"] + 0.25)
    assert vl2v.load(first).threshold == json.loads(before)["threshold"]


def test_what_was_pushed_is_served_and_evaluated(
    hub: Hub, run: vl2v.Run, store: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, taken = push(run, REPO), []
    monkeypatch.setattr(serving, "serve", lambda file, **options: taken.append(Path(file)))
    result = CliRunner().invoke(app, ["serve", reference])
    assert result.exit_code == 0, result.output
    assert taken[0].read_bytes() == (run.folder / "student-int8.onnx").read_bytes()
    here, there = (vl2v.evaluate(which, shapes, store=store) for which in (run.folder, reference))
    assert {row.role for row in there.rows} == {"unseen"}  # it doesn't know its own images any more
    unseen = [row for row in here.rows if row.role == "unseen"]
    assert unseen and all(row in there.rows for row in unseen)
    with pytest.raises(DataError, match="comes without its images"):
        vl2v.evaluate(reference, store=store)


def test_a_student_without_an_export_is_not_served(hub: Hub, run: vl2v.Run) -> None:
    hub.commit(REPO, {"student.json": b"{}"})
    with pytest.raises(HubError, match=r"maker/shapes: no export in it .*`vl2v export` its run and push it again"):
        fetch_export(f"hf:{REPO}", vl2v.deploy.runtime.NAMES)


def test_an_export_of_other_classes_is_not_sent(run: vl2v.Run) -> None:
    run.classifier.classes.append("star")
    try:
        with pytest.raises(StudentError, match=r"student.*\.onnx: exported before .* classes changed; export it again"):
            parcel(run, REPO)
    finally:
        run.classifier.classes.pop()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("hf:maker", "'maker': not a repository of the hub; write it as USER/REPO"),
        ("hf:maker/nothing", "hf:maker/nothing: no such repository, or a private one that HF_TOKEN doesn't open"),
        (f"hf:{REPO}@{'0' * 40}", f"hf:{REPO}@{'0' * 40}: no such revision"),
        ("hf:maker/other", "hf:maker/other: not a student of vl2v (no student.json)"),
    ],
)
def test_what_can_not_be_had_is_said_in_a_line(hub: Hub, reference: str, message: str) -> None:
    hub.commit(REPO, {})
    hub.commit("maker/other", {"model.bin": b"pickle"})
    with pytest.raises(HubError) as error:
        vl2v.load(reference)
    assert str(error.value) == message


def test_without_a_connection_the_cache_is_used_or_a_line_says_so(
    hub: Hub, run: vl2v.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = push(run, REPO)
    vl2v.load(f"hf:{REPO}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert vl2v.load(reference).classes == vl2v.load(f"hf:{REPO}").classes == ["ball", "box", "cone"]
    with pytest.raises(HubError, match=r"^hf:maker/other: the hub can't be reached \(OfflineModeIsEnabled\)$"):
        vl2v.load("hf:maker/other")
    with pytest.raises(HubError, match=f"^hf:{REPO}: the hub can't be reached"):
        push(run, REPO)


def test_only_those_who_may_write_push(hub: Hub, run: vl2v.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match=r"hf:somebody/else: the hub returned 403 \(.*put a token that may write there"):
        push(run, "somebody/else")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong0123456789")
    with pytest.raises(HubError, match="the hub returned 401") as error:
        push(run, REPO)
    assert "hf_wrong" not in str(error.value)
    assert not hub.commits


def test_a_private_student_is_its_owners(hub: Hub, run: vl2v.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    push(run, REPO, private=True)
    assert hub.private == {REPO}
    monkeypatch.setenv("HF_TOKEN", "hf_other0123456789")
    with pytest.raises(HubError, match="no such repository, or a private one"):
        vl2v.load(f"hf:{REPO}")


def test_a_private_student_is_not_put_where_all_can_see_it(hub: Hub, run: vl2v.Run) -> None:
    made = hub.commit(REPO, {})
    with pytest.raises(HubError, match=f"^hf:{REPO}: is public; make it private"):
        push(run, REPO, private=True)
    assert hub.head(REPO) == (made, {})
    hub.private.add(REPO)
    push(run, REPO, private=True)
    assert "student.safetensors" in hub.head(REPO)[1]


@pytest.mark.parametrize("licence", ["MIT", "mti", "no: [", ""])
def test_a_licence_that_the_hub_does_not_know_is_refused_before_anything_is_made(
    hub: Hub, run: vl2v.Run, licence: str
) -> None:
    for more in ([], ["--dry-run"]):
        result = CliRunner().invoke(app, ["push", str(run.folder), REPO, "--license", licence, *more])
        assert isinstance(result.exception, HubError) and not result.stdout and "\n" not in str(result.exception)
        assert str(result.exception).startswith(f"--license {licence}: not one of the hub's identifiers")
    assert not hub.commits


def test_a_card_that_the_hub_refuses_is_said_in_a_line(
    hub: Hub, run: vl2v.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stand_in, "LICENCES", ("mit",))
    with pytest.raises(HubError, match=rf'^hf:{REPO}: Invalid metadata in README.md. - "license" must be one of'):
        push(run, REPO)


BAD = {
    "not finite": (lambda card, tensors: tensors["texts"].fill_(float("nan")), "NaN or infinity"),
    "another shape": (lambda card, tensors: card.update(out=17), "the weights don't fit"),
    "more classes": (lambda card, tensors: card["classes"].append("x"), "the weights don't fit"),
    "no classes": (lambda card, tensors: card.update(classes=[]), "classes: list should have at least 1 item"),
    "a huge layer": (lambda card, tensors: card.update(features=10**12), "the weights don't fit"),
    "huge images": (lambda card, tensors: card["backbone"].update(image_size=10**6), r"backbone\.image_size: .*4096"),
    "no number": (lambda card, tensors: card.update(temperature="warm"), "temperature: must be a number"),
    "a model of the hub": (
        lambda card, tensors: card["backbone"]["build"].update(name="hf-hub:somebody/else"),
        "timm has no such model",
    ),
    "a tower that would be fetched": (
        lambda card, tensors: card["backbone"].update(
            build={
                "kind": "open_clip",
                "embed_dim": 16,
                "quick_gelu": False,
                "vision_cfg": {"timm_model_name": "hf-hub:somebody/else", "timm_model_pretrained": True},
            }
        ),
        "not a model of timm",
    ),
    "a tower of foreign code": (
        lambda card, tensors: card["backbone"].update(
            build={"kind": "hf", "model_type": "clip", "config": {"attn_implementation": "somebody/kernel"}}
        ),
        "the weights don't fit",
    ),
    "another kind": (lambda card, tensors: card["backbone"].update(build={"kind": "exec"}), "describes no student"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_student_from_elsewhere_is_inspected_before_it_is_used(hub: Hub, run: vl2v.Run, what: str) -> None:
    change, message = BAD[what]
    card = json.loads((run.folder / "student" / "student.json").read_text())
    tensors = load_file(run.folder / "student" / "student.safetensors")
    change(card, tensors)  # type: ignore[no-untyped-call]
    hub.commit(REPO, {"student.json": json.dumps(card).encode(), "student.safetensors": save(tensors)})
    with pytest.raises(vl2v.errors.VL2VError, match=message) as error:
        vl2v.load(f"hf:{REPO}")
    assert "\n" not in str(error.value)


def test_a_bottomless_description_is_not_followed(hub: Hub, run: vl2v.Run) -> None:
    weights = (run.folder / "student" / "student.safetensors").read_bytes()
    hub.commit(REPO, {"student.json": b"[" * 100_000, "student.safetensors": weights})
    with pytest.raises(StudentError, match="the student is corrupt"):
        vl2v.load(f"hf:{REPO}")


def test_a_pickle_is_not_opened(hub: Hub, run: vl2v.Run, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save(Trap(), tmp_path / "pickle")
    card = (run.folder / "student" / "student.json").read_bytes()
    hub.commit(REPO, {"student.json": card, "student.safetensors": (tmp_path / "pickle").read_bytes()})
    with pytest.raises(StudentError, match="the student is corrupt"):
        vl2v.load(f"hf:{REPO}")
    assert not (tmp_path / "sprung").exists()


def test_the_commands(hub: Hub, run: vl2v.Run, shapes: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
    }

    def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-m", "vl2v", *map(str, words)]
        return subprocess.run(arguments, env=environment, capture_output=True, text=True)

    dry = CliRunner().invoke(app, ["push", str(run.folder), REPO, "--dry-run"])
    assert dry.exit_code == 0 and "license: other\n" in dry.stdout, dry.output
    assert "student.safetensors: " in dry.stderr and not hub.commits
    done = CliRunner().invoke(app, ["push", str(run.folder), REPO, "--license", "mit"])
    assert done.exit_code == 0 and done.stdout.startswith(f"hf:{REPO}@{hub.head(REPO)[0]}"), done.output
    found = CliRunner().invoke(app, ["predict", f"hf:{REPO}", str(shapes / "ink" / "ball" / "00.png")])
    assert found.exit_code == 0 and found.stdout.split("\t")[1] in ("ball", "box", "cone", "unknown"), found.stderr
    listed = command("classes", "list", f"hf:{REPO}")
    assert listed.stdout.split() == ["ball", "box", "cone"], listed.stderr
    assert TOKEN not in dry.stdout + dry.stderr + done.stdout + done.stderr + found.stderr + listed.stderr
    hub.stop()
    environment["HF_HOME"] = str(tmp_path / "empty")
    lost = command("classes", "list", f"hf:{REPO}")
    assert lost.returncode == 2
    assert lost.stderr.splitlines()[-1].startswith(f"error: hf:{REPO}: the hub can't be reached")
