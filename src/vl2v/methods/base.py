"""What a method is: stages, each with what trains and the loss of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from vl2v.students import Student


class Output(NamedTuple):
    """What a student makes of a batch of n pictures.

    Attributes:
        features: F(x) [n, p].
        projected: P(F(x)), not normalised: [n, d] for a text head; for a linear one the logits [n, C].
        embedding: [n, d], what a linear head sees that is put on top of a projector (RISE); None elsewhere.
    """

    features: Tensor
    projected: Tensor
    embedding: Tensor | None = None

    @property
    def z(self) -> Tensor:
        """The student's embeddings [n, d], unit rows."""
        from torch.nn import functional

        return functional.normalize(self.projected, dim=-1)


@dataclass(frozen=True)
class Targets:
    """What a batch of n pictures learns from.

    Attributes:
        labels: [n] class indices, -1 for a picture without a label.
        images: I(x) [n, d], unit rows, zeros for a picture that wasn't asked about; None where no teacher is asked.
        texts: T [C, d], unit rows; None where no teacher is asked.
        scale: the teacher's logit scale s.
        domains: [n] which source domain each picture is from.
        anchors: texts of each class in each source domain's words [C, D, d], unit rows; for methods that ask for them.
        partners: [n] for pictures that are mixtures, the label of the second.
        share: [n] the first one's part of a mixture, 0 to 1.
    """

    labels: Tensor
    images: Tensor | None = None
    texts: Tensor | None = None
    scale: float = 1.0
    domains: Tensor | None = None
    anchors: Tensor | None = None
    partners: Tensor | None = None
    share: Tensor | None = None

    def to(self, device: torch.device) -> Targets:
        """Return the same on a device."""
        names = ("labels", "images", "texts", "domains", "anchors", "partners", "share")
        there = {name: value.to(device) for name in names if (value := getattr(self, name)) is not None}
        return replace(self, **there)

    @property
    def asked(self) -> Tensor:
        """[n], 1 where the teacher was asked about the picture, else 0."""
        images, _ = self.answers()
        return (images != 0).any(-1).float()

    def answers(self) -> tuple[Tensor, Tensor]:
        """Return I(x) and T of a batch that was asked about."""
        assert self.images is not None and self.texts is not None
        return self.images, self.texts

    def weights(self, weight: float) -> tuple[Tensor, Tensor]:
        """Return how much of each picture's loss is the image term's and the label term's, [n] each.

        `weight` and 1 - `weight` where a picture has both; all of it where it has one; nothing where it has none.
        """
        asked = weight * self.asked
        labelled = (1 - weight) * (self.labels >= 0).float()
        both = (asked + labelled).clamp(min=1e-30)
        return asked / both, labelled / both

    def of_each_domain(self) -> Iterator[Tensor]:
        """Yield the places in the batch of each domain's pictures."""
        assert self.domains is not None
        for domain in self.domains.unique():
            yield (self.domains == domain).nonzero().squeeze(1)


Loss = Callable[[Output, Targets], "Tensor"]
Blend = Callable[["Tensor", Targets], tuple["Tensor", Targets]]


@dataclass(frozen=True)
class Ascent:
    """Sharpness-aware steps: the gradient is taken again after a step up the first one.

    The step up is (rho / |g| - alpha) g.

    Attributes:
        rho: how far, in the weights' space.
        alpha: see above; SAGM's gradient matching.
        first: weight of the gradient before the step up; the one after has 1 - `first`.
    """

    rho: float
    alpha: float = 0.0
    first: float = 0.0


@dataclass(frozen=True)
class Stage:
    """One optimisation: `trains` names what changes, everything else is frozen.

    Attributes:
        name: the stage's settings are found by the first word of it.
        trains: the projector (or linear head), the backbone, or both.
        loss: of a batch.
        blend: mixes a batch's pixels before the student sees them.
        ascent: for sharpness-aware steps.
        regularizer: made from the student as it starts; a module that is trained along and not shipped. Called with
            the pixels and the output, it returns what is added to the loss.
        regularizer_rate: its weights' learning rate, in those of the student's.
        interpolate: the weights that the stage ends with are start + t * (trained - start); of several t the one with
            the best source validation, the first of equals.
        average: "beta": those that it ends with are the beta moving average over its steps.
        member: (k, of M): M such stages start from the same weights, the last ends with the mean of all.
        settings: the loss settings that the loss depends on, so that runs with other ones besides can share the stage,
            and others aren't chosen ("auto"); None: it may depend on any.
        pairs: whether the loss compares pictures of a batch with one another, so that a batch can't be cut in parts.
    """

    name: str
    trains: Literal["projector", "backbone", "all"]
    loss: Loss
    blend: Blend | None = None
    ascent: Ascent | None = None
    regularizer: Callable[[Student], nn.Module] | None = None
    regularizer_rate: float = 1.0
    interpolate: tuple[float, ...] = (1.0,)
    average: Literal["beta"] | None = None
    member: tuple[int, int] = (1, 1)
    settings: tuple[str, ...] | None = None
    pairs: bool = False

    @property
    def key(self) -> str:
        """Where its settings are: `stages.KEY`."""
        return self.name.split()[0]


@dataclass(frozen=True)
class Method:
    """A way for a student to learn.

    Attributes:
        name: as on the command line.
        head: "text" (projector and text classifier), "linear" (a trained head on the features), or "stacked" (a
            linear head, at first the class texts, on a projector's embedding; one linear layer once it is trained).
        stages: in order; each starts from the weights that the one before ended with.
        asks: what the teacher is asked about: pictures and texts, texts alone, or nothing.
        tower: whether the student is the teacher's own image tower (white box).
        anchors: whether the teacher is also asked about every class in each source domain's words.
        aligns_again: whether the projector is fitted anew, in closed form, to the backbone that the stages end with.
    """

    name: str
    head: Literal["text", "linear", "stacked"]
    stages: tuple[Stage, ...]
    asks: Literal["pictures", "texts", "nothing"] = "pictures"
    tower: bool = False
    anchors: bool = False
    aligns_again: bool = False

    def depends_on(self, setting: str) -> bool:
        """Whether the loss of a stage may depend on a loss setting."""
        return any(stage.settings is None or setting in stage.settings for stage in self.stages)
