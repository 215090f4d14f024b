"""The cards of a student: `student.json` beside an export, for programs, and a repository's README.md, for people.

One says what the file is, to those that can't read what is inside it; the other what the student was taught, by whom,
how well it does, and what it may be used for.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vl2v.config import TOWER
from vl2v.data.download import sha256_of
from vl2v.deploy.runtime import files_of, load
from vl2v.evaluation.compare import wilson
from vl2v.export.parity import Parity
from vl2v.io import write_text
from vl2v.privacy import public_name
from vl2v.runs.folder import Run
from vl2v.students.classifier import Classifier
from vl2v.table import Table, markdown

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

    from vl2v.config import StudentConfig, TeacherConfig
    from vl2v.evaluation.metrics import Evaluation, Row
    from vl2v.export.hub import AsTimm


PAPER = ("adip", "sd")  # the methods of arXiv 2310.08255


def model_card(
    run: Run,
    repo: str,
    *,
    licence: str = "other",
    exports: tuple[str, ...] = (),
    timm: AsTimm | str = "",
    inside: str = "",
) -> str:
    """Return the card of a finished run's student, in Markdown with the hub's metadata.

    Args:
        licence: the hub's identifier of the one it is shared under.
        exports: names of .onnx files beside it.
        timm: how it compares as a timm model, or why it is none.
        inside: name of one of these that takes images of any size; then there are files for transformers.js, too.

    Raises:
        RunError: the run isn't finished.
    """
    from huggingface_hub import ModelCard

    from vl2v.methods import METHODS
    from vl2v.methods.base import RENAMED

    classifier, config, evaluation = run.classifier, run.config, run.evaluation
    about = classifier.about
    teacher = public_name(about["teacher"]["spec"]) if about["teacher"] else None
    base, base_licence = _base(config.student, teacher)
    rows = list(evaluation.rows) if evaluation else []
    competed = list(evaluation.classes) if evaluation else []
    current = competed in ([], classifier.classes)
    return str(
        ModelCard.from_template(
            _metadata(
                repo,
                licence,
                about["method"],
                base,
                evaluation if current else None,
                library="vl2v" if isinstance(timm, str) else "timm",
                tags=[*(["onnx"] if exports else []), *(["transformers.js"] if inside else [])],
            ),
            template_str=files("vl2v.export").joinpath("model_card.md").read_text(encoding="utf-8"),
            repo=repo,
            licence=licence,
            classifier=classifier,
            classes=[markdown(name) for name in classifier.classes],
            domains=[(markdown(name), about.get("images", {}).get(name)) for name in about["sources"]],
            targets=[markdown(name) for name in about["target"]],
            size=classifier.student.spec.image_size,
            parameters=sum(weights.numel() for weights in classifier.student.parameters()),
            method=about["method"],
            title=METHODS[RENAMED.get(about["method"], about["method"])].title,
            teacher=teacher,
            teacher_licence=teacher_licence(teacher) if teacher else None,
            asks=_asked(config.teacher),
            student=config.student.name,
            base=base,
            base_licence=base_licence,
            table=_table(rows).render("md") if rows else "",
            unseen=any(row.role == "unseen" for row in rows),
            competed=[] if current else [markdown(name) for name in competed],
            exports=exports,
            timm=None if isinstance(timm, str) else timm,
            why_not_timm=timm,
            inside=inside,
            paper=about["method"] in PAPER,
        )
    )


def teacher_licence(name: str) -> str:
    """Return what is known of the licence of a teacher (its public name), or what to check."""
    from vl2v.teachers.paid.adapters import ADAPTERS

    kind = name.partition(":")[0]
    if kind in ADAPTERS:
        known = " (the published weights of jina-clip-v2 are under CC BY-NC 4.0)" if name == "jina:jina-clip-v2" else ""
        return f"check its vendor's terms: some don't allow a model to be trained on their embeddings{known}"
    if name == "tiny":
        return "MIT"
    if name.startswith("hf:openai/clip-") or (kind == "open_clip" and name.endswith("/openai")):
        return "MIT, as OpenAI published CLIP"
    if name.startswith("hf:google/siglip"):
        return "Apache-2.0"
    return f"check the licence of {name}"


def _base(student: StudentConfig, teacher: str | None) -> tuple[str | None, str]:
    """Return the hub's name, if any, of the weights that the student started from, and their licence."""
    import timm

    from vl2v.students.backbone import PACKAGED

    if student.name == TOWER:
        return None, f"the student is the teacher's own image tower: check the licence of {teacher}"
    if student.weights == "none":
        return None, "the student started from random weights"
    known = timm.get_pretrained_cfg(student.name)
    if student.weights not in ("auto", "hub", "package") or known is None or not known.hf_hub_id:
        return None, "check the licence of the weights that it started from"
    licence = known.license or f"check the licence of {known.hf_hub_id}"
    if student.weights != "hub" and student.name in PACKAGED:
        licence += " as timm has them; the package that may have brought them states none"
    return known.hf_hub_id, licence


