"""Methods: how a student learns. One short file each; a method sees embeddings, never a teacher."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vl2v.config import LossConfig, RunConfig
from vl2v.errors import ConfigError
from vl2v.methods import adip, clipood, coral, erm, fd, kd, miro, mixup, rise, sam, sd, simkd, soup, vl2v, wise_ft
from vl2v.methods.base import Ascent, Loss, Method, Output, Stage, Targets


def zero_shot(loss: LossConfig) -> Method:
    """Return the teacher as it is: pictures against class texts. Nothing is trained."""
    return Method("zero-shot", "text", ())


LOOP = 2  # raised when what all methods share trains or measures differently: batches, augmentation, averaging


class Entry(NamedTuple):
    """A method as it is listed.

    Attributes:
        title: a few words.
        make: makes it.
        stages: their settings.
        defaults: other settings that are its own.
        version: raised when the same settings lead to other weights than before.
    """

    title: str
    make: Callable[[LossConfig], Method]
    stages: Mapping[str, Any]
    defaults: Mapping[str, Any] = {}
    version: int = 1

    @property
    def plain(self) -> Method:
        """The method as its loss's defaults make it."""
        return self.make(LossConfig())


METHODS = {
    "zero-shot": Entry("the teacher itself, without a student", zero_shot, {}),
    "adip": Entry("VL2V-ADiP: align, distill, predict by texts", adip.adip, adip.STAGES),
    "vl2v": Entry(
        "ADiP that fits its teacher, and answers between classes as it does", vl2v.vl2v, vl2v.STAGES, vl2v.DEFAULTS, 4
    ),
    "sd": Entry("VL2V-SD: self-distillation of a white box", sd.sd, sd.STAGES),
    "erm": Entry("plain full fine-tuning", erm.erm, erm.ERM_STAGES),
    "lp": Entry("linear probe", erm.lp, erm.LP_STAGES),
    "lp-ft": Entry("linear probe, then full fine-tuning", erm.lp_ft, erm.LP_FT_STAGES),
    "erm-text": Entry("full fine-tuning under the class texts (zero-shot head)", erm.erm_text, erm.ERM_STAGES),
    "kd": Entry("distillation of logits", kd.kd, kd.STAGES),
    "fd": Entry("distillation of features", fd.fd, fd.STAGES),
    "simkd": Entry("distillation of features under the teacher's classifier", simkd.simkd, simkd.STAGES),
    "rise": Entry("distillation of logits, drawn to the class texts", rise.rise, rise.STAGES, rise.DEFAULTS, 2),
    "miro": Entry("fine-tuning that stays near the pretrained features", miro.miro, miro.STAGES, version=2),
    "mixup": Entry("fine-tuning on mixtures of domains", mixup.mixup, mixup.STAGES, version=3),
    "coral": Entry("fine-tuning with domains' features made alike", coral.coral, coral.STAGES),
    "sam": Entry("sharpness-aware fine-tuning", sam.sam, sam.STAGES, version=2),
    "sagm": Entry("sharpness-aware gradient matching", sam.sagm, sam.STAGES, version=2),
    "soup": Entry("mean weights of three fine-tunings", soup.soup, soup.STAGES),
    "wise-ft": Entry("weights between the zero-shot and the fine-tuned", wise_ft.wise_ft, wise_ft.STAGES),
    "clipood": Entry("fine-tuning with text margins and averaged weights", clipood.clipood, clipood.STAGES),
}


def find_method(name: str) -> Entry:
    """Return a method by name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name in METHODS:
        return METHODS[name]
    close = difflib.get_close_matches(name, METHODS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(METHODS)}"
    raise ConfigError(f"method {name!r}: unknown; {hint}")


def method_of(config: RunConfig) -> Method:
    """Return a run's method, as its settings make it.

    Raises:
        ConfigError: there is none of that name.
    """
    return find_method(config.method).make(config.loss)


def version_of(name: str) -> str:
    """Return the version of a method and of the loop; results of different ones don't stand beside each other."""
    return f"{LOOP}.{find_method(name).version}"


__all__ = [
    "METHODS",
    "Ascent",
    "Entry",
    "Loss",
    "Method",
    "Output",
    "Stage",
    "Targets",
    "find_method",
    "method_of",
    "version_of",
]
