"""What a method is: a task with settings of its own, and stages, each with what trains and the loss of a batch.

Methods are found by name: those of this package, of others (entry point `vl2v.methods`), and of a person's own file.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

from pydantic import Field, ValidationError

from vl2v.config import RunConfig, Section, explained
from vl2v.errors import ConfigError, did_you_mean
from vl2v.methods.averaging import Averager

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from vl2v.students.student import Student


class Output(NamedTuple):
    """What a student makes of a batch of n images.

    Attributes:
        features: F(x) [n, p].
        projected: P(F(x)), not normalised: [n, d] for a text head; for a linear one the logits [n, C].
        embedding: [n, d], what a linear head sees that is put on top of a projector (RISE); None elsewhere.
        auxiliary: what the stage's auxiliary module returned (`Stage.auxiliary`); None without one.
    """

    features: Tensor
    projected: Tensor
    embedding: Tensor | None = None
    auxiliary: Tensor | None = None

    @property
    def z(self) -> Tensor:
        """The student's embeddings [n, d], unit rows."""
        from torch.nn import functional

        return functional.normalize(self.projected, dim=-1)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; copied to a GPU while that computes."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(frozen=True)
class Targets:
    """What a batch of n images learns from.

    Attributes:
        labels: [n] class indices, -1 for an image without a label.
        images: I(x) [n, d], unit rows, zeros for an image that wasn't queried; None without a teacher.
        texts: T [C, d], unit rows; None without a teacher.
        scale: the teacher's logit scale s.
        domains: [n] which source domain each image is from.
        anchors: texts of each class in each source domain's words [C, D, d], unit rows; for methods that want them.
        partners: [n] for images that are mixtures, the label of the second.
        share: [n] the first one's part of a mixture, 0 to 1.
        adapted: W and b, side by side, of an adapted teacher's logits [C, d + 1]; see `logits`.
        done: the share of the stage's steps that came before, 0 to 1.
    """

    labels: Tensor
    images: Tensor | None = None
    texts: Tensor | None = None
    scale: float = 1.0
    domains: Tensor | None = None
    anchors: Tensor | None = None
    partners: Tensor | None = None
    share: Tensor | None = None
    adapted: Tensor | None = None
    done: float = 0.0

    def to(self, device: torch.device) -> Targets:
        """Return the same on a device."""
        names = ("labels", "images", "texts", "domains", "anchors", "partners", "share", "adapted")
        there: dict[str, Any] = {
            name: moved(value, device) for name in names if (value := getattr(self, name)) is not None
        }
        return replace(self, **there)

    def take(self, rows: Tensor) -> Targets:
        """Return what some images of the batch learn from."""
        names = ("labels", "images", "domains", "partners", "share")
        taken = {name: value[rows] for name in names if (value := getattr(self, name)) is not None}
        return replace(self, **taken)

    @property
    def queried(self) -> Tensor:
        """[n], 1 where the teacher was queried about the image, else 0."""
        images, _ = self.embeddings()
        return (images != 0).any(-1).float()

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Return I(x) and T of a batch that the teacher was queried about."""
        assert self.images is not None and self.texts is not None
        return self.images, self.texts

    def logits(self) -> Tensor:
        """Return the teacher's logits [n, C]: s I(x) . T^T, or I(x) . W^T + b of one that was adapted."""
        images, texts = self.embeddings()
        if self.adapted is None:
            return self.scale * images @ texts.T
        return images @ self.adapted[:, :-1].T + self.adapted[:, -1]

    def weights(self, weight: float) -> tuple[Tensor, Tensor]:
        """Return how much of each image's loss is the image term's and the label term's, [n] each.

        `weight` and 1 - `weight` where an image has both; all of it where it has one; nothing where it has none.
        """
        queried = weight * self.queried
        labelled = (1 - weight) * (self.labels >= 0).float()
        both = (queried + labelled).clamp(min=1e-30)
        return queried / both, labelled / both

    def of_each_domain(self) -> Iterator[Tensor]:
        """Yield the indices in the batch of each domain's images."""
        assert self.domains is not None
        for domain in self.domains.unique():
            yield (self.domains == domain).nonzero().squeeze(1)


Terms = dict[str, "Tensor"]
"""A batch's loss by name, scalars: `loss` is what is minimised, the others are its terms, to be logged."""