def _asked(teacher: TeacherConfig) -> str | None:
    """Return which images the teacher was asked about, where it wasn't all of them."""
    if teacher.select is None:
        return None
    if teacher.select_from == "unlabelled":
        return f"the training images with labels and {teacher.select} without"
    return f"{'some' if teacher.select == 'known' else teacher.select} of the training images"


def _metadata(
    repo: str,
    licence: str,
    method: str,
    base: str | None,
    evaluation: Evaluation | None,
    *,
    library: str,
    tags: Sequence[str],
) -> ModelCardData:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type="imagefolder",
            dataset_name=f"{row.domain} ({row.role} in training)",
            dataset_config=row.domain,
            dataset_split=row.role,
            metric_type="accuracy",
            metric_value=round(row.metrics.accuracy, 4),
        )
        for row in (evaluation.of() if evaluation else [])
    ]
    return ModelCardData(
        license=licence,
        library_name=library,
        pipeline_tag="image-classification",
        base_model=base,
        tags=["vl2v", "domain-generalization", "knowledge-distillation", method, *tags],
        metrics=["accuracy"],
        model_name=repo.rpartition("/")[2],
        eval_results=results or None,
    )


def _table(rows: Sequence[Row]) -> Table:
    """Return accuracy with its 95% interval, calibration, and what isn't called unknown."""
    cells = []
    for row in rows:
        m = row.metrics
        low, high = wilson(round(m.accuracy * m.images), m.images)
        interval = f"{100 * m.accuracy:.1f} ({100 * low:.1f} to {100 * high:.1f})"
        shares = (f"{100 * share:.1f}" for share in (m.balanced_accuracy, m.ece, m.known))
        cells.append([row.who, row.domain, row.role, str(m.images), interval, *shares])
    heads = ("who", "domain", "in training", "images", "accuracy", "balanced", "ECE", "known")
    return Table(heads, cells, left=heads[:3])


SCHEMA = 1
VERSIONS = ("vl2v", "torch", "timm", "onnx", "onnxruntime", "openvino")


def card_file(path: Path) -> Path:
    """Return where the card of an export belongs: `student.json` beside `student.onnx`, else named after the format."""
    return path.with_suffix(".json") if path.suffix == ".onnx" else path.with_name(f"{path.name}.json")


def write_card(path: Path, classifier: Classifier, parity: Parity) -> Path:
    """Write the card of an export beside it, and return where.

    Args:
        classifier: the student that is in it.

    Raises:
        RunError: it can't be written.
    """
    text = json.dumps(public_card(path, classifier, parity), indent=2, ensure_ascii=False)
    write_text(card_file(path), text + "\n")
    return card_file(path)


def public_card(path: Path, classifier: Classifier, parity: Parity) -> dict[str, Any]:
    """Return the card of an export, as docs/student.schema.json describes it."""
    exported = load(path, threads=1)
    card, size, spec = exported.card, exported.image_size, classifier.student.spec
    main = path.with_suffix(".xml") if path.suffix == ".bin" else path
    files = [{"name": file.name, "bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in files_of(path)]
    files.sort(key=lambda file: file["name"] != main.name)
    inside = exported.inside
    batch = 1 if path.suffix in (".tflite", ".pte") else "n"
    out = "embedding" if card["form"] == "open" else "logits"
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "files": files,
        "form": card["form"],
        "precision": card["precision"],
        "classes": exported.classes,
        "input": {
            "name": "image" if inside else "pixels",
            "type": "uint8",
            "colours": "RGB",
            "shape": ["n", "height", "width", 3] if inside else [batch, size, size, 3],
        },
        "outputs": ["probabilities", out] if inside else [out],
        "preprocessing": "inside" if inside else "outside",
        "image_size": size,
        "fit": exported.fit,
        "resize": "bilinear, antialiased (Pillow)",
        "mean": list(spec.mean),
        "std": list(spec.std),
        "temperature": card["temperature"],
        "threshold": card["threshold"],
        "accuracy": {
            name: {"accuracy": after, "images": parity.images[name]} for name, (_, after) in parity.accuracy.items()
        },
        "versions": _versions(),
    }
    if card["form"] == "open":
        found["scale"] = card["scale"]
        found["class_embeddings"] = base64.b64encode(exported.texts.astype(np.float32).tobytes()).decode()
    return found


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
