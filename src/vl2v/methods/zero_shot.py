"""The teacher as it is: images against class embeddings. Nothing is trained."""

from __future__ import annotations

from vl2v.methods.base import Task
from vl2v.methods.registry import register


@register("zero-shot")
class ZeroShot(Task):
    """A row of the benchmark."""

    title = "the teacher itself, without a student"