Step = Callable[[Output, Targets], Terms]
Blend = Callable[["Tensor", Targets], tuple["Tensor", Targets]]
SecondPass = Callable[[Mapping[str, "Tensor"], Callable[[], None], Callable[["Tensor"], "Tensor"]], None]
"""Changes the gradients before the optimiser's step. Called with the weights, what puts the batch's gradient at the
weights as they are instead of the old one, and what makes a tensor whole that several processes have parts of."""

Share = Annotated[float, Field(ge=0, le=1)]
Temperature = Annotated[
    Annotated[float, Field(gt=0)] | Literal["auto"],
    Field(description="of the softened logits; auto: the teacher's have 3/4 of a blind guess's entropy"),
]


@dataclass(frozen=True)
class Stage:
    """One optimisation: `trains` names what changes, everything else is frozen.

    Attributes:
        name: the stage's settings are found by the first word of it.
        trains: the projector (or linear head), the backbone, or both.
        training_step: the loss of a batch, with its terms.
        blend: mixes a batch's pixels before the student sees them.
        second_pass: changes the gradients after the backward pass, for sharpness-aware steps.
        auxiliary: made from the student as it starts and d, the dimension of the teacher's space (0 without a
            teacher): a module that is trained along and not shipped. Called with the pixels and the output, it
            returns what the loss finds as `Output.auxiliary`; with `pairs`, by the output alone.
        auxiliary_rate: its weights' learning rate, in those of the student's.
        averagers: each makes an averager of the weights that the stage ends with; they are applied in order.
        id: names what the stage does, whichever method it is part of; runs can share a first stage of the same id
            and the same `decides`. It changes when the same settings lead to other weights. Empty: never shared.
        decides: the method's settings that the stage's weights depend on, for `id`.
        pairs: whether the loss compares images of a batch with one another, so that a batch can't be cut in parts.
    """

    name: str
    trains: Literal["projector", "backbone", "all"]
    training_step: Step
    blend: Blend | None = None
    second_pass: SecondPass | None = None
    auxiliary: Callable[[Student, int], nn.Module] | None = None
    auxiliary_rate: float = 1.0
    averagers: tuple[Callable[[], Averager], ...] = ()
    id: str = ""
    decides: Mapping[str, Any] = field(default_factory=dict)
    pairs: bool = False

    @property
    def key(self) -> str:
        """Where its settings are: `stages.KEY`."""
        return self.name.split()[0]


