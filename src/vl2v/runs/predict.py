"""What a finished run is used for: predicting, and classes that are added by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vl2v.config import PromptConfig
from vl2v.data.dataset import NO_SUFFIX, PASSED_OVER, SUFFIXES, image_files
from vl2v.deploy.prediction import BATCH, Prediction, Predictor
from vl2v.errors import DataError, TeacherError
from vl2v.runs.folder import Run
from vl2v.students.stored import class_names, fetch, is_on_hub, load_beside

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vl2v.students.classifier import Classifier


def load(student: Run | Path | str) -> Classifier:
    """Return a student, ready to predict.

    Args:
        student: a finished run, its folder, or hf:USER/REPO for one on the Hugging Face hub: the newest, or that of a
            commit, tag or branch with hf:USER/REPO@REVISION.

    Raises:
        RunError: not a run folder, or not finished.
        StudentError: its files are corrupt.
        HubError: no such repository or revision, no connection, or no student of vl2v in it.

    Examples:
        >>> student = load("runs/a")
        >>> student.classes[:3]
        ['ball', 'box', 'cone']
        >>> predictions = student.predict(["images/paint/ball/00.png"])
    """
    if is_on_hub(student):
        from vl2v.students.classifier import Classifier

        return Classifier.load(fetch(str(student)))
    return Run.of(student).classifier


def classes_of(student: Run | Path | str) -> list[str]:
    """Return a student's classes, in order.

    Raises:
        VL2VError: as `load` does.
    """
    if not is_on_hub(student):
        run = Run.of(student)
        if run.finished and (names := class_names(run.folder / "student")) is not None:
            return names
    return load(student).classes


def _predictor(student: Run | Path | str) -> Predictor:
    """Return what predicts as a student does: the export beside it where there is one, else the student itself."""
    if is_on_hub(student):
        return load(student)
    run = Run.of(student)
    return (load_beside(run.folder / "student") if run.finished else None) or run.classifier


def predict_files(student: Run | Path | str, paths: Iterable[Path | str]) -> Iterator[tuple[Path, Prediction | str]]:
    """Yield each image with its prediction, or with why it was set aside; of a folder what training would take.

    Args:
        student: as for `load`.
        paths: images and folders.

    Raises:
        DataError: a path that doesn't exist, or a folder without images.
        VL2VError: as `load` does.

    Examples:
        >>> [(path.name, sorted(made.probabilities)[:2]) for path, made in predict_files("runs/a", ["images/paint"])][0]
        ('00.png', ['ball', 'box'])
    """
    predictor = _predictor(student)
    files: list[Path] = []
    for path in map(Path, paths):
        found, excluded = _images(path)
        files += found
        yield from excluded
    for start in range(0, len(files), BATCH):
        chunk = files[start : start + BATCH]
        views = [_view(predictor, file) for file in chunk]
        made = iter(predictor.predict_views([view for view in views if not isinstance(view, str)]))
        for file, view in zip(chunk, views, strict=True):
            yield file, view if isinstance(view, str) else next(made)


def add_class(run: Run | Path | str, name: str, *, store: Path | str | None = None, budget: float = 0) -> Classifier:
    """Add a class to a run's student by its name alone, with the run's prompts, and save it.

    The teacher is queried only for texts that the store doesn't have.

    Args:
        run: a finished run.
        name: the new class.
        store: the folder of the embedding store; by default the one that all runs share.
        budget: lifetime spending limit of this store for a paid teacher, in the vendor's currency.

    Raises:
        StudentError: the student has a linear head, or the name can't be a new class's.
        TeacherError: the teacher can't be opened, or isn't the one that the student learned from.

    Examples:
        >>> add_class("runs/a", "star").classes[-1]
        'star'
    """
    run = Run.of(run)
    classifier = run.classifier
    for new, vector in class_embeddings(run, [name], store=store, budget=budget).items():
        classifier.add_class(new, vector)
    classifier.save(run.folder / "student")
    return classifier


def class_embeddings(
    run: Run | Path, names: Sequence[str], *, store: Path | str | None = None, budget: float = 0
) -> dict[str, NDArray[np.float32]]:
    """Return embeddings of classes that a run's student doesn't have, with the run's prompts: name -> [d].

    Args and Raises: as for `add_class`.
    """
    from vl2v.embeddings.bill import asker, with_budget
    from vl2v.embeddings.fetch import fetch_texts
    from vl2v.embeddings.session import class_text
    from vl2v.embeddings.store import EmbeddingStore
    from vl2v.session import Session
    from vl2v.teachers import the_teacher

    run = Run.of(run)
    about = run.classifier.about
    new = [run.classifier.check_new(name) for name in names]
    prompts, fingerprint = PromptConfig(**about["prompts"]), about["teacher"]["fingerprint"]
    session = Session.of(store, budget)
    with EmbeddingStore(session.store) as embeddings:

        def query(texts: list[str]) -> None:
            teacher = the_teacher(run.config.teacher)
            spelt = getattr(teacher, "was_spelt", lambda name, fingerprint: False)
            if teacher.fingerprint != fingerprint and not spelt(about["teacher"]["spec"], fingerprint):
                raise TeacherError(
                    f"{teacher.name}: not the teacher that {run.folder} learned from (its fingerprint has changed)"
                )
            with with_budget(teacher, session, asker(run.folder)):
                fetch_texts(embeddings, teacher, texts)

        return {name: class_text(name, prompts, about["sources"], fingerprint, embeddings, query) for name in new}


_NO_IMAGES = ("an empty folder", "not an image", NO_SUFFIX, PASSED_OVER)
"""How the reasons begin of files in a folder that are passed over in silence."""


def _images(path: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Return the images that a path means, and what is set aside with the reasons."""
    if not path.is_dir():
        if not path.is_file():
            raise DataError(f"{path}: no such image or folder")
        return [path], []
    found, excluded = image_files(path)
    if not found:
        why = f"; {excluded[0].path}: {excluded[0].reason}" if excluded else ""
        raise DataError(f"{path}: no images in it ({', '.join(sorted(SUFFIXES))}){why}")
    aside = [(path / gone.path, gone.reason) for gone in excluded if not gone.reason.startswith(_NO_IMAGES)]
    return sorted(path.joinpath(*parts) for parts in found), aside


def _view(predictor: Predictor, file: Path) -> NDArray[np.uint8] | str:
    try:
        return predictor.view(file.read_bytes())
    except DataError as error:
        return str(error)
    except OSError as error:
        return f"can't be read ({error.strerror})"
