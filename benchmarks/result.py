"""What a replayed disaster says: tables, pictures, and the bare figures that a test can look at."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

SEED = 20240315  #: of every random choice: the day of the first disaster


class Table(NamedTuple):
    """A table; a row's first cell says what was tried."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[object]]


class Bars(NamedTuple):
    """Groups of bars: ``series[name][i]`` stands at ``labels[i]``."""

    title: str
    labels: Sequence[str]
    series: Mapping[str, Sequence[float]]
    unit: str
    log: bool = False


class Lines(NamedTuple):
    """Lines over one axis."""

    title: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    x: str
    unit: str
    log: bool = False


@dataclasses.dataclass(frozen=True)
class Result:
    """One disaster, broken and cured.

    Attributes:
        name: of the module and of its picture.
        notes: how it was done, and where Python differs; a sentence or two each.
        figures: everything counted, by name, for who wants to check it.
    """

    name: str
    title: str
    tables: Sequence[Table]
    panels: Sequence[Bars | Lines]
    notes: Sequence[str]
    figures: dict[str, float]

    def markdown(self) -> str:
        """The tables and notes, without a heading."""
        parts = [f"**{table.title}**\n\n{markdown_rows(table)}" for table in self.tables]
        return "\n\n".join([*parts, *self.notes]) + "\n"


def markdown_rows(table: Table) -> str:
    """The table in Markdown, without its title."""
    lines = ["| " + " | ".join(table.headers) + " |"]
    lines.append("|---|" + "---:|" * (len(table.headers) - 1))
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in table.rows]
    return "\n".join(lines)


def fill_marks(page: str, name: str, text: str) -> str:
    """The page with ``text`` between its two marks, ``<!-- measured: NAME -->`` and ``<!-- end -->``.

    Raises:
        ValueError: the page lacks the marks.
    """
    marks = re.compile(rf"(<!-- measured: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not marks.search(page):
        raise ValueError(f"the page has no marks for {name!r}")
    return marks.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", page)


def _cell(value: object) -> str:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` per cent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))]
