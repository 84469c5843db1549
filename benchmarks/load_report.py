"""What a load test says: figures, tables, ratios, and how they compare with the stored ones."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.result import Table, markdown_rows

RELAY = "relay"  #: what everything is compared with

Figures = Mapping[str, float | None]  #: kind -> what one run of one server came to; None: there is no such figure
#: part -> load -> server -> a run's figures, for each round
Results = Mapping[str, Mapping[str, Mapping[str, Sequence[Figures]]]]


class Kind(NamedTuple):
    """One kind of figure.

    Attributes:
        title: at the head of its row or column.
        bound: how many times the stored ratio may be reached before the check fails; below 1 for what should be high; 0
            for what is only told.
        stored: whether its ratio is stored at all.
    """

    title: str
    bound: float = 0.0
    stored: bool = False


KINDS = {
    "delivered": Kind("delivered, %"),
    "p50": Kind("P50, ms"),
    "p99": Kind("P99, ms", stored=True),
    "cpu": Kind("CPU per delivery, µs", bound=1.25, stored=True),
    "deliveries": Kind("deliveries/s", bound=1 / 1.25, stored=True),
    "busy": Kind("CPU, % of a core"),
    "memory": Kind("memory, MB", bound=1.25, stored=True),
    "threads": Kind("threads"),
    "pings": Kind("pings"),
    "generator": Kind("generator, % of its core"),
    "lateness": Kind("P99 of the generator's own lateness, ms"),
    "generator_cpu": Kind("generator's CPU per delivery, µs"),
    "server_waited": Kind("time in which others had the server's core, %"),
    "generator_waited": Kind("time in which others had the generator's core, %"),
}

#: A part's kinds, in the order of its rows.
ROWS = {
    "cost": ["delivered", "p50", "p99", "cpu", "memory", "generator"],
    "capacity": ["deliveries", "cpu", "memory", "generator"],
    "headline": ["delivered", "p50", "p99", "cpu", "memory", "generator"],
    "stalled": ["delivered", "p50", "p99", "cpu", "memory"],
    "idle": ["busy", "memory", "pings"],
    "threads": ["threads"],
    "workers": ["delivered", "cpu", "p99", "memory"],
}

TITLES = {
    "cost": "The cost of a delivery",
    "capacity": "Capacity",
    "headline": "Many connections",
    "stalled": "One member of every 20th room never reads",
    "idle": "Nobody does anything",
    "threads": "Threads",
    "workers": "Two workers",
}


def figures_of(outcome: Mapping[str, Any]) -> dict[str, float | None]:
    """A run's figures, from what the generator told."""

    def share(part: float, whole: float, scale: float) -> float | None:
        return scale * part / whole if whole else None

    def ms(seconds: float | None) -> float | None:
        return None if seconds is None else 1e3 * seconds

    return {
        "delivered": share(outcome["expected"] - outcome["missing"], outcome["expected"], 100.0),
        "p50": ms(outcome["latency_p50"]),
        "p99": ms(outcome["latency_p99"]),
        "cpu": share(outcome["server_cpu"], outcome["window_arrived"], 1e6),
        "deliveries": share(outcome["window_arrived"], outcome["window"], 1.0),
        "busy": share(outcome["server_cpu"], outcome["window"], 100.0),
        "memory": outcome["memory"] / 1e6,
        "threads": outcome["threads"],
        "pings": outcome["pings"],
        "generator": share(outcome["generator_cpu"], outcome["window"], 100.0),
        "lateness": ms(outcome["lateness_p99"]),
        "generator_cpu": share(outcome["generator_cpu"], outcome["window_arrived"], 1e6),
        "server_waited": share(outcome["server_waited"], outcome["window"], 100.0),
        "generator_waited": share(outcome["generator_waited"], outcome["window"], 100.0),
    }


def median(rounds: Sequence[Figures], kind: str) -> float | None:
    """Of the rounds that have such a figure."""
    values = [value for one in rounds if (value := one.get(kind)) is not None]
    return statistics.median(values) if values else None


def ratio(rounds: Sequence[Figures], others: Sequence[Figures], kind: str) -> float | None:
    """The median of the rounds' ratios: what disturbs the machine for a while disturbs both in a round."""
    pairs = [(one.get(kind), other.get(kind)) for one, other in zip(rounds, others, strict=False)]
    ratios = [value / other for value, other in pairs if value is not None and other]
    return statistics.median(ratios) if ratios else None


