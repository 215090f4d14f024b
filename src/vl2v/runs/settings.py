"""From the settings that were given to one complete configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypedDict

from vl2v.config import TOWER, PublishedConfig, RunConfig, check_file, validate
from vl2v.errors import ConfigError
from vl2v.methods import Task, find_method, load_method, own_settings
from vl2v.methods.base import RENAMED
from vl2v.privacy import public_name
from vl2v.tree import Tree, assignments, flat, merge, nested, read_toml

PRESETS = {"default": "adip-plus", "paper": "adip"}  # the default method of each; docs/findings.md says why
REMOVED = {"unasked": "text", "near_duplicates": None}  # settings of `teacher` that earlier versions had: defaults

_OF_IMAGE_QUERIES = (
    "data.classes",
    "data.unlabelled",
    *(
        f"teacher.{name}"
        for name in ("views", "view_seed", "fit", "select", "strategy", "select_from", "online", "statistics", "adapt")
    ),
)
_OF_SMALL_STUDENTS = ("student.name", "student.weights", "student.image_size")
_OPTIONS = {
    "data": "data.path",
    "target": "data.target",
    "classes": "data.classes",
    "unlabelled": "data.unlabelled",
    "teacher": "teacher.spec",
    "views": "teacher.views",
    "select": "teacher.select",
    "strategy": "teacher.strategy",
    "select_from": "teacher.select_from",
    "online_teacher": "teacher.online",
    "student": "student.name",
    "image_size": "student.image_size",
    "quick": "train.quick",
}
_OF_LABELS = ("data.target", "data.layout", "teacher.adapt", "teacher.select_from")
_NEEDS = {
    "teacher.view_seed": "teacher.views",
    "teacher.strategy": "teacher.select",
    "teacher.statistics": "teacher.online",
    "train.quick_views": "train.quick",
}


class Options(TypedDict, total=False):
    """Settings as keywords: the command line's options, and the settings tree's sections.

    Attributes:
        seed: decides every draw but the split.
        classes: names of images without any label, as a list or with commas between, or a .txt file.
        unlabelled: folders of images without labels to learn from as well.
        image_size: the student's pixels a side.
        views: fixed augmented views of each image to query, too.
        select: how many training images to query, or "known" for those with cached embeddings.
        strategy: "random", "balanced", "kcenter", "uncertainty" or "nearest".
        select_from: "unlabelled": `select` counts images without labels; all training images with labels are queried.
        online_teacher: query every augmented batch anew (white boxes only).
        quick: "auto": train the upper blocks only, on cached activations of the lower ones; or the first block trained.
        prompts: a section of `vl2v.config.RunConfig`, as a mapping; so are the following.
        loss: the method's own settings.
        stages: by stage.
        train: the loop's.
        published: oddities of the authors' code.
    """

    seed: int
    classes: str | Sequence[str]
    unlabelled: Path | str | Sequence[Path | str]
    image_size: int
    views: int
    select: int | Literal["known"]
    strategy: Literal["random", "balanced", "kcenter", "uncertainty", "nearest"]
    select_from: Literal["all", "unlabelled"]
    online_teacher: bool
    quick: str
    prompts: Mapping[str, Any]
    loss: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Any]]
    train: Mapping[str, Any]
    published: Mapping[str, Any]


def settings_of(settings: Mapping[str, Any] | Path | None = None, pairs: Sequence[str] = (), **options: Any) -> Tree:
    """Return a tree of settings under options under assignments; None stands for an option that wasn't given.

    Args:
        settings: a tree of `RunConfig`'s keys, or a TOML file of one.
        pairs: assignments such as "stages.distill.lr=1e-3".
        options: by the command line's names (`data`, `teacher`, `image_size`, ...); a section of the tree as a mapping,
            `data`, `teacher` and `student` included; or a dotted name such as `**{"stages.distill.lr": 1e-3}`.

    Examples:
        >>> settings_of({"seed": 1}, data="PACS", target="sketch", train={"swad": True})
        {'seed': 1, 'data': {'path': 'PACS', 'target': ['sketch']}, 'train': {'swad': True}}
    """
    given = {
        name if isinstance(value, Mapping) else _OPTIONS.get(name, name): value
        for name, value in options.items()
        if value is not None
    }
    if isinstance(target := given.get("data.target"), str):
        given["data.target"] = [target]
    tree = check_file(from_earlier(read_toml(settings)), settings) if isinstance(settings, Path) else settings or {}
    return merge(tree, nested(given), assignments(pairs))


def resolve(settings: Mapping[str, Any], preset: str = "default") -> RunConfig:
    """Return the configuration: the method's defaults, then the preset, then the settings.

    Raises:
        ConfigError: an unknown method, preset, stage or key, a value out of range, or a setting that can't apply.
    """
    settings = _with_path(settings)
    task = find_method(load_method(str(settings.get("method", PRESETS.get(preset, "adip")))))
    stages = settings.get("stages", {})
    if not isinstance(stages, Mapping):
        raise ConfigError(
            f"stages = {stages!r}: must be a table of stages, "
            f"for example stages.{next(iter(task.stage_defaults))}.lr=1e-3"
        )
    unknown = stages.keys() - task.stage_defaults.keys()
    if unknown:
        raise ConfigError(f"stages.{min(unknown)}: {task.name} has only {', '.join(task.stage_defaults)}")
    student = settings.get("student", {})
    name = str(student.get("name", "")) if isinstance(student, Mapping) else ""
    published = applicable(recipe(preset, task.stage_defaults, name), task)
    own: Tree = {"method": task.name}
    if preset == "paper" and paper_student(name) != name:
        own["student"] = {"name": paper_student(name)}
    config = validate(merge({"stages": task.stage_defaults}, published, settings, own))
    reasons = foreign(settings, task)
    if "method" not in settings:
        reasons.pop("teacher.adapt", None)  # the teacher alone can be adapted, too
    if reasons:
        raise ConfigError("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
    own_loss = own_settings(task, config.loss)
    _check_quick(config, task(own_loss))
    return config.model_copy(update={"loss": own_loss.model_dump(mode="json", by_alias=True)})


def _check_quick(config: RunConfig, task: Task) -> None:
    """Refuse `train.quick` where it can't apply."""
    if config.train.quick == "off":
        return
    why = ""
    if config.train.head == "only":
        why = "no stage trains the backbone"
    elif any(stage.blend for stage in task.stages):
        why = f"method {task.name} mixes the images of each batch"
    elif config.teacher.online and task.queries == "images":
        why = "teacher.online needs the pixels of every batch"
    elif config.teacher.views and config.train.quick_views != _defaults()["train.quick_views"]:
        why = "the views are those of teacher.views; leave train.quick_views out"
    if why:
        raise ConfigError(f"train.quick = {config.train.quick!r}: {why}")


