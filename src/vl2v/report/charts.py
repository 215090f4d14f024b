"""Charts as geometry: where lines, points and bars go; `templates/charts.html` draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

WIDTH, HEIGHT = 420, 260  # of a chart, in the units of its view box
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 10, 40  # of the frame


@dataclass(frozen=True)
class Axis:
    """One axis: its words, its ends and its ticks (value, text); `log` for sizes."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def share(self, value: float) -> float:
        """Return where a value is, from 0 (low) to 1 (high)."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return (value - low) / (high - low)


def axis(label: str, values: Iterable[float], *, low: float | None = None, high: float | None = None) -> Axis:
    """Return an axis that holds the values, with about five ticks at round numbers.

    Args:
        label: what is on it, with its unit.
        values: to be shown; what isn't finite is passed over.
        low: where it begins; by default below the smallest value.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    start = min(finite) if low is None else low
    end = max(finite) if high is None else high
    if end - start < 1e-9:
        start, end = start - (0.5 if low is None else 0), end + 0.5
    marks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(start, end)
    start, end = (marks[0] if low is None else start), (marks[-1] if high is None else end)
    ticks = tuple((float(mark), number(mark)) for mark in marks if start - 1e-9 <= mark <= end + 1e-9)
    return Axis(label, float(start), float(end), ticks)


def log_axis(label: str, values: Sequence[float]) -> Axis:
    """Return a logarithmic axis that holds the values (above zero), with ticks at 1, 2 and 5 times powers of ten."""
    low, high = min(values) / 1.3, max(values) * 1.3
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    return Axis(label, low, high, tuple((mark, number(mark)) for mark in marks if low <= mark <= high), log=True)


def number(value: float) -> str:
    """Return a number for people, without digits that say nothing."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


@dataclass(frozen=True)
class Series:
    """What is drawn in one colour.

    Attributes:
        name: in the legend; "" for none.
        colour: index into the palette, or a colour's name in the style sheet.
        points: x, y and the words that appear when one points at it.
        ranges: the lower and upper end of each point's interval; empty for none.
        kind: "line", "dots", or "bars" from zero as wide as `width`.
        width: of bars, in units of x.
    """

    name: str
    colour: int | str
    points: list[tuple[float, float, str]]
    ranges: list[tuple[float, float]] = field(default_factory=list)
    kind: str = "line"
    dashed: bool = False
    width: float = 0.0


@dataclass(frozen=True)
class Chart:
    """A chart of some series; `title` is also what a screen reader says."""

    title: str
    x: Axis
    y: Axis
    series: list[Series]

    def at_x(self, value: float) -> float:
        """Return where a value of x is drawn."""
        return round(LEFT + self.x.share(value) * (WIDTH - LEFT - RIGHT), 1)

    def at_y(self, value: float) -> float:
        """Return where a value of y is drawn."""
        return round(
            HEIGHT - BOTTOM - self.y.share(min(max(value, self.y.low), self.y.high)) * (HEIGHT - TOP - BOTTOM), 1
        )

    def path(self, series: Series) -> str:
        """Return the line through a series' points."""
        return " ".join(f"{self.at_x(x)},{self.at_y(y)}" for x, y, _ in series.points)


@dataclass(frozen=True)
class Span:
    """A value with its interval, drawn in a table's cell: shares of its width, from 0 to 1."""

    middle: float
    low: float
    high: float
    colour: int | str


@dataclass(frozen=True)
class Heat:
    """A table of numbers, shaded: `cells` are rows of (text, shade from 0 to 1, words); None where there is nothing."""

    rows: list[str]
    columns: list[str]
    cells: list[list[tuple[str, float, str] | None]]


def heat(
    rows: Sequence[str],
    columns: Sequence[str],
    shares: NDArray[np.floating],
    *,
    low: float | None = None,
    high: float | None = None,
) -> Heat:
    """Return accuracies [rows, columns] in percent, shaded from low to high, by default their own; NaN is empty."""
    finite = shares[np.isfinite(shares)]
    low = finite.min(initial=1.0) if low is None else low
    high = finite.max(initial=0.0) if high is None else high
    cells = [
        [
            None
            if math.isnan(share)
            else (f"{100 * share:.0f}", float((share - low) / max(high - low, 1e-9)), f"{row}, {column}: {share:.1%}")
            for column, share in zip(columns, line, strict=True)
        ]
        for row, line in zip(rows, shares.tolist(), strict=True)
    ]
    return Heat(list(rows), list(columns), cells)


@dataclass(frozen=True)
class Calibration:
    """How often predictions of some probability are right.

    Attributes:
        counts: [bins] predictions with a probability in each.
        confidence: [bins] their mean probability; 0 where there is none.
        accuracy: [bins] the share of them that is right.
        ece: the expected calibration error (Guo et al., ICML 2017), as `vl2v.evaluation.metrics.measure` has it.
    """

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    ece: float


def calibration(probability: NDArray[np.floating], right: NDArray[np.bool_], bins: int = 15) -> Calibration:
    """Return the reliability of predictions with a probability [n], `right` [n], in equal bins; n > 0."""
    bin_ = np.floor(probability * bins).astype(np.int64)  # a probability of exactly 1 is by itself, as in torchmetrics
    gap = np.bincount(bin_, weights=probability - right)
    bin_ = np.minimum(bin_, bins - 1)
    counts = np.bincount(bin_, minlength=bins)
    many = np.maximum(counts, 1)
    confidence = np.bincount(bin_, weights=probability, minlength=bins) / many
    accuracy = np.bincount(bin_, weights=right, minlength=bins) / many
    return Calibration(counts, confidence, accuracy, float(abs(gap).sum() / len(right)))


def coverage(probability: NDArray[np.floating], right: NDArray[np.bool_]) -> list[tuple[float, float, float]]:
    """Return (threshold, coverage, accuracy) as the threshold rises: at most 80 points, n > 0."""
    order = np.argsort(-probability, kind="stable")
    hits, count = np.cumsum(right[order]), len(order)
    steps = np.unique(np.linspace(max(1, count // 20), count, min(80, count)).round().astype(int))
    return [(float(probability[order[k - 1]]), k / count, float(hits[k - 1] / k)) for k in steps]