# Tables.


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def tables(results: Results) -> str:
    """All parts as Markdown."""
    parts = []
    for part, loads in results.items():
        if part == "workers":
            parts.append(_workers(loads))
        elif part == "threads":
            parts.append(_threads(loads))
        else:
            parts += [_beside_relay(part, load, servers) for load, servers in loads.items()]
    return "\n\n".join(parts)


def _beside_relay(part: str, load: str, servers: Mapping[str, Sequence[Figures]]) -> str:
    headers = [load, *servers, "ratio"]
    (_, mine), (_, relays) = servers.items()
    rows = []
    for kind in ROWS[part]:
        cells = [_cell(median(rounds, kind)) for rounds in (mine, relays)]
        rows.append([KINDS[kind].title, *cells, _cell(ratio(mine, relays, kind))])
    return f"**{TITLES[part]}**\n\n{markdown_rows(Table(TITLES[part], headers, rows))}"


def _threads(loads: Mapping[str, Mapping[str, Sequence[Figures]]]) -> str:
    servers = list(next(iter(loads.values())))
    rows = []
    for load, of in loads.items():
        mine, relays = of.values()
        cells = [_cell(median(rounds, "threads")) for rounds in (mine, relays)]
        rows.append([load.partition(" ")[0], *cells, _cell(ratio(mine, relays, "threads"))])
    return f"**{TITLES['threads']}**\n\n{markdown_rows(Table('', ['connections', *servers, 'ratio'], rows))}"


def _workers(loads: Mapping[str, Mapping[str, Sequence[Figures]]]) -> str:
    """Every server at every load: beside the relay there, and beside the first server at the first load."""
    kinds = ROWS["workers"]
    first = next(iter(next(iter(loads.values())).values()))
    rows = []
    for load, servers in loads.items():
        for server, rounds in servers.items():
            cells = [_cell(median(rounds, kind)) for kind in kinds]
            ratios = [_cell(ratio(rounds, others, "cpu")) for others in (servers[RELAY], first)]
            rows.append([f"{server}: {load}", *cells, *ratios])
    headers = ["server and load", *(KINDS[kind].title for kind in kinds), "CPU: ratio to relay", "to the first row"]
    return f"**{TITLES['workers']}**\n\n{markdown_rows(Table('', headers, rows))}"


# The machine.


def machine() -> dict[str, Any]:
    """What it was measured on."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "processor": _processor(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() == "model name":
                    return value.strip()
    except OSError:
        pass
    return platform.machine()


# What is stored: {"machine": {...}, "ratios": {"PART, LOAD, SERVER": {kind: ratio to the relay}}}


def ratios(results: Results) -> dict[str, dict[str, float]]:
    """Of all servers to the relay."""
    found: dict[str, dict[str, float]] = {}
    for part, loads in results.items():
        for load, servers in loads.items():
            for server, rounds in servers.items():
                if server != RELAY:
                    kinds = [kind for kind in ROWS[part] if KINDS[kind].stored]
                    of = {kind: ratio(rounds, servers[RELAY], kind) for kind in kinds}
                    found[f"{part}, {load}, {server}"] = {k: round(v, 3) for k, v in of.items() if v is not None}
    return {name: of for name, of in found.items() if of}


class Change(NamedTuple):
    """A ratio beside the stored one."""

    what: str
    kind: str
    stored: float
    now: float

    @property
    def limit(self) -> float:
        """The furthest that passes; 0: everything does."""
        return self.stored * KINDS[self.kind].bound

    @property
    def worse(self) -> bool:
        """Whether the check fails over it."""
        bound = KINDS[self.kind].bound
        return self.now > self.limit if bound > 1 else self.now < self.limit


def compare(now: Mapping[str, Mapping[str, float]], stored: Mapping[str, Mapping[str, float]]) -> list[Change]:
    """What was measured and is stored."""
    return [
        Change(what, kind, stored[what][kind], value)
        for what, of in now.items()
        for kind, value in of.items()
        if kind in stored.get(what, {})
    ]


def comparison(changes: Sequence[Change]) -> str:
    """For people."""
    rows = []
    for change in changes:
        verdict = "worse" if change.worse else "-" if not change.limit else "as stored"
        numbers = [f"{change.stored:.2f}", f"{change.now:.2f}", f"{change.limit:.2f}" if change.limit else "-"]
        rows.append([change.what, KINDS[change.kind].title, *numbers, verdict])
    headers = ["what", "ratio to the relay of", "stored", "now", "may reach", ""]
    return markdown_rows(Table("", headers, rows))
