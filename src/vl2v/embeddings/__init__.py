"""What has been asked of a teacher and answered: the store, the plan of what is left to ask, the fetch loop."""

from vl2v.embeddings.fetch import fetch
from vl2v.embeddings.plan import Plan, plan, targets
from vl2v.embeddings.store import EmbeddingStore, Question, TeacherRecord, image_key, text_key
from vl2v.embeddings.views import Views

__all__ = [
    "EmbeddingStore",
    "Plan",
    "Question",
    "TeacherRecord",
    "Views",
    "fetch",
    "image_key",
    "plan",
    "targets",
    "text_key",
]
