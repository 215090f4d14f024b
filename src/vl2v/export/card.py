"""`student.json`: what the file of an export is, for programs that can't read what is inside it."""

from __future__ import annotations

import base64
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from vl2v.data.download import sha256_of
from vl2v.deploy.runtime import files_of, load
from vl2v.export.parity import Parity
from vl2v.io import write_text
from vl2v.students.classifier import Classifier

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
