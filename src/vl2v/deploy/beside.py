"""The export that a finished run keeps beside its student, so that `vl2v predict` needs no torch.

The file is named after a digest of the network's weights. Class names, class embeddings and thresholds are read from
the student's own files, so that added classes need no new export; after other changes of the student no file has the
right name, and torch is used.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from vl2v.deploy.runtime import Exported, load
from vl2v.errors import VL2VError

CARD, WEIGHTS = "student.json", "student.safetensors"
TEXTS = "texts"  # the tensor of class embeddings


def export_of(folder: Path) -> Path:
    """Return where the export of a student folder's weights as they are now belongs, whether or not it is there.

    Raises:
        OSError, ValueError, KeyError, TypeError: the student's files are missing or corrupt.
    """
    return _export_of(folder, _card(folder), _tensors(folder)[1])


def load_beside(folder: Path) -> Exported | None:
    """Return a student through the export beside it; None: there is none of these weights, or it can't be used.

    Args:
        folder: `student` of a run folder.
    """
    try:
        card, (texts, digest) = _card(folder), _tensors(folder)
        file = _export_of(folder, card, digest)
        if not file.is_file():
            return None
        exported = load(file)
        fields = ("classes", "scale", "temperature", "threshold")
        now = exported.card | {key: card[key] for key in fields}
        if exported.card["form"] == "open":
            if texts is None or len(texts) != len(card["classes"]):
                return None
            now["texts"] = base64.b64encode(texts.tobytes()).decode()
        elif exported.classes != card["classes"]:
            return None
        return exported.with_card(now)
    except (OSError, ValueError, KeyError, TypeError, VL2VError):
        return None


def class_names(folder: Path) -> list[str] | None:
    """Return a student's classes; None: its card can't be read, which loading the student explains."""
    try:
        names = _card(folder)["classes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return names if isinstance(names, list) and names and all(isinstance(name, str) for name in names) else None


def _card(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / CARD).read_text(encoding="utf-8"))
    return card


def _tensors(folder: Path) -> tuple[np.ndarray[Any, np.dtype[np.float32]] | None, str]:
    """Return a student's class embeddings [C, d], if it has any, and a digest of all other tensors."""
    data = (folder / WEIGHTS).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body, texts = json.loads(data[8 : 8 + size]), memoryview(data)[8 + size :], None
    digest = hashlib.sha256()
    for name in sorted(header.keys() - {"__metadata__"}):
        entry = header[name]
        start, end = entry["data_offsets"]
        if name == TEXTS:
            if entry["dtype"] != "F32":
                raise ValueError(f"{name}: {entry['dtype']}")
            texts = np.frombuffer(body[start:end], "<f4").reshape(entry["shape"])
        else:
            digest.update(f"{name} {entry['dtype']} {entry['shape']}\n".encode())
            digest.update(body[start:end])
    return texts, digest.hexdigest()


def _export_of(folder: Path, card: dict[str, Any], digest: str) -> Path:
    network = json.dumps([card["format"], card["backbone"], card["head"], digest], sort_keys=True)
    return folder / f"network-{hashlib.sha256(network.encode()).hexdigest()[:16]}.onnx"
