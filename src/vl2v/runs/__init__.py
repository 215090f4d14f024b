"""Runs: from a configuration to a run folder, and from a run folder back to a student."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vl2v.lazy import lazily

if TYPE_CHECKING:
    from vl2v.embeddings.bill import Total, free_queries, read_bill, totals
    from vl2v.runs.adapting import adapt
    from vl2v.runs.check import check_teacher
    from vl2v.runs.folder import Run
    from vl2v.runs.plan import RunPlan, plan_run
    from vl2v.runs.predict import add_class, class_embeddings, classes_of, load, predict_files
    from vl2v.runs.query import QueryReport, embed
    from vl2v.runs.query_curve import Advice, advise
    from vl2v.runs.settings import resolve
    from vl2v.runs.train import distill
    from vl2v.session import default_store

_HOMES = {
    "Advice": "vl2v.runs.query_curve",
    "QueryReport": "vl2v.runs.query",
    "Run": "vl2v.runs.folder",
    "RunPlan": "vl2v.runs.plan",
    "Total": "vl2v.embeddings.bill",
    "adapt": "vl2v.runs.adapting",
    "add_class": "vl2v.runs.predict",
    "check_teacher": "vl2v.runs.check",
    "class_embeddings": "vl2v.runs.predict",
    "classes_of": "vl2v.runs.predict",
    "advise": "vl2v.runs.query_curve",
    "default_store": "vl2v.session",
    "distill": "vl2v.runs.train",
    "embed": "vl2v.runs.query",
    "free_queries": "vl2v.embeddings.bill",
    "load": "vl2v.runs.predict",
    "plan_run": "vl2v.runs.plan",
    "predict_files": "vl2v.runs.predict",
    "read_bill": "vl2v.embeddings.bill",
    "resolve": "vl2v.runs.settings",
    "totals": "vl2v.embeddings.bill",
}

__all__ = [
    "Advice",
    "QueryReport",
    "Run",
    "RunPlan",
    "Total",
    "adapt",
    "add_class",
    "advise",
    "check_teacher",
    "class_embeddings",
    "classes_of",
    "default_store",
    "distill",
    "embed",
    "free_queries",
    "load",
    "plan_run",
    "predict_files",
    "read_bill",
    "resolve",
    "totals",
]

__getattr__ = lazily(__name__, _HOMES)
