"""What the benchmark of several instances says: figures, tables, and what was asked for."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.result import Table, markdown_rows

Figures = Mapping[str, float | None]  #: kind -> what one run came to; None: there is no such figure

#: The figures' titles.
KINDS = {
    "delivered": "delivered, %",
    "operations": "operations/s",
    "deliveries": "deliveries/s",
    "here_p50": "here: P50, ms",
    "here_p99": "here: P99, ms",
    "there_p50": "elsewhere: P50, ms",
    "there_p99": "elsewhere: P99, ms",
    "answer_p50": "answer: P50, ms",
    "answer_p99": "answer: P99, ms",
    "cpu": "CPU per operation, µs",
    "first_cpu": "CPU per operation, owner's, µs",
    "second_cpu": "the other instance's, µs",
    "store": "store's, µs",
    "delivery_cpu": "CPU per delivery, µs",
    "delivery_store": "store's, µs",
    "memory": "memory, MB",
}


def figures_of(outcome: Mapping[str, Any]) -> dict[str, float | None]:
    """A run's figures, from what the load generator told (``spread.Outcome``)."""
    arrived = outcome["window_arrived"]
    operations = arrived / outcome["members"]
    cpus = outcome["server_cpus"]

    def share(part: float, whole: float, scale: float) -> float | None:
        return scale * part / whole if whole else None

    found: dict[str, float | None] = {
        "delivered": share(outcome["arrived"], outcome["expected"], 100.0),
        "operations": share(operations, outcome["window"], 1.0),
        "deliveries": share(arrived, outcome["window"], 1.0),
        "cpu": share(sum(cpus), operations, 1e6),
        "first_cpu": share(cpus[0], operations, 1e6),
        "second_cpu": share(cpus[1], operations, 1e6) if len(cpus) > 1 else None,
        "store": share(outcome["store_cpu"], operations, 1e6),
        "delivery_cpu": share(sum(cpus), arrived, 1e6),
        "delivery_store": share(outcome["store_cpu"], arrived, 1e6),
        "memory": outcome["memory"] / 1e6,
        "generator": share(outcome["generator_cpu"], outcome["window"], 100.0),
        "generator_waited": share(outcome["generator_waited"], outcome["window"], 100.0),
        "others": share(outcome["others"], outcome["window"], 100.0),
        "lateness": None if outcome["lateness_p99"] is None else 1e3 * outcome["lateness_p99"],
    }
    for where in ("here", "there", "answer"):
        p50, p99 = outcome[where] or (None, None)
        found[f"{where}_p50"] = None if p50 is None else 1e3 * p50
        found[f"{where}_p99"] = None if p99 is None else 1e3 * p99
    return found


def figures_of_callers(told: Mapping[str, float]) -> dict[str, float | None]:
    """A run's figures, from what the callers of the library told (``callers.measure``)."""
    operations = told["operations"]
    return {
        "operations": operations / told["seconds"],
        "answer_p50": 1e3 * told["p50"],
        "answer_p99": 1e3 * told["p99"],
        "cpu": 1e6 * told["cpu"] / operations if operations else None,
        "store": 1e6 * told["store_cpu"] / operations if operations else None,
    }


def median(rounds: Sequence[Figures], kind: str) -> float | None:
    """Of the rounds that have such a figure."""
    values = [value for one in rounds if (value := one.get(kind)) is not None]
    return statistics.median(values) if values else None


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[Figures]]) -> str:
    """A part as Markdown: medians. A row that could not be measured has no figures."""
    cells = [[name, *(_cell(median(rounds, kind)) for kind in columns)] for name, rounds in rows.items()]
    return markdown_rows(Table("", [title, *(KINDS[kind] for kind in columns)], cells))


# What was asked for.


class Promise(NamedTuple):
    """A figure that must be reached.

    Attributes:
        what: in words. part, row, kind: where it is.
        most, least: one of them.
        below: or rows of the same part, of which it must have less than each that was measured.
    """

    what: str
    part: str
    row: str
    kind: str
    most: float | None = None
    least: float | None = None
    below: Sequence[str] = ()


class Kept(NamedTuple):
    """How it went. ``kept``: None where it was not measured."""

    what: str
    bound: str
    seen: float | None
    kept: bool | None


def check(promises: Sequence[Promise], results: Mapping[str, Mapping[str, Sequence[Figures]]]) -> list[Kept]:
    """Each promise beside the medians."""
    found = []
    for promise in promises:
        rows = results.get(promise.part, {})
        seen = median(rows.get(promise.row, ()), promise.kind)
        kept: bool | None = None
        if promise.most is not None:
            bound = f"at most {_cell(promise.most)}"
            kept = None if seen is None else seen <= promise.most
        elif promise.least is not None:
            bound = f"at least {_cell(promise.least)}"
            kept = None if seen is None else seen >= promise.least
        else:
            others = [
                value for name in promise.below if (value := median(rows.get(name, ()), promise.kind)) is not None
            ]
            bound = f"less than {_cell(min(others))}" if others else "less than the peers"
            kept = None if seen is None or not others else seen < min(others)
        found.append(Kept(promise.what, bound, seen, kept))
    return found


def promises_table(found: Sequence[Kept]) -> str:
    """As Markdown."""
    words = {True: "yes", False: "no", None: "not measured"}
    rows = [[one.what, one.bound, _cell(one.seen), words[one.kept]] for one in found]
    return markdown_rows(Table("", ["what was asked for", "", "seen", "kept"], rows))
