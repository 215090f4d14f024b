"""Results by domain: who was measured on what, as rows that go into JSON and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vl2v.evaluation.metrics import Metrics
from vl2v.table import Table

Role = Literal["seen", "unseen"]
ROLES: tuple[Role, ...] = ("unseen", "seen")


@dataclass(frozen=True)
class Row:
    """One line of an evaluation: a model on a domain.

    `role` is "seen" for a source domain, where only its validation images count, and "unseen" otherwise.
    """

    who: str
    domain: str
    role: Role
    metrics: Metrics


@dataclass(frozen=True, repr=False)
class Evaluation:
    """All rows, what there is to be said about them (leakage, images set aside), and the classes that competed.

    Examples:
        >>> metrics = Metrics(images=40, accuracy=0.85, balanced_accuracy=0.84, ece=0.03, known=0.9)
        >>> evaluation = Evaluation((Row("student", "sketch", "unseen", metrics),))
        >>> evaluation
        Evaluation(student: 85.0% unseen)
        >>> evaluation.mean(role="unseen")
        0.85
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        means = {who: {role: self.mean(who, role) for role in ROLES} for who in self.models()}
        words = (
            f"{who}: " + ", ".join(f"{100 * mean:.1f}% {role}" for role, mean in found.items() if mean is not None)
            for who, found in means.items()
        )
        return f"Evaluation({'; '.join(words) or 'no rows'})"

    def _repr_html_(self) -> str:
        return self.table().render("html")

    def of(self, who: str = "student", role: Role | None = None) -> list[Row]:
        """Return one model's rows, all or those of a role."""
        return [row for row in self.rows if row.who == who and role in (None, row.role)]

    def mean(self, who: str = "student", role: Role | None = None) -> float | None:
        """Return the mean accuracy over domains; None where there is no row."""
        rows = self.of(who, role)
        return sum(row.metrics.accuracy for row in rows) / len(rows) if rows else None

    def worst(self, who: str = "student") -> Row | None:
        """Return the row of the domain with the lowest accuracy."""
        return min(self.of(who), key=lambda row: row.metrics.accuracy, default=None)

    def models(self) -> list[str]:
        """Return who was measured, in order."""
        return list(dict.fromkeys(row.who for row in self.rows))

    def table(self) -> Table:
        """Return every model's figures by domain; unseen domains are marked with a star."""
        cells, sections = [], []
        for who in self.models():
            for row in self.of(who):
                m = row.metrics
                shares = (f"{100 * share:.1f}" for share in (m.accuracy, m.balanced_accuracy, m.ece, m.known))
                mark = " *" if row.role == "unseen" else ""
                cells.append([who, row.domain + mark, str(m.images), *shares])
            sections.append(len(cells) - 1)
        heads = ("", "domain", "images", "accuracy", "balanced", "ECE", "known")
        worst = self.worst()
        notes = [] if worst is None else [f"worst domain: {worst.domain}, {100 * worst.metrics.accuracy:.1f}%"]
        title = "accuracy %, * unseen in training"
        return Table(heads, cells, (), [*notes, *self.notes], title, left=heads[:2], sections=sections)

    def to_json(self) -> dict[str, Any]:
        """Return plain types only."""
        worst = self.worst()
        return {
            "rows": [{"who": r.who, "domain": r.domain, "role": r.role, **asdict(r.metrics)} for r in self.rows],
            "worst_domain": worst.domain if worst else None,
            "notes": list(self.notes),
            "classes": list(self.classes),
        }

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Evaluation:
        """Return what `to_json` wrote."""
        former = {"pictures": "images"}  # as earlier versions called it
        rows: Sequence[dict[str, Any]] = [{former.get(k, k): v for k, v in row.items()} for row in tree["rows"]]
        heads = ("who", "domain", "role")
        made = [
            Row(**{k: row[k] for k in heads}, metrics=Metrics(**{k: v for k, v in row.items() if k not in heads}))
            for row in rows
        ]
        return cls(tuple(made), tuple(tree["notes"]), tuple(tree["classes"]))
