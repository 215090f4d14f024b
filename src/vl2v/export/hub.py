"""A student on the Hugging Face hub, for vl2v, timm and transformers.js; nothing of its maker's goes along."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from vl2v.deploy.runtime import load, load_current
from vl2v.errors import HubError, StudentError, VL2VError
from vl2v.export.cards import model_card
from vl2v.export.inside import IMAGE, PROBABILITIES
from vl2v.export.network import public_about
from vl2v.export.parity import Domain, parts, source_domains
from vl2v.export.student import open_images
from vl2v.io import temporary_folder
from vl2v.privacy import public_name
from vl2v.runs.folder import Run
from vl2v.students.backbone import timm_model
from vl2v.students.classifier import Classifier
from vl2v.students.stored import PREFIX, check_repo, one_line

ONNX = {"student.onnx": "onnx/model.onnx", "student-int8.onnx": "onnx/model_quantized.onnx"}
"""Export in a run folder -> its name for transformers.js."""

NAMES = ("config.json", "model.safetensors", "preprocessor_config.json", *ONNX.values())
_CROP = {"stretch": "squash", "crop": "center", "pad": "border"}  # how timm calls what makes a square
_OF_ARCHITECTURE = ("first_conv", "classifier", "fixed_input_size", "pool_size")


@dataclass(frozen=True)
class AsTimm:
    """A student as a timm model.

    Attributes:
        files: `config.json` and `model.safetensors`.
        images: validation images that it was compared with the student on; all have the same class.
        apart: the largest difference of a probability.
        mean_apart: the mean difference of the likeliest class's probability.
    """

    files: dict[str, bytes]
    images: int
    apart: float
    mean_apart: float


def as_timm(classifier: Classifier, domains: Sequence[Domain]) -> AsTimm:
    """Return a student as what `timm.create_model("hf-hub:USER/REPO", pretrained=True)` loads.

    Projector, class embeddings, scale and temperature become timm's last linear layer. Of a text head the embedding's
    norm can't be in it: logits s z . T / |z| become c z . T, with the c that comes nearest to the student's
    probabilities on the validation images. A positive factor moves no class, but probabilities.

    Args:
        domains: validation images, and the student's logits for them.

    Raises:
        StudentError: its backbone isn't a model of timm that ends in one linear layer, or a class differs.
    """
    student, build = classifier.student, classifier.student.spec.build
    if build["kind"] != "timm":
        raise StudentError("its backbone isn't a model of timm")
    name, size = build["name"], student.spec.image_size
    model: Any = timm_model(name, size, classes=len(classifier.classes)).eval()
    missing, unexpected = model.load_state_dict(student.backbone.state_dict(), strict=False)
    head = model.get_classifier()
    own = {id(each) for each in head.parameters()}
    if (
        not isinstance(head, nn.Linear)
        or unexpected
        or set(missing) != {key for key, each in model.named_parameters() if id(each) in own}
    ):
        raise StudentError(f"{name} doesn't end in one linear layer")
    weight, bias = _folded(classifier)
    if weight.shape != head.weight.shape or head.bias is None:
        raise StudentError(f"{name}'s last layer is of another width")
    wanted = torch.cat([torch.from_numpy(domain.logits) for domain in domains]) / classifier.temperature
    with torch.inference_mode():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
        logits = torch.cat([_logits(model, classifier, part) for domain in domains for part in parts(domain.pixels)])
        factor = _nearest(logits, wanted) if student.head == "text" else 1.0
        head.weight.mul_(factor)
        head.bias.mul_(factor)
        found, wanted = (factor * logits).softmax(1), wanted.softmax(1)
    if (changed := int((found.argmax(1) != wanted.argmax(1)).sum())) > 0:
        raise StudentError(f"as a model of timm it gives {changed} of {len(wanted)} images another class")
    difference = (found - wanted).abs()
    likeliest = difference.gather(1, wanted.argmax(1, keepdim=True))
    config = json.dumps(_config(model, classifier), indent=2, ensure_ascii=False).encode()
    weights = save({key: value.contiguous() for key, value in model.state_dict().items()}, {"format": "pt"})
    files = {"config.json": config, "model.safetensors": weights}
    return AsTimm(files, len(wanted), float(difference.max()), float(likeliest.mean()))


def _folded(classifier: Classifier) -> tuple[Tensor, Tensor]:
    """Return weight [C, p] and bias [C] of features to logits, but for the norm of a text head's embedding."""
    projector = classifier.student.projector
    if isinstance(projector, nn.Linear):
        weight, bias = projector.weight.detach(), projector.bias.detach()
    elif classifier.texts is not None and isinstance(projector, nn.Identity):
        width = classifier.texts.shape[1]
        weight, bias = torch.eye(width), torch.zeros(width)
    else:
        raise StudentError("its head isn't one linear layer")
    if classifier.texts is not None:
        texts = classifier.scale * classifier.texts
        weight, bias = texts @ weight, texts @ bias
    return weight / classifier.temperature, bias / classifier.temperature


