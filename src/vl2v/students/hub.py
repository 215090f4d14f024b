"""Students on the Hugging Face hub: what one is called, how it is fetched, and what went wrong in a line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vl2v.errors import HubError, reason

PREFIX = "hf:"
FILES = ("student.json", "student.safetensors")


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
