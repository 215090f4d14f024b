"""The configuration of one run: pydantic models, TOML in and out, `key=value` on top."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from vl2v.errors import ConfigError
from vl2v.privacy import without_secrets
from vl2v.tree import Tree, at_home, class_names, flat

TOWER = "teacher"  # the name of a student that is the teacher's own image tower
FREE = ("data.workers", "train.strategy", "train.tensorboard")  # these change no weight

LATER: Tree = {
    "data.classes": [],
    "data.fit": "stretch",
    "data.shrink": False,
    "teacher.fit": "own",
    "teacher.adapt": "off",
    "teacher.select_from": "all",
    "student.parent": None,
    "data.unlabelled_domains": "auto",
    "train.head": "method",
    "train.steps": "set",
    "train.retrain": "method",
    "train.quick": "off",
    "train.quick_views": 4,
    "train.compile": False,
}  # settings that came later, as runs before them were trained


HomePath = Annotated[Path, AfterValidator(at_home)]


class Section(BaseModel):
    """A group of settings; an unknown key is an error, never silently ignored."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class DataConfig(Section):
    """Which images, and which domains are left out of training."""

    path: HomePath = Field(description="a folder of images, or a manifest")
    layout: str = Field(default="auto", description="auto, domains, classes or manifest")
    classes: Annotated[list[str], BeforeValidator(class_names)] = Field(
        default=[],
        description="class names if no image has a label, separated by commas, or a .txt file with one per line; the "
        "folders in data.path then mean nothing",
    )
    target: list[str] = Field(default=[], description="domains left out of training: the unseen ones")
    exclude: HomePath | None = Field(default=None, description="a list of files to leave out, one path per line")
    unlabelled: HomePath | list[HomePath] | None = Field(
        default=None, description="a folder of images without labels, or several"
    )
    unlabelled_domains: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto",
        description="how many source domains the images without labels count as in a batch; auto: one for each folder",
    )
    holdout: float = Field(default=0.2, gt=0, lt=1, description="share of a source domain for validation")
    split_seed: int = Field(default=0, description="DomainBed's trial seed")
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        default="auto",
        description="decoding processes; auto: as many as processors, without a GPU at most 4; no result depends on it",
    )
    shrink: bool = Field(
        default=False,
        description="decode large JPEG photos at a half, quarter or eighth of their size for augmented views, as long "
        "as twice the student's pixels a side are left: several times quicker",
    )
    fit: Literal["stretch", "crop", "pad"] = Field(
        default="stretch",
        description="how the student's images become squares: stretched, cropped to their middle, or padded",
    )

    @property
    def processes(self) -> int:
        """How many processes decode on this machine."""
        if self.workers != "auto":
            return self.workers
        from vl2v.system import best_device, processors

        return min(processors(), 4 if best_device() == "cpu" else 32)


class PromptConfig(Section):
    """How class names become texts for the teacher."""

    templates: list[str] = Field(
        default=["a photo of a {class}"], description="texts with {class} in them; a class is the mean of its texts"
    )
    articles: bool = Field(default=True, description="'an elephant'; the authors' code has 'a elephant'")
    overrides: dict[str, str | list[str]] = Field(default={}, description="class -> name(s) to use for it")
    domain_prompts: bool = Field(default=False, description="add 'a {domain} of a {class}' for sources")


class TeacherConfig(Section):
    """Which teacher, and what it is queried about."""

    spec: str = Field(default="tiny", description="KIND:WHAT, for example open_clip:ViT-B-16/openai")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="of local teachers; auto: bf16 where the machine is fast at it"
    )
    views: int = Field(default=0, ge=0, description="K fixed augmented views of each image; 0: clean images only")
    view_seed: int = Field(default=0, description="draws other views; runs of all seeds share them")
    fit: Literal["own", "stretch", "crop", "pad"] = Field(
        default="own",
        description="how clean images become squares before the teacher gets them; own: by its own preprocessing",
    )
    select: Annotated[int, Field(ge=1)] | Literal["known"] | None = Field(
        default=None,
        description="how many training images to query, or 'known': those with cached embeddings; default: all",
    )
    strategy: Literal["random", "balanced", "kcenter", "uncertainty", "nearest"] = Field(
        default="kcenter", description="which images are selected; nearest: to the class embeddings"
    )
    select_from: Literal["all", "unlabelled"] = Field(
        default="all",
        description="what is selected from; unlabelled: the images without labels, and all training images with labels "
        "are queried",
    )
    online: bool = Field(
        default=False,
        description="query every augmented batch anew (white boxes); stages on cached features learn from the "
        "embeddings of clean images",
    )
    statistics: Literal["own", "imagenet"] = Field(
        default="own", description="online only: pixel statistics the teacher is fed with"
    )
    logit_scale: float | None = Field(default=None, gt=0, description="overrides what the teacher reports")
    adapt: Literal["auto", "off"] = Field(
        default="off",
        description="auto: its logits are adapted, in closed form, to the labelled source images, as far as that helps "
        "on source domains left out",
    )


