"""Where a trained student is found without PyTorch: on the Hugging Face hub, or as the export beside it in its run.

A finished run keeps that export so that `vl2v predict` needs no torch. Its file is named after a digest of the weights.
Class names, class embeddings and thresholds are read from the student's own files, so that added classes need no new
export; after other changes of the student no file has the right name, and torch is used.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vl2v.deploy.runtime import Exported, load
from vl2v.errors import HubError, VL2VError, reason

PREFIX = "hf:"
TEXTS = "texts"  # the tensor of class embeddings
FILES = CARD, WEIGHTS = ("student.json", "student.safetensors")


def is_on_hub(name: object) -> bool:
    """Return whether a name is a hub's reference, hf:USER/REPO, rather than a folder's."""
    return str(name).startswith(PREFIX)


def fetch(reference: str) -> Path:
    """Return a folder with the two files of a student, fetched unless the hub's cache has them.

    Nothing else of the repository is read. Both files are of one commit.

    Args:
        reference: hf:USER/REPO, or hf:USER/REPO@REVISION, a commit, tag or branch; else what is newest.

    Raises:
        HubError: no such repository or revision, no student of vl2v in it, or no connection.
    """
    repo, revision = _parts(reference)
    folder = None
    for name in FILES:
        path = _fetched(reference, repo, name, revision)
        if path is None:
            raise HubError(f"{reference}: not a student of vl2v (no {name})")
        folder = path.parent  # .../snapshots/COMMIT
        revision = folder.name
    assert folder is not None
    return folder


def fetch_export(reference: str, names: Sequence[str]) -> Path:
    """Return the first of a student's exports that its repository has, fetched unless the hub's cache has it.

    Args:
        reference: as for `fetch`.

    Raises:
        HubError: as for `fetch`, or the student was pushed without an export.
    """
    repo, revision = _parts(reference)
    for name in names:
        path = _fetched(reference, repo, name, revision)
        if path is not None:
            return path
    raise HubError(f"{reference}: no export in it ({', '.join(names)}); `vl2v export` its run and push it again")


def _parts(reference: str) -> tuple[str, str | None]:
    repo, _, revision = reference.removeprefix(PREFIX).partition("@")
    check_repo(repo)
    return repo, revision or None


def _fetched(reference: str, repo: str, name: str, revision: str | None) -> Path | None:
    """Return a file of a repository; None if it has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    with one_line(reference):
        try:
            return Path(hf_hub_download(repo, name, revision=revision, library_name="vl2v"))
        except EntryNotFoundError as error:
            if isinstance(error, FileNotFoundError):  # no connection, and not in the cache
                raise
            return None


def check_repo(repo: str) -> None:
    """Refuse what isn't a repository's name.

    Raises:
        HubError: it isn't.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise HubError(f"{repo!r}: not a repository of the hub; write it as USER/REPO")


@contextmanager
def one_line(reference: str) -> Iterator[None]:
    """Turn what the hub's client raises into one line, without addresses.

    Raises:
        HubError: instead of it.
    """
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise HubError(f"{reference}: it is gated; request access on the repository's page") from None
    except errors.RepositoryNotFoundError:
        raise HubError(f"{reference}: no such repository, or a private one that HF_TOKEN doesn't open") from None
    except errors.RevisionNotFoundError:
        raise HubError(f"{reference}: no such revision") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, httpx2.TransportError) as error:
        cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
        raise HubError(f"{reference}: the hub can't be reached ({type(cause).__name__})") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        hint = "; put a token that may write there into HF_TOKEN" if status in (401, 403) else ""
        said = f" ({error.server_message.splitlines()[0]})" if error.server_message else ""
        raise HubError(f"{reference}: the hub returned {status}{said}{hint}") from None
    except errors.HFValidationError as error:
        raise HubError(f"{reference}: {reason(error)}") from None


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
