"""A student on the Hugging Face hub: weights, description, exports and a model card; nothing of its maker's."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from vl2v.deploy.runtime import load_current
from vl2v.errors import HubError
from vl2v.export.model_card import model_card, public_about
from vl2v.privacy import public_name
from vl2v.runs.folder import Run
from vl2v.students.classifier import Classifier
from vl2v.students.hub import PREFIX, check_repo, one_line


def parcel(run: Run, repo: str, *, licence: str = "other") -> dict[str, bytes]:
    """Return what a push sends: name in the repository -> content.

    Args:
        run: a finished run; its exports (`student*.onnx`) are sent along.
        repo: USER/REPO.
        licence: the hub's identifier of the one it is shared under.

    Raises:
        RunError: the run isn't finished.
        StudentError: an export that isn't of this student any more.
        HubError: not a repository's name.
    """
    check_repo(repo)
    exports = sorted(path for path in run.folder.iterdir() if _is_export(path.name))
    for export in exports:
        load_current(export, run.classifier.classes)
    card = model_card(run, repo, licence=licence, exports=tuple(export.name for export in exports))
    with tempfile.TemporaryDirectory() as folder:
        _public(run.classifier).save(Path(folder))
        sent = [*sorted(Path(folder).iterdir()), *exports]
        return {"README.md": card.encode(), **{file.name: file.read_bytes() for file in sent}}


def push(run: Run, repo: str, *, private: bool = False, licence: str = "other") -> str:
    """Send a run's student to the hub, in one commit, and return the reference of just that: hf:USER/REPO@COMMIT.

    The token is HF_TOKEN or that of `hf auth login`. Exports of an earlier push that are not sent again are deleted.

    Args:
        run: a finished run.
        repo: USER/REPO, made if it isn't there.
        private: for those alone who may see the repository; one that is there and public isn't written to.
        licence: the hub's identifier of the one it is shared under.

    Raises:
        HubError: the hub refuses it, doesn't know the licence, or can't be reached; or the repository is public.
        VL2VError: as `parcel` does.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    files = parcel(run, repo, licence=licence)
    check_licence(licence)
    hub = HfApi(library_name="vl2v")
    with one_line(PREFIX + repo):
        hub.create_repo(repo, private=private or None, exist_ok=True)
        if private and not hub.model_info(repo).private:  # it was there before
            raise HubError(f"{PREFIX}{repo}: is public; make it private in its settings, or choose another name")
        stale = [name for name in hub.list_repo_files(repo) if _is_export(name) and name not in files]
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


def _is_export(name: str) -> bool:
    return Path(name).match("student*.onnx")