class StudentConfig(Section):
    """The network that is trained and shipped."""

    name: str = Field(
        default="tf_efficientnet_lite0", description="a timm model, or 'teacher': a white box's own image tower"
    )
    weights: str = Field(default="auto", description="auto, hub, package, none, or a .safetensors/.pth file")
    image_size: int | None = Field(default=None, ge=16, description="pixels; default: the model's own")
    statistics: Literal["own", "imagenet"] = Field(
        default="own", description="pixels' mean and deviation: of the pretrained weights, or ImageNet's"
    )
    batch_norm: Literal["eval", "train"] = Field(default="eval", description="mode while training")
    parent: HomePath | None = Field(
        default=None, description="a finished run of the same method whose student is trained further (`vl2v adapt`)"
    )


class StageConfig(Section):
    """Optimisation of one stage."""

    steps: int = Field(gt=0, description="of the optimiser")
    lr: float = Field(gt=0, description="the largest learning rate")
    batch_per_domain: int = Field(default=32, gt=0, description="images of each source domain in a batch")
    optimizer: Literal["adam", "adamw"] = Field(default="adamw", description="of PyTorch")
    weight_decay: float = Field(default=0.0, ge=0, description="of all trained weights")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="of the learning rate after the warm-up: cosine to zero, or constant"
    )
    warmup: int = Field(default=0, ge=0, description="steps of linear warm-up")
    accumulate: int = Field(default=1, gt=0, description="micro-batches a step")
    clip: float | None = Field(default=None, gt=0, description="largest gradient norm")
    eval_every: int | None = Field(default=None, gt=0, description="steps; default: a tenth of the stage")


class TrainConfig(Section):
    """The loop that all methods share."""

    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="of the student; auto: bf16 where the device supports it"
    )
    accelerator: str = Field(default="auto", description="of Lightning Fabric: auto, cpu, cuda, mps")
    compile: bool = Field(
        default=False,
        description="torch.compile the backbone: quicker steps after some minutes of compiling; needs a compiler "
        "(Triton on a GPU, else one for C++)",
    )
    strategy: Literal["ddp", "fsdp"] = Field(
        default="ddp", description="of a run on several devices; fsdp: each holds a part of the weights"
    )
    head: Literal["method", "trained", "refit", "auto", "only", "start"] = Field(
        default="method",
        description="the last layer: as the method has it, as trained, fitted in closed form, auto: fitted where "
        "source validation is better so, only: fitted, and nothing else is trained, or start: a linear one is fitted "
        "before training, which spares the steps that a random one needs",
    )
    quick: str = Field(
        default="off",
        description="train the backbone's upper blocks only, on cached activations of the lower ones: off, auto, or "
        "the first block that is trained, as timm names it",
    )
    quick_views: int = Field(
        default=4, ge=1, description="augmented views of each image whose activations are cached (train.quick)"
    )
    steps: Literal["set", "auto"] = Field(
        default="set",
        description="auto: the learning rate stays constant, and a stage that trains the backbone ends where five "
        "validations in a row are no better; stages.*.steps is the most",
    )
    retrain: Literal["method", "on", "off"] = Field(
        default="method",
        description="on: train once more on all source images, those that validated as well, for as many steps as "
        "validation chose (as ERM++ does)",
    )
    swad: bool = Field(default=False, description="average weights over the validation-loss valley")
    select: Literal["best", "last"] = Field(
        default="best", description="weights of the best source validation, or of the last step"
    )
    tensorboard: bool = Field(default=False, description="also write the metrics for TensorBoard")


class PublishedConfig(Section):
    """Oddities of the authors' public code, off by default; `--preset paper` turns them on together."""

    align_through_backbone: bool = Field(
        default=False, description="Align on augmented images through the backbone, not on cached features"
    )
    swad_overlapping: bool | list[str] = Field(
        default=False, description="SWAD averages overlapping prefixes: in all stages, or in those named"
    )
    swad_restarts: list[int] = Field(default=[], description="steps after which overlapping prefixes start anew")
    swad_discarded: bool = Field(
        default=False, description="the next stage starts from the raw best weights, not the averaged"
    )
    target_in_split: bool = Field(
        default=False, description="the unseen domain is scored on the 80% that DomainBed would train on"
    )


class RunConfig(Section):
    """Everything that decides what a run's weights will be."""

    method: str = Field(
        default="adip-plus",
        description="how the student learns; `vl2v methods` lists all, path/to/file.py:CLASS is your own",
    )
    seed: int = Field(default=0, description="decides every draw but the split")
    data: DataConfig
    prompts: PromptConfig = PromptConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    loss: dict[str, Any] = Field(default={}, description="the method's own settings, typed by it")
    stages: dict[str, StageConfig] = {}
    train: TrainConfig = TrainConfig()
    published: PublishedConfig = PublishedConfig()

    def to_toml(self) -> str:
        """Return the whole configuration as TOML; unset keys (None) are left out."""
        import tomli_w

        return tomli_w.dumps(self.model_dump(mode="json", by_alias=True, exclude_none=True))