def _logits(model: nn.Module, classifier: Classifier, pixels: NDArray[np.uint8]) -> Tensor:
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    out: Tensor = model((x - classifier.student.mean) / classifier.student.std)
    return out


def _nearest(logits: Tensor, wanted: Tensor) -> float:
    """Return the factor of logits [n, C] that brings their softmax nearest to that of others, in cross entropy."""
    target, ratio = wanted.softmax(1), wanted.std(1).median() / logits.std(1).median()
    factors = ratio * torch.logspace(-0.5, 0.5, 201)
    losses = [-(target * (factor * logits).log_softmax(1)).sum(1).mean() for factor in factors]
    return float(factors[int(torch.stack(losses).argmin())])


def _config(model: Any, classifier: Classifier) -> dict[str, Any]:
    """Return `config.json`: timm's, and what transformers.js wants to know beside it."""
    spec, classes = classifier.student.spec, classifier.classes
    own: dict[str, Any] = model.pretrained_cfg
    sized = {"img_size": spec.image_size} if own.get("fixed_input_size") else {}
    return {
        "architecture": spec.build["name"],
        "num_classes": len(classes),
        "num_features": model.num_features,
        "label_names": classes,
        "model_args": sized,
        "pretrained_cfg": {
            **{key: own[key] for key in _OF_ARCHITECTURE if own.get(key) is not None},
            "num_classes": len(classes),
            "input_size": [3, spec.image_size, spec.image_size],
            "mean": list(spec.mean),
            "std": list(spec.std),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": _CROP[spec.fit],
        },
        "model_type": "mobilenet_v4",  # one of transformers.js that Python's transformers doesn't take for its own
        "id2label": dict(enumerate(classes)),
    }


def for_transformers_js(folder: Path) -> dict[str, bytes]:
    """Return what transformers.js loads of the exports in a run folder: name in the repository -> content.

    The ONNX files take its `pixel_values` [n, 3, h, w] as they were decoded, of any size, and resize and normalise in
    the graph: its own processor is told to do nothing, since its resizing isn't Pillow's. Logits are the logarithms of
    the calibrated probabilities, so that its softmax gives those.
    """
    found = {}
    for name, there in ONNX.items():
        if (folder / name).is_file() and load(folder / name, threads=1).inside:
            found[there] = _of_pixel_values(folder / name)
    if found:
        steps = {f"do_{step}": False for step in ("resize", "center_crop", "rescale", "normalize")}
        plain = {"image_processor_type": "ViTImageProcessor", "do_convert_rgb": True}
        found["preprocessor_config.json"] = json.dumps({**plain, **steps}, indent=2).encode()
    return found


