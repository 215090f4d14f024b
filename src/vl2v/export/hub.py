"""A student on the Hugging Face hub: weights, description, exports and a model card; nothing of its maker's."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from vl2v.deploy.runtime import load_current
from vl2v.errors import HubError, StudentError, VL2VError
from vl2v.export.elsewhere import NAMES, AsTimm, as_timm, for_transformers_js
from vl2v.export.model_card import model_card, public_about
from vl2v.export.parity import source_domains
from vl2v.export.student import open_images
from vl2v.privacy import public_name
from vl2v.runs.folder import Run
from vl2v.students.classifier import Classifier
from vl2v.students.hub import PREFIX, check_repo, one_line


def parcel(run: Run, repo: str, *, licence: str = "other", store: Path | None = None) -> dict[str, bytes]:
    """Return what a push sends: name in the repository -> content.

    Args:
        run: a finished run; its exports (`student*.onnx`) are sent along, also as transformers.js loads them. What timm
            loads is sent if the run's images are at hand to check it on.
        repo: USER/REPO.
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
    card = model_card(run, repo, licence=licence, exports=names, timm=timm, transformers_js=bool(web))
    with tempfile.TemporaryDirectory() as folder:
        _public(run.classifier).save(Path(folder))
        sent = [*sorted(Path(folder).iterdir()), *exports]
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
        run: a finished run.
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
