"""What has been asked of a teacher, and answered: keys, the store."""

from vl2v.embeddings.store import EmbeddingStore, Question, TeacherRecord, image_key, text_key

__all__ = ["EmbeddingStore", "Question", "TeacherRecord", "image_key", "text_key"]
