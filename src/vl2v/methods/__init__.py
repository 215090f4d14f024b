"""Methods: how a student learns. A method sees embeddings, never a teacher."""

from vl2v.methods.averaging import Averager
from vl2v.methods.base import (
    LOOP,
    METHODS,
    Output,
    Stage,
    Targets,
    Task,
    Terms,
    find_method,
    load_builtin,
    load_method,
    moved,
    own_settings,
    register,
    task_of,
    version_of,
)

load_builtin()

__all__ = [
    "LOOP",
    "METHODS",
    "Averager",
    "Output",
    "Stage",
    "Targets",
    "Task",
    "Terms",
    "find_method",
    "load_method",
    "moved",
    "own_settings",
    "register",
    "task_of",
    "version_of",
]