def _of_pixel_values(file: Path) -> bytes:
    """Return an ONNX file that takes images of any size with another input and another output."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(str(file))
    graph = model.graph
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == "logits":
                    names[place] = "uncalibrated"
    last = helper.make_node("Transpose", ["pixel_values"], ["channels_last"], perm=[0, 2, 3, 1])
    bytes_ = helper.make_node("Cast", ["channels_last"], [IMAGE], to=TensorProto.UINT8)
    logarithm = helper.make_node("Log", [PROBABILITIES], ["logits"])
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["n", 3, "height", "width"])
    classes = graph.output[0].type.tensor_type.shape.dim[1].dim_value
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", classes])
    graph.CopyFrom(
        helper.make_graph([last, bytes_, *graph.node, logarithm], graph.name, [pixels], [logits], graph.initializer)
    )
    data: bytes = model.SerializeToString()
    return data


def parcel(run: Run, repo: str, *, licence: str = "other", store: Path | None = None) -> dict[str, bytes]:
    """Return what a push sends: name in the repository -> content.

    Args:
        run: a finished run; its exports (`student*.onnx`) are sent along, also as transformers.js loads them. What timm
            loads is sent if the run's images are at hand to check it on.
        licence: the hub's identifier of the one it is shared under.
        store: with the index of the images; by default the one shared by all runs.

    Raises:
        RunError: the run isn't finished.
        StudentError: an export that isn't of this student any more.
        HubError: not a repository's name.
    """
    check_repo(repo)
    exports = sorted(path for path in run.folder.iterdir() if _is_export(path.name))
    for export in exports:
        load_current(export, run.classifier.classes)
    timm = _as_timm(run, store)
    web = for_transformers_js(run.folder)
    names = tuple(export.name for export in exports)
    inside = next((name for name, there in ONNX.items() if there in web), "")
    card = model_card(run, repo, licence=licence, exports=names, timm=timm, inside=inside)
    with temporary_folder() as folder:
        _public(run.classifier).save(folder)
        sent = [*sorted(folder.iterdir()), *exports]
        others = {**({} if isinstance(timm, str) else timm.files), **web}
        return {"README.md": card.encode(), **{file.name: file.read_bytes() for file in sent}, **others}


def _as_timm(run: Run, store: Path | None) -> AsTimm | str:
    """Return a run's student as a timm model, or why it is none, in words that name no folder."""
    try:
        domains = list(source_domains(run.classifier, open_images(run, store)))
    except VL2VError:
        return "the images that it was trained beside weren't at hand when it was pushed, to check it on"
    try:
        return as_timm(run.classifier, domains)
    except StudentError as error:
        return str(error)


def push(run: Run, repo: str, *, private: bool = False, licence: str = "other", store: Path | None = None) -> str:
    """Send a run's student to the hub, in one commit, and return the reference of just that: hf:USER/REPO@COMMIT.

    The token is HF_TOKEN or that of `hf auth login`. Files of an earlier push that are not sent again are deleted.

    Args:
        repo: USER/REPO, made if it isn't there.
        private: for those alone who may see the repository; one that is there and public isn't written to.
        licence: the hub's identifier of the one it is shared under.
        store: as for `parcel`.

    Raises:
        HubError: the hub refuses it, doesn't know the licence, or can't be reached; or the repository is public.
        VL2VError: as `parcel` does.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    files = parcel(run, repo, licence=licence, store=store)
    check_licence(licence)
    hub = HfApi(library_name="vl2v")
    with one_line(PREFIX + repo):
        hub.create_repo(repo, private=private or None, exist_ok=True)
        if private and not hub.model_info(repo).private:  # it was there before
            raise HubError(f"{PREFIX}{repo}: is public; make it private in its settings, or choose another name")
        stale = [name for name in hub.list_repo_files(repo) if _is_of_a_push(name) and name not in files]
        changes: list[CommitOperationAdd | CommitOperationDelete] = [CommitOperationDelete(name) for name in stale]
        changes += [CommitOperationAdd(name, data) for name, data in files.items()]
        try:
            commit = hub.create_commit(repo, changes, commit_message="A student of vl2v")
        except ValueError as error:  # of its client, which has the hub check the card
            raise HubError(f"{PREFIX}{repo}: {' '.join(str(error).split())}") from None
    return f"{PREFIX}{repo}@{commit.oid}"


def check_licence(licence: str) -> None:
    """Find out whether the hub knows a licence; nothing of the student is sent.

    Raises:
        HubError: it doesn't, or can't be reached.
    """
    from huggingface_hub import ModelCard, ModelCardData

    if licence == "other":
        return
    with one_line(f"--license {licence}"):
        try:
            ModelCard(f"---\n{ModelCardData(license=licence)}\n---\n").validate()
        except ValueError:
            raise HubError(
                f"--license {licence}: not one of the hub's identifiers (mit, apache-2.0, cc-by-4.0, other...), which "
                "are in small letters: https://huggingface.co/docs/hub/repositories-licenses"
            ) from None


def _public(classifier: Classifier) -> Classifier:
    about = public_about(classifier.about)
    teacher = classifier.about["teacher"]
    about["teacher"] = {**teacher, "spec": public_name(teacher["spec"])} if teacher else None
    return replace(classifier, about={**about, "prompts": classifier.about["prompts"]})


def _is_of_a_push(name: str) -> bool:
    return _is_export(name) or name in NAMES


def _is_export(name: str) -> bool:
    return Path(name).match("student*.onnx")