def json_schema(own: type[Section]) -> Tree:
    """Return the JSON Schema of a configuration file, for editors.

    Args:
        own: the type of the method's own settings.
    """
    model = create_model("Settings", __base__=RunConfig, loss=(own, own()))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema(by_alias=True)}


def deciding(tree: Mapping[str, Any]) -> Tree:
    """Return the settings that decide a run's weights, with dotted names; an empty table decides nothing."""
    given = flat(tree).items()
    return {name: value for name, value in given if name not in FREE and value != LATER.get(name, {})}


def validate(tree: Mapping[str, Any]) -> RunConfig:
    """Return the checked configuration.

    Raises:
        ConfigError: names every wrong key, its value and what was expected; a password or key in the teacher's address.
    """
    teacher = tree.get("teacher")
    spec = teacher.get("spec") if isinstance(teacher, Mapping) else None
    if isinstance(spec, str) and (clean := without_secrets(spec)) != spec:
        raise ConfigError(
            f"teacher.spec = {clean!r}: a password or key in an address would end up in files; leave it out, and put "
            "the key into the environment (docs/paying.md)"
        )
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explained(error.errors(), "", _stages_of(tree))) from None


def check_file(tree: Tree, file: Path) -> Tree:
    """Return the settings of a file, whether or not they are all that a run needs.

    Raises:
        ConfigError: one of them is unknown or out of range; the message names the file.
    """
    try:
        RunConfig.model_validate(tree)
    except ValidationError as error:
        if wrong := [item for item in error.errors() if item["type"] != "missing"]:
            raise ConfigError(f"{file}: {explained(wrong, '', _stages_of(tree))}") from None
    return tree


def _stages_of(tree: Mapping[str, Any]) -> list[str]:
    """Return the names of a tree's stages, for what is said about it."""
    stages = tree.get("stages")
    return [*stages] if isinstance(stages, Mapping) and stages else ["STAGE"]


def explained(items: Iterable[Mapping[str, Any]], prefix: str = "", stages: Sequence[str] = ()) -> str:
    """Return a line that names every wrong key of pydantic's errors with its value and what was expected."""
    lines: dict[tuple[str, str], list[str]] = {}
    for item in items:
        about, wanted, hint = _explain(item, prefix, stages)
        lines.setdefault((about, hint), []).append(wanted)
    return "; ".join(about + ", or ".join(dict.fromkeys(wanted)) + hint for (about, hint), wanted in lines.items())


_EXPECTED = {
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be a text",
    "list_type": "must be a list",
}
"""Types of pydantic's errors whose own words are a programmer's."""


def _explain(item: Mapping[str, Any], prefix: str, stages: Sequence[str]) -> tuple[str, str, str]:
    """Return what an error is about, what was expected, and what may have been meant."""
    key = prefix + ".".join(
        str(part) for part in item["loc"] if not re.search(r"^constrained-|\[", str(part))
    )  # no types
    if item["type"] == "extra_forbidden":
        return f"{key}: unknown setting", "", _suggestion(key, item["input"], stages)
    if item["type"] == "missing":
        return f"{key}: missing", "", "; give the images with --data" if key in ("data", "data.path") else ""
    elsewhere = _elsewhere(key, item["input"], stages)
    return f"{key} = {item['input']!r}: ", expected(item), f"; did you mean {elsewhere}?" if elsewhere else ""


def expected(item: Mapping[str, Any]) -> str:
    """Return what pydantic expected of a value, in a person's words."""
    words = str(item["msg"]).removeprefix("Value error, ")
    return _EXPECTED.get(item["type"], (words[:1].lower() + words[1:]).replace("input should be", "must be"))


def _suggestion(key: str, value: object, stages: Sequence[str]) -> str:
    import difflib

    if key in stages:
        return f", did you mean stages.{key}?"
    names = setting_names()
    names += [f"stages.{stage}.{name}" for stage in stages for name in StageConfig.model_fields]
    elsewhere = _elsewhere(key, value, stages)
    close = [elsewhere] if elsewhere else difflib.get_close_matches(key, names, n=1)
    return f", did you mean {close[0]}?" if close else "; `vl2v config` lists them all"


def _elsewhere(key: str, value: object, stages: Sequence[str]) -> str:
    """Return the setting of another section that has the same name and takes a value; "" if none does."""
    name = key.rpartition(".")[2]
    sections: dict[str, type[BaseModel]] = {f"stages.{stage}": StageConfig for stage in reversed(stages)}
    for section, info in RunConfig.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            sections[section] = info.annotation
    for section, model in sections.items():
        if f"{section}.{name}" != key and name in model.model_fields and _takes(model, name, value):
            return f"{section}.{name}"
    return ""


def _takes(model: type[BaseModel], name: str, value: object) -> bool:
    try:
        model.model_validate({name: value})
    except ValidationError as error:
        return all(item["loc"][:1] != (name,) for item in error.errors())
    return True


def setting_names(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Return every setting as a dotted key, for example `teacher.views`."""
    names = []
    for field, info in model.model_fields.items():
        key = prefix + (info.alias or field)
        section = info.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            names += setting_names(section, key + ".")
        else:
            names.append(key)
    return names
