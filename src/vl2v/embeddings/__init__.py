"""Teacher embeddings: the store, the plan of what is left to query, the fetch loop."""

from vl2v.embeddings.fetch import Refusal, fetch, fetch_image, fetch_texts
from vl2v.embeddings.ledger import Entry, Ledger, LedgerBudget
from vl2v.embeddings.merge import Merged, merge
from vl2v.embeddings.plan import Plan, plan
from vl2v.embeddings.store import EmbeddingStore, Question, TeacherRecord, image_key, text_key
from vl2v.embeddings.targets import targets, text_targets
from vl2v.embeddings.views import Views, clean_view
from vl2v.teachers.paid.teacher import money

__all__ = [
    "EmbeddingStore",
    "Entry",
    "Ledger",
    "LedgerBudget",
    "Merged",
    "Plan",
    "Question",
    "Refusal",
    "TeacherRecord",
    "Views",
    "clean_view",
    "fetch",
    "fetch_image",
    "fetch_texts",
    "image_key",
    "merge",
    "money",
    "plan",
    "targets",
    "text_key",
    "text_targets",
]