class Task:
    """A method: how a student learns. Subclasses are registered with `vl2v.methods.register`.

    A task sees embeddings and labels, never a teacher or an image file.

    Attributes:
        name: as on the command line; given by `register`.
        title: a few words for lists.
        version: raised when the same settings lead to other weights than before; part of a benchmark's job names.
        head: "text" (projector and text classifier), "linear" (a trained head on the features), or "stacked" (a
            linear head, at first the class embeddings, on a projector's embedding; one linear layer once trained).
        queries: what the teacher is queried about: images and texts, texts alone, or nothing.
        tower: whether the student is the teacher's own image tower (white box).
        class_term: whether it reads the teacher's logits (`Targets.logits`), which `teacher.adapt` changes.
        anchors: whether the teacher is also queried about every class in each source domain's words.
        refits: whether the projector is fitted anew, in closed form, to the backbone that the stages end with.
        retrains: whether it is trained once more, on the validation images as well (`train.retrain`).
        stage_defaults: the stages' settings where the user gives none, by stage; none: nothing is trained.
        Settings: the type of the method's own settings, `[loss]` of a configuration.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    version: ClassVar[int] = 1
    head: ClassVar[Literal["text", "linear", "stacked"]] = "text"
    queries: ClassVar[Literal["images", "texts", "nothing"]] = "images"
    tower: ClassVar[bool] = False
    class_term: ClassVar[bool] = False
    anchors: ClassVar[bool] = False
    refits: ClassVar[bool] = False
    retrains: ClassVar[bool] = False
    stage_defaults: ClassVar[Mapping[str, Any]] = {}

    Settings: ClassVar[type[Section]] = Section
    settings: Section

    def __init__(self, settings: Section | None = None) -> None:
        """Make the task of its own settings, by default the defaults."""
        own = self.Settings() if settings is None else settings
        assert isinstance(own, self.Settings)
        self.settings = own

    @property
    def stages(self) -> tuple[Stage, ...]:
        """In order; each starts from the weights that the one before ended with."""
        return ()

    @property
    def automatic(self) -> list[str]:
        """Names of the settings that are "auto": they are chosen on the source domains before training."""
        given = self.settings.model_dump(by_alias=True)
        return [name for name, value in given.items() if value == "auto"]

    def with_chosen(self, chosen: Mapping[str, float]) -> Task:
        """Return the task with numbers instead of "auto"."""
        given = self.settings.model_dump(by_alias=True)
        return type(self)(self.Settings.model_validate(given | dict(chosen)))


def number(value: float | Literal["auto"], name: str) -> float:
    """Return a setting that has to be a number by now.

    Raises:
        ConfigError: it is still "auto".
    """
    if value == "auto":
        raise ConfigError(f'loss.{name} = "auto": not chosen yet; give a number')
    return value


T = TypeVar("T", bound=type[Task])
LOOP = 6  # raised when what all methods share trains or measures differently: batches, augmentation, averaging
RENAMED = {"vl2v": "adip-plus"}
METHODS: dict[str, type[Task]] = {}
_FILES = ("adip", "finetuning", "distillation", "regularized")


def register(name: str) -> Callable[[T], T]:
    """Return a decorator that registers a method under a name.

    Examples:
        >>> from vl2v.methods import METHODS, Task, register
        >>> @register("my-method")
        ... class MyMethod(Task):
        ...     title = "what it does in a few words"
        >>> METHODS.pop("my-method").name
        'my-method'
    """

    def registered(task: T) -> T:
        task.name = name
        METHODS[name] = task
        return task

    return registered


@cache
def load_builtin() -> None:
    """Import the methods of this package, in the order of lists, and those that other packages announce."""
    for file in _FILES:
        importlib.import_module(f"vl2v.methods.{file}")
    for point in entry_points(group="vl2v.methods"):
        register(point.name)(_checked(point.load(), f"entry point {point.name} of vl2v.methods"))


def find_method(name: str) -> type[Task]:
    """Return a method by name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name in METHODS:
        return METHODS[name]
    if name in RENAMED:
        raise ConfigError(f"method {name!r}: is called {RENAMED[name]} now; use --method {RENAMED[name]}")
    if ":" in name:
        raise ConfigError(f"method {name!r}: its file isn't loaded; files are loaded by `vl2v distill --method` alone")
    hint = did_you_mean(name, METHODS, f"choose one of {', '.join(METHODS)}")
    raise ConfigError(f"method {name!r}: unknown; {hint}")


def load_method(name: str) -> str:
    """Return a method's name, after its file is loaded where it is "path/to/file.py:CLASS".

    A file is code: only a name that a person gave is to come here, never one that a run folder has.

    Raises:
        ConfigError: no such file or class, or not a method.
    """
    path, colon, attribute = name.rpartition(":")
    if not colon or not path.endswith(".py"):
        return name
    file = Path(path).expanduser().resolve()
    full = f"{file}:{attribute}"
    if full in METHODS:
        return full
    spec = spec_from_file_location(f"vl2v_method_{file.stem}", file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"--method {name}: no such file")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"--method {name}: the file can't be loaded: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        raise ConfigError(f"--method {name}: the file has no {attribute}")
    register(full)(_checked(getattr(module, attribute), f"--method {name}"))
    return full


def _checked(found: object, what: str) -> type[Task]:
    if not isinstance(found, type) or not issubclass(found, Task):
        raise ConfigError(f"{what}: not a method: a method is a subclass of vl2v.methods.Task")
    return found


def own_settings(task: type[Task], given: Mapping[str, Any]) -> Section:
    """Return a method's own settings, checked.

    Raises:
        ConfigError: names every setting that the method doesn't have, or a value out of range.
    """
    names = [info.alias or name for name, info in task.Settings.model_fields.items()]
    foreign = [key for key in given if key not in names]
    if foreign:
        has = f"it has {', '.join(f'loss.{name}' for name in names)}" if names else "it has none of its own"
        raise ConfigError(
            "; ".join(f"loss.{key}: method {task.name} has no such setting" for key in foreign) + f"; {has}"
        )
    try:
        return task.Settings.model_validate(dict(given))
    except ValidationError as error:
        raise ConfigError(explained(error.errors(), "loss.")) from None


def task_of(config: RunConfig) -> Task:
    """Return a run's method, as its settings make it.

    Raises:
        ConfigError: there is none of that name, or settings that it doesn't have.
    """
    task = find_method(config.method)
    return task(own_settings(task, config.loss))


def version_of(name: str) -> str:
    """Return the version of a method and of the loop; results of different ones don't stand beside each other."""
    return f"{LOOP}.{find_method(name).version}"
