"""The server under load, beside the least that Python can do: ``python -m benchmarks.load --help`` (Linux).

``python -m roomkit serve`` and ``python -m benchmarks.relay`` get the same load, one after the other in every round,
each as a process on one core, while the load generator (``generator.py``) has another. What a server costs belongs to
the machine and to what else it does; the ratio to the relay, which suffers the same, says more.

The whole takes about a quarter of an hour; run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import load_report as report
from benchmarks.generator import SEATS, Plan
from benchmarks.processes import Cores, LoadFailed, Server, allow_connections, run_module, share_out
from benchmarks.result import fill_marks

BASELINE = Path(__file__).with_name("load_baseline.json")
STALL_EVERY = 20  #: rooms, of which one has a member who does not read
PING_INTERVAL = 50.0  #: seconds; the server's default
_SLOW = 60.0  # seconds that coming in may take, besides a hundredth for each connection
_BUSY = 90.0  # per cent of its core: more, and the generator may be the limit
_LATE = 50.0  # milliseconds: later, and the latencies are its own, or those of others on its core
_CROWDED = 5.0  # per cent of the time in which others have a core that should be free for the load

# What it is told about limits: the load is one client with thousands of players.
_SERVE = (
    *("-m", "roomkit", "serve", "--port", "0", "--log-level", "warning", "--drain-timeout", "1"),
    *("--max-connections", "0", "--max-connections-per-address", "0", "--message-rate", "0"),
)
#: What is started, by the name in the tables.
SERVERS: dict[str, Sequence[str]] = {
    "roomkit": _SERVE,
    "roomkit, 2 workers": (*_SERVE, "--workers", "2"),
    report.RELAY: ("-m", "benchmarks.relay"),
}
_BOTH = ("roomkit", report.RELAY)


class Load(NamedTuple):
    """One load.

    Attributes:
        rate: operations a second in all rooms together.
        seconds: of the measured window; 0: as many as were asked for.
        spread: the server gets all cores, of which it shares one with the generator.
    """

    connections: int
    rate: int
    seconds: float = 0.0
    stall_every: int = 0
    spread: bool = False

    @property
    def title(self) -> str:
        """As it stands in the tables."""
        stalled = ", some of which never read" if self.stall_every else ""
        return f"{self.connections:,} connections{stalled}, {self.rate:,} operations/s"


class Part(NamedTuple):
    """Loads that are told together. ``once``: there is one round, whatever was asked for."""

    loads: Sequence[Load]
    servers: Sequence[str] = _BOTH
    once: bool = False


PARTS: dict[str, Part] = {
    "cost": Part([Load(1_000, 8_000)]),
    "capacity": Part([Load(1_000, 30_000)]),
    "headline": Part([Load(8_000, 12_000), Load(8_000, 4_000)]),
    "stalled": Part([Load(1_000, 8_000, stall_every=STALL_EVERY)]),
    "idle": Part([Load(8_000, 0, seconds=PING_INTERVAL + 5)], once=True),
    "workers": Part([Load(1_000, 8_000, spread=True), Load(2_000, 16_000, spread=True)], tuple(SERVERS)),
    "threads": Part([Load(0, 0, seconds=0.2), Load(100, 0, seconds=0.2), Load(8_000, 0, seconds=0.2)], once=True),
}


def smaller(load: Load) -> Load:
    """A tenth of it, for a quick run."""
    connections = -(-load.connections // (10 * SEATS)) * SEATS
    return load._replace(connections=connections, rate=load.rate // 10, seconds=min(load.seconds, 2.0))


# Measuring.


class Bench:
    """How to measure, and what was noticed meanwhile."""

    def __init__(self, seconds: float, warm_up: float = 1.0, settle: float = 10.0, cores: Cores | None = None) -> None:
        self._notes: dict[tuple[str, str], list[str]] = {}
        self._seconds = seconds
        self._warm_up = warm_up
        self._settle = settle
        self._cores = share_out() if cores is None else cores
        if self._cores.server == self._cores.generator:
            self._note("", "There is one core: server and generator share it, and no figure of either is its own.")

    def _note(self, name: str, sentence: str, kind: str = "") -> None:
        self._notes.setdefault((name, kind or sentence), []).append(sentence)

    @property
    def notes(self) -> list[str]:
        """Sentences about what a reader of the figures must know; of what came up in several rounds, the last."""
        notes = []
        for (name, _), said in self._notes.items():
            times = f" (in {len(said)} rounds; the last one)" if name and len(said) > 1 else ""
            notes.append(f"{name}{times}: {said[-1]}" if name else said[-1])
        return notes

    def throughput(self) -> dict[str, float]:
        """Deliveries a second that the generator manages by itself: when they come alone, and when in fours."""
        told: dict[str, float] = json.loads(run_module("benchmarks.generator", "null", self._cores.generator, 120.0))
        return told

    def run(self, server: str, load: Load) -> dict[str, Any]:
        """One server, started and ended, under one load: the generator's ``Outcome``.

        Blocks for the load's time, and for coming in; bounded.

        Raises:
            LoadFailed: it could not be measured. Nothing of it runs any more.
        """
        possible = allow_connections(load.connections) // SEATS * SEATS
        if possible < load.connections:
            self._note(
                "",
                f"{possible:,} connections instead of {load.connections:,}: "
                "the limit on open files (ulimit -Hn) does not allow more.",
            )
        seconds = load.seconds or self._seconds
        cores = self._cores.all if load.spread else self._cores.server
        with Server(*SERVERS[server], cores=cores) as process:
            plan = Plan(
                port=process.port,
                rooms=possible // SEATS,
                rate=load.rate,
                warm_up=self._warm_up,
                seconds=seconds,
                create="roomkit" in SERVERS[server],
                stall_every=load.stall_every,
                pids=process.pids,
                settle=self._settle,
            )
            patience = _SLOW + possible / 100 + self._warm_up + seconds + 2 * self._settle
            try:
                orders = json.dumps(dataclasses.asdict(plan))
                told = run_module("benchmarks.generator", orders, self._cores.generator, patience)
            except LoadFailed as failure:
                raise LoadFailed(f"{server}, {load.title}: {failure}\n{process.said}".rstrip()) from None
        outcome: dict[str, Any] = json.loads(told)
        self._judge(f"{server}, {load.title}", load, outcome)
        return outcome

    def _judge(self, name: str, load: Load, outcome: dict[str, Any]) -> None:
        figures = report.figures_of(outcome)
        share, late = figures["generator"] or 0.0, figures["lateness"] or 0.0
        server, own = figures["server_waited"] or 0.0, figures["generator_waited"] or 0.0
        unsent = outcome["offered"] - outcome["sent"]
        alone = not load.spread  # on cores of their own
        for kind, is_so, sentence in (
            (
                "limit",
                alone and share > _BUSY,
                f"the generator, not the server, was the limit: {share:.0f} % of its core",
            ),
            ("late", alone and late > _LATE, f"the generator was late (P99: {late:.0f} ms), which is in the latencies"),
            (
                "busy",
                alone and max(server, own) > _CROWDED,
                f"the machine was busy: others had the server's core for {server:.0f} % of the time when it wanted it, "
                f"and the generator's for {own:.0f} %",
            ),
            ("missing", outcome["missing"], f"{outcome['missing']:,} of {outcome['expected']:,} deliveries never came"),
            ("twice", outcome["duplicates"], f"{outcome['duplicates']:,} deliveries came twice"),
            ("closed", outcome["closed"], f"the server closed {outcome['closed']:,} connections of members who read"),
            ("unsent", unsent, f"{unsent:,} of {outcome['offered']:,} operations could not be sent in time"),
        ):
            if is_so:
                self._note(name, f"{sentence}.", kind)


def measure(bench: Bench, parts: dict[str, Part], rounds: int, tell: Callable[[str], None]) -> report.Results:
    """Every part, its servers in turn within every round.

    Raises:
        LoadFailed: see :meth:`Bench.run`.
    """
    results: dict[str, dict[str, dict[str, list[report.Figures]]]] = {}
    for name, part in parts.items():
        found = results[name] = {load.title: {server: [] for server in part.servers} for load in part.loads}
        count = 1 if part.once else rounds
        for number in range(count):
            for load in part.loads:
                for server in part.servers:
                    figures = report.figures_of(bench.run(server, load))
                    found[load.title][server].append(figures)
                    said = ", ".join(
                        f"{report.KINDS[kind].title} {value:.4g}"
                        for kind in (*report.ROWS[name], "lateness")
                        if (value := figures[kind]) is not None
                    )
                    tell(f"{name}, round {number + 1} of {count}, {load.title}, {server}: {said}")
    return results


# The command.


def on_page(told: dict[str, Any]) -> str:
    """All that was measured, as it stands on the page."""
    machine, rounds, generator = told["machine"], told["rounds"], told["generator"]
    head = (
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}. "
        f"Medians of {rounds} round{'s' * (rounds > 1)} of {told['seconds']:g} s; *ratio*: the median of the rounds' "
        f"ratios. With nobody to wait for, the load generator manages {generator['alone']:,.0f} deliveries/s that come "
        f"alone, and {generator['in fours']:,.0f}/s that come in fours."
    )
    notes = "".join(f"* {note}\n" for note in told["notes"])
    return f"{head}\n\n{report.tables(told['results'])}\n" + (f"\n{notes}" if notes else "")


def write_page(path: Path, told: dict[str, Any]) -> None:
    """Put it between the page's marks.

    Raises:
        ValueError: the page lacks them.
    """
    path.write_text(fill_marks(path.read_text(encoding="utf-8"), "load", on_page(told)), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--only", action="append", choices=PARTS, help="this part (may be repeated)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of which the median is told [default: 3]")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="N", help="of each measurement [default: 5]")
    parser.add_argument("--quick", action="store_true", help="a tenth of every load, once, a second each")
    parser.add_argument("--json", type=Path, metavar="FILE.json", help="write all figures there")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="put the tables between its marks")
    parser.add_argument(
        "--check", action="store_true", help="compare the ratios with those stored; 1 when one is worse"
    )
    parser.add_argument("--write", action="store_true", help="store these ratios")
    parser.add_argument("--baseline", type=Path, default=BASELINE, metavar="FILE.json", help="where they are stored")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 when something is worse than stored, or could not be measured; 130 after Ctrl-C."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds must be positive")
    if options.quick and (options.check or options.write):
        parser.error("--quick is another load than what is stored")
    if options.only and (options.page or options.write):
        parser.error("--page and --write need all parts")
    if options.page:
        try:
            fill_marks(options.page.read_text(encoding="utf-8"), "load", "")  # better now than after the test
        except (OSError, ValueError) as error:
            parser.error(str(error))
    if not hasattr(select, "epoll") or not os.path.exists("/proc/self/stat"):
        print("This needs epoll and /proc: Linux.", file=sys.stderr)
        return 1
    # So that what was started is ended.
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        told = _measure(options)
    except LoadFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    print(on_page(told))
    if options.json is not None:
        options.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    if options.page is not None:
        write_page(options.page, told)
    status = _check(told["ratios"], options.baseline) if options.check else 0
    if options.write:
        stored = {name: told[name] for name in ("machine", "rounds", "seconds", "notes", "ratios")}
        options.baseline.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    return status


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    parts = {name: PARTS[name] for name in options.only or PARTS}
    rounds, seconds = options.rounds, options.seconds
    if options.quick:
        parts = {name: part._replace(loads=[smaller(load) for load in part.loads]) for name, part in parts.items()}
        rounds, seconds = 1, min(1.0, seconds)
    bench = Bench(seconds, warm_up=0.3 if options.quick else 1.0)
    generator = bench.throughput()
    results = measure(bench, parts, rounds, lambda line: print(line, file=sys.stderr, flush=True))
    return {
        "machine": {**report.machine(), "cores": os.cpu_count()},
        "rounds": rounds,
        "seconds": seconds,
        "generator": generator,
        "ratios": report.ratios(results),
        "notes": bench.notes,
        "results": results,
    }


def _check(ratios: dict[str, dict[str, float]], path: Path) -> int:
    if not path.exists():
        print(f"Nothing is stored in {path}: --write does it.", file=sys.stderr)
        return 1
    stored = json.loads(path.read_text(encoding="utf-8"))
    changes = report.compare(ratios, stored["ratios"])
    where = ", ".join(str(value) for value in stored["machine"].values())
    print(
        f"Stored on: {where} cores; {stored['rounds']} rounds of {stored['seconds']:g} s.", *stored["notes"], sep="\n* "
    )
    print(f"\n{report.comparison(changes)}")
    return 1 if any(change.worse for change in changes) else 0


if __name__ == "__main__":
    sys.exit(main())