def _with_path(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return settings where, of images without any label, the first folder of unlabelled ones is the data."""
    data = settings.get("data")
    if not isinstance(data, Mapping) or not data.get("classes") or data.get("path") or not data.get("unlabelled"):
        return settings
    given = data["unlabelled"]
    first, *others = given if isinstance(given, list) else [given]
    return {**settings, "data": {**data, "path": first, "unlabelled": others or None}}


def foreign(settings: Mapping[str, Any], task: type[Task]) -> dict[str, str]:
    """Return the settings that can't apply to a method, as dotted names, with the reason; a default can."""
    given = flat({key: value for key, value in settings.items() if key not in ("stages", "method")})
    own = {info.alias or name for name, info in task.Settings.model_fields.items()}
    default, reasons = _defaults(), {}
    for name, value in given.items():
        section, _, key = name.partition(".")
        if value is None or (name in default and value == default[name]):
            continue
        if section == "loss" and key not in own:
            has = f"it has {', '.join(sorted(own))}" if own else "it has no settings of its own"
            reasons[name] = f"method {task.name} has no such setting; {has}"
        elif name in _OF_IMAGE_QUERIES and task.queries != "images":
            reasons[name] = f"method {task.name} doesn't query the teacher about images"
        elif name in _OF_SMALL_STUDENTS and task.tower and value != TOWER:
            reasons[name] = f"method {task.name} trains the teacher's own image tower"
        elif name in _OF_LABELS and given.get("data.classes"):
            reasons[name] = "no image has a label (data.classes)"
        elif name in ("train.quick", "train.quick_views") and not _trains_backbone(task):
            reasons[name] = f"no stage of method {task.name} trains the backbone"
        elif name == "train.head" and value == "start" and (task.head != "linear" or given.get("data.classes")):
            reasons[name] = f"method {task.name} has no linear head to fit to the images' labels"
        elif name == "train.head" and value == "only" and task.queries == "texts":
            reasons[name] = f"method {task.name} has no embeddings of images to fit a last layer to"
        elif name == "teacher.adapt" and not task.class_term:
            reasons[name] = f"the loss of method {task.name} has no term of the teacher's logits, which it changes"
        elif name == "train.swad" and value and task.retrains and given.get("train.retrain", "method") == "method":
            reasons[name] = f"method {task.name} is trained once more on all source images (train.retrain)"
        elif name == "teacher.select_from" and not isinstance(given.get("teacher.select"), int):
            reasons[name] = "only with teacher.select, a number"
        elif name in _NEEDS and not given.get(_NEEDS[name]):
            reasons[name] = f"only with {_NEEDS[name]}"
    return reasons


def _trains_backbone(task: type[Task]) -> bool:
    return any(stage.trains != "projector" for stage in task(task.Settings()).stages)


@cache
def _defaults() -> Tree:
    """Return every setting's default, with dotted names."""
    return flat(RunConfig(data={"path": "."}).model_dump(by_alias=True))  # type: ignore[arg-type]


def applicable(settings: Mapping[str, Any], task: type[Task]) -> Tree:
    """Return settings that are given for several methods with only those, and those stages, that this one has."""
    others = foreign(settings, task)
    left = {name: value for name, value in flat(settings).items() if name not in others}
    stages = settings.get("stages", {})
    return {**nested(left), "stages": {name: stages[name] for name in task.stage_defaults if name in stages}}


def from_earlier(tree: Tree) -> Tree:
    """Return the settings that an earlier version wrote into a run folder in today's form; today's as they are.

    Before methods had types of their own, every run listed the settings of all methods.
    """
    loss = tree.get("loss", {})
    if "kd_probabilities" not in loss:
        return tree
    method = str(RENAMED.get(tree["method"], tree["method"]))
    own = {info.alias or name for name, info in find_method(method).Settings.model_fields.items()}
    teacher = {key: value for key, value in tree.get("teacher", {}).items() if key not in REMOVED}
    left = {key: value for key, value in loss.items() if key in own}
    return {**tree, "method": method, "teacher": teacher, "loss": left}


def recipe(preset: str, stages: Iterable[str], student: str = "") -> Tree:
    """Return what a preset sets for a method of these stages and a student.

    Raises:
        ConfigError: an unknown preset.
    """
    if preset not in PRESETS:
        raise ConfigError(f"preset {preset!r}: choose one of {', '.join(PRESETS)}")
    return paper_preset(stages, student) if preset == "paper" else {}


PAPER_STUDENTS = {
    "resnet50": "resnet50.tv_in1k",
    "vit_base_patch16_224": "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "vit_small_patch16_224": "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "deit_small_distilled_patch16_224": "deit_small_distilled_patch16_224.fb_in1k",
}
"""The weights that the authors' code starts from; timm's names alone stand for other ones today."""


def paper_student(student: str) -> str:
    """Return a student's name with the tag of the weights that the authors' code starts from, if it has one."""
    return PAPER_STUDENTS.get(student, student)


def paper_preset(stages: Iterable[str], student: str = "") -> Tree:
    """Return the published recipe (CVPR 2024, supplementary; authors' code) for a method's stages.

    Their script for the Distill of ViT-B/16 alone passes the flag that keeps SWAD's segments apart.
    """
    stages = list(stages)
    apart = paper_student(student) == PAPER_STUDENTS["vit_base_patch16_224"]
    stage = {
        "steps": 5001,
        "lr": 5e-5,
        "batch_per_domain": 32,
        "optimizer": "adam",
        "weight_decay": 0.0,
        "schedule": "constant",
        "eval_every": 200,
    }
    return {
        "prompts": {"articles": False},
        "teacher": {"online": True, "statistics": "imagenet", "precision": "fp32"},
        "student": {"image_size": 224, "statistics": "imagenet"},
        "stages": {name: dict(stage) for name in stages},
        "train": {"swad": True, "precision": "fp32"},
        "published": {
            **dict.fromkeys(PublishedConfig.model_fields, True),
            "swad_overlapping": [name for name in stages if name != "distill"] if apart else True,
            "swad_restarts": list(range(3000, 15001, 1000)),
        },
    }


def without_paths(tree: Any) -> Any:
    """Return settings, or one of them, to be shown to others: of every path the last part only."""
    if isinstance(tree, Mapping):
        return {key: without_paths(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_paths(value) for value in tree]
    if isinstance(tree, Path):
        return tree.name
    return public_name(tree) if isinstance(tree, str) else tree


def refits(config: RunConfig, task: Task | type[Task]) -> bool:
    """Return whether a run's last layer is fitted in closed form at its end."""
    return config.train.head in ("refit", "auto", "only") or (task.refits and config.train.head == "method")


def retrains(config: RunConfig, task: Task | type[Task]) -> bool:
    """Return whether a run is trained once more, on the validation images as well."""
    return config.train.retrain == "on" or (task.retrains and config.train.retrain == "method")


def has_tower(config: RunConfig, task: Task | type[Task]) -> bool:
    """Return whether the student is the teacher's own image tower."""
    return task.tower or config.student.name == TOWER
