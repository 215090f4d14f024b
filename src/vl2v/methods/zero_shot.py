"""The teacher itself, as it is or adapted in closed form. No student is trained."""

from __future__ import annotations

from vl2v.methods.base import Task
from vl2v.methods.registry import register


@register("zero-shot")
class ZeroShot(Task):
    """A row of the benchmark."""

    title = "the teacher itself, without a student"


@register("adapted-teacher")
class AdaptedTeacher(Task):
    """A row of the benchmark: `vl2v.evaluation.adapted`, on the source domains' training images."""

    title = "the same, adapted to the labelled source images"
    class_term = True
