"""Rooms that instances share, measured: ``python -m benchmarks.instances --help`` (Linux; the extra ``redis``).

One instance with its rooms in memory and with a store; from one instance to another, both ways; one instance beside
three; and the same load on peers that also share rooms by way of Redis. Servers and store are on one core, the load
generator (``spread.py``) on another. Run it on a machine that does nothing else.

The peers are installed into a folder of their own, with ``--peers FOLDER``; without it they are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import select
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import instances_report as report
from benchmarks.callers import Orders
from benchmarks.load_report import machine
from benchmarks.peers.setup import PEERS, Peer
from benchmarks.processes import Cores, LoadFailed, Server, allow_connections, run_module, share_out
from benchmarks.result import fill_marks
from benchmarks.spread import Plan
from benchmarks.store import Store

MEMORY, REDIS = "memory", "Redis"  #: roomkit's own; every other server is a peer
_FAST = 128  # players who send as fast as they are answered
_FAST_WORDS = f"{_FAST} players, each as fast as it is answered"
_TOGETHER = 64  # messages that are under way at one time
_SLOW = 60.0  # seconds that coming in may take, besides a hundredth for each connection
_BUSY = 90.0  # per cent of its core: more, and the generator may be the limit
_LATE = 20.0  # milliseconds: later, and the latencies are its own, or those of others on its core
_CROWDED = 5.0  # per cent of the time in which others have the generator's core


class Load(NamedTuple):
    """One load; most are fields of the generator's ``Plan``, which says what they are.

    Attributes:
        callers: threads that call the library, instead of a server with connections; 0: none.
        spread: the servers get all cores, of which they share one with the generator.
    """

    rooms: int = 100
    members: int = 4
    homes: int = 1
    reach: int = 1
    senders: tuple[int, ...] = ()
    operation: str = "song, answered"
    rate: float = 0.0
    players: int = _FAST
    callers: int = 0
    spread: bool = False


class Row(NamedTuple):
    """What stands in a row. ``servers``: how many of them there are."""

    server: str
    servers: int
    load: Load


class Part(NamedTuple):
    """A table. ``about``: what is the same in all its rows."""

    title: str
    about: str
    columns: Sequence[str]
    rows: Mapping[str, Row]


_ONE = Load()
_AT_OWNER = Load(20, 2, reach=2, senders=(0,), operation="message, answered", rate=200)
_ELSEWHERE = _AT_OWNER._replace(senders=(1,))
_AT_OWNER_FAST = _AT_OWNER._replace(rooms=_FAST, rate=0.0, players=_FAST)
_ELSEWHERE_FAST = _AT_OWNER_FAST._replace(senders=(1,))
_ROOMS = Load(120, 4, homes=3)
_PLAYERS = _ROOMS._replace(reach=3)
_PEERS = Load(50, 8, homes=2, reach=2, operation="message", players=_TOGETHER)
_SERVERS = {"roomkit": REDIS, **{name: name for name in PEERS}}


def _rows(suffix: str, rate: float, spread: bool = False) -> dict[str, Row]:
    """One instance and three, under the same load."""
    loads = {
        "1 instance": (1, _ROOMS._replace(homes=1)),
        "3 instances, each with its rooms and their players": (3, _ROOMS),
        "3 instances, each room's players at all of them": (3, _PLAYERS),
    }
    return {
        f"{name}{suffix}": Row(REDIS, servers, load._replace(rate=rate, spread=spread))
        for name, (servers, load) in loads.items()
    }


PARTS: dict[str, Part] = {
    "instance": Part(
        "One instance",
        "100 rooms of four; an operation is a song that is selected, which is stored, told to all four and answered",
        ["operations", "answer_p50", "answer_p99", "cpu", "store"],
        {
            f"{server}, {how}": Row(server, 1, _ONE._replace(rate=rate))
            for how, rate in (("500 operations/s", 500), (_FAST_WORDS, 0))
            for server in (MEMORY, REDIS)
        },
    ),
    "library": Part(
        "The library",
        "each caller selects songs in a room of its own, where nobody is connected, and waits until that is stored",
        ["operations", "answer_p50", "answer_p99", "cpu", "store"],
        {
            f"{server}, {callers} caller{'s' * (callers > 1)}": Row(server, 1, Load(callers=callers))
            for callers in (1, 64)
            for server in (MEMORY, REDIS)
        },
    ),
    "between": Part(
        "From one instance to another",
        "rooms of two, one at the instance that owns the room, one at another instance; an operation is a message",
        ["operations", "there_p50", "there_p99", "answer_p50", "answer_p99", "first_cpu", "second_cpu", "store"],
        {
            "sent at the owner, 200/s in 20 rooms": Row(REDIS, 2, _AT_OWNER),
            "sent elsewhere, 200/s in 20 rooms": Row(REDIS, 2, _ELSEWHERE),
            f"sent at the owner, {_FAST_WORDS}": Row(REDIS, 2, _AT_OWNER_FAST),
            f"sent elsewhere, {_FAST_WORDS}": Row(REDIS, 2, _ELSEWHERE_FAST),
            f"sent elsewhere, {_FAST} players, on all cores": Row(REDIS, 2, _ELSEWHERE_FAST._replace(spread=True)),
        },
    ),
    "peers": Part(
        "Beside its peers",
        "50 rooms of eight at two servers, four at each; everybody sends messages in turns, which go to all eight",
        ["delivered", "deliveries", "here_p50", "here_p99", "there_p50", "there_p99", "delivery_cpu", "delivery_store"],
        {
            f"{name}, {how}": Row(server, 2, _PEERS._replace(rate=rate))
            for how, rate in (("500 messages/s", 500), (f"{_TOGETHER} messages under way", 0))
            for name, server in _SERVERS.items()
        },
    ),
    "three": Part(
        "One instance and three",
        "120 rooms of four; an operation is a song that is selected. All are on this one machine, which shows what "
        "it costs to be three, and not what three machines can do",
        ["operations", "answer_p50", "answer_p99", "cpu", "store", "memory"],
        {
            **_rows(", 500 operations/s", 500),
            **_rows(f", {_FAST_WORDS}", 0),
            **_rows(", the same on all cores", 0, True),
        },
    ),
}

PROMISES = (
    report.Promise(
        "an operation at the owner, until another instance's player has its event: P50, ms",
        "between",
        "sent at the owner, 200/s in 20 rooms",
        "there_p50",
        most=3.0,
    ),
    report.Promise(
        "one sent elsewhere, until the owner's player has its event: P50, ms",
        "between",
        "sent elsewhere, 200/s in 20 rooms",
        "there_p50",
        most=3.0,
    ),
    report.Promise(
        "the same, until its sender has the answer: P50, ms",
        "between",
        "sent elsewhere, 200/s in 20 rooms",
        "answer_p50",
        most=3.0,
    ),
    report.Promise(
        "operations/s sent elsewhere",
        "between",
        f"sent elsewhere, {_FAST_WORDS}",
        "operations",
        least=2_000,
    ),
    *(
        report.Promise(
            f"{what}, µs, {how}",
            "peers",
            f"roomkit, {how}",
            kind,
            below=[f"{name}, {how}" for name in PEERS],
        )
        for how in ("500 messages/s", f"{_TOGETHER} messages under way")
        for what, kind in (("CPU per delivery", "delivery_cpu"),)
    ),
)


def smaller(load: Load) -> Load:
    """A tenth of it, for a quick run."""
    return load._replace(rooms=max(3, load.rooms // 10), rate=load.rate / 10, players=8, callers=min(load.callers, 8))


# Measuring.


class Bench:
    """How to measure, and what was noticed meanwhile.

    Attributes:
        failed: whether something could not be measured.
        peers: those that can be started, by name.
    """

    def __init__(self, seconds: float, warm_up: float = 1.0, settle: float = 10.0, cores: Cores | None = None) -> None:
        self.failed = False
        self.peers: dict[str, Peer] = {}
        self._notes: dict[tuple[str, str], list[str]] = {}
        self._seconds, self._warm_up, self._settle = seconds, warm_up, settle
        self._cores = share_out() if cores is None else cores

    @property
    def notes(self) -> list[str]:
        """What a reader of the figures must know; of what came up in several rounds, the last."""
        notes = []
        for (name, _), said in self._notes.items():
            times = f" (in {len(said)} rounds; the last one)" if name and len(said) > 1 else ""
            notes.append(f"{name}{times}: {said[-1]}" if name else said[-1])
        return notes

    def note(self, sentence: str, name: str = "", kind: str = "") -> None:
        """Remember a sentence; of the same name and kind, the last is told."""
        self._notes.setdefault((name, kind or sentence), []).append(sentence)

    def run(self, row: Row) -> tuple[report.Figures, dict[str, Any]]:
        """One load on servers, which are started for it and ended: figures, and what the generator told.

        Raises:
            LoadFailed: it could not be measured. Nothing of it runs any more.
        """
        load = row.load
        cores = self._cores.all if load.spread else self._cores.server
        with contextlib.ExitStack() as opened:
            store = None if row.server == MEMORY else opened.enter_context(Store(cores))
            if load.callers:
                return self._call(load, store)
            servers: list[Server] = []
            try:
                servers += [opened.enter_context(self._server(row.server, store, cores)) for _ in range(row.servers)]
                told = self._offer(row, servers, store)
            except LoadFailed as failure:
                said = "\n".join(text for server in servers if (text := server.said))
                raise LoadFailed(f"{failure}\n{said}".rstrip()) from None
        return report.figures_of(told), told

    def _server(self, name: str, store: Store | None, cores: frozenset[int]) -> Server:
        url = "" if store is None else store.url
        if name in (MEMORY, REDIS):
            return Server("-m", "benchmarks.instance", url or "memory", cores=cores)
        peer = self.peers[name]
        return Server(*peer.words, url, cores=cores, program=peer.program)

    def _call(self, load: Load, store: Store | None) -> tuple[report.Figures, dict[str, Any]]:
        orders = Orders(
            load.callers,
            self._seconds,
            self._warm_up,
            "" if store is None else store.url,
            () if store is None else [store.pid],
        )
        told = run_module("benchmarks.callers", json.dumps(dataclasses.asdict(orders)), self._cores.server, _SLOW)
        outcome: dict[str, Any] = json.loads(told)
        return report.figures_of_callers(outcome), outcome

    def _offer(self, row: Row, servers: Sequence[Server], store: Store | None) -> dict[str, Any]:
        load = row.load
        connections = load.rooms * load.members
        if allow_connections(connections) < connections:
            raise LoadFailed(f"the limit on open files (ulimit -Hn) does not allow {connections:,} connections")
        plan = Plan(
            ports=[server.port for server in servers],
            pids=[server.pids for server in servers],
            store=[] if store is None else [store.pid],
            cores=sorted(self._cores.all if load.spread else self._cores.server),
            language="roomkit" if row.server in (MEMORY, REDIS) else "socket.io",
            rooms=load.rooms,
            members=load.members,
            homes=load.homes,
            reach=load.reach,
            senders=load.senders,
            operation=load.operation,
            rate=load.rate,
            players=load.players,
            warm_up=self._warm_up,
            seconds=self._seconds,
            settle=self._settle,
        )
        patience = _SLOW + connections / 100 + self._warm_up + self._seconds + 2 * self._settle
        told = run_module("benchmarks.spread", json.dumps(dataclasses.asdict(plan)), self._cores.generator, patience)
        outcome: dict[str, Any] = json.loads(told)
        return outcome

    def judge(self, name: str, row: Row, figures: report.Figures, outcome: Mapping[str, Any]) -> None:
        """Note what was not as it should be."""
        if row.load.callers:
            return
        share, late = figures["generator"] or 0.0, figures["lateness"] or 0.0
        waited = figures["generator_waited"] or 0.0
        unsent = outcome["offered"] - outcome["sent"]
        others = figures["others"] or 0.0
        alone = not row.load.spread
        for kind, is_so, sentence in (
            (
                "limit",
                alone and share > _BUSY,
                f"the generator, not the servers, was the limit: {share:.0f} % of its core",
            ),
            ("late", alone and late > _LATE, f"the generator was late (P99: {late:.0f} ms), which is in the latencies"),
            ("busy", alone and waited > _CROWDED, f"others had the generator's core for {waited:.0f} % of the time"),
            ("others", others > _CROWDED, f"others used {others:.0f} % of a core of those that the servers are on"),
            ("missing", outcome["missing"], f"{outcome['missing']:,} of {outcome['expected']:,} deliveries never came"),
            ("twice", outcome["twice"], f"{outcome['twice']:,} deliveries came twice"),
            ("strays", outcome["strays"], f"{outcome['strays']:,} deliveries came to other rooms' members"),
            ("order", outcome["disorder"], f"{outcome['disorder']:,} deliveries came after later ones of their sender"),
            ("early", outcome["early"], f"{outcome['early']:,} answers came before the event"),
            ("unanswered", outcome["unanswered"], f"{outcome['unanswered']:,} operations were not answered"),
            ("errors", outcome["errors"], f"{outcome['errors']:,} operations were refused: {outcome['error']}"),
            ("closed", outcome["closed"], f"{outcome['closed']:,} connections were closed"),
            (
                "unsent",
                unsent,
                f"{unsent:,} of {outcome['offered']:,} operations could not be sent in time",
            ),
        ):
            if is_so:
                self.note(f"{sentence}.", name, kind)

    def prepare_peers(self, folder: Path | None) -> None:
        """Install them where they are missing; note those that cannot be had."""
        if folder is None:
            self.note("The peers are left out: --peers FOLDER installs them there.")
            return
        for name, prepare in PEERS.items():
            found = prepare(folder.resolve())
            if isinstance(found, str):
                self.note(found, name)
            else:
                self.peers[name] = found


def measure(
    bench: Bench, parts: Mapping[str, Part], rounds: int, tell: Callable[[str], None]
) -> dict[str, dict[str, list[report.Figures]]]:
    """Every part, its rows in turn within every round. A row that fails is told, and has no figures."""
    results: dict[str, dict[str, list[report.Figures]]] = {}
    for name, part in parts.items():
        rows = {
            title: row for title, row in part.rows.items() if row.server in (MEMORY, REDIS) or row.server in bench.peers
        }
        found = results[name] = {title: [] for title in rows}
        failed: set[str] = set()
        for number in range(rounds):
            for title, row in rows.items():
                if title in failed:
                    continue
                where = f"{part.title}: {title}"
                try:
                    figures, outcome = bench.run(row)
                except LoadFailed as failure:
                    failed.add(title)
                    bench.failed = True
                    bench.note(f"not measured: {' '.join(str(failure).split())}", where)
                    tell(f"{where}: {failure}")
                    continue
                bench.judge(where, row, figures, outcome)
                found[title].append(figures)
                said = ", ".join(
                    f"{report.KINDS[kind]} {value:.4g}"
                    for kind in part.columns
                    if (value := figures.get(kind)) is not None
                )
                tell(f"round {number + 1} of {rounds}, {where}: {said}")
    return results


# The command.


def on_page(told: Mapping[str, Any]) -> str:
    """All that was measured, as it stands on the page."""
    where, rounds = told["machine"], told["rounds"]
    head = (
        f"{where['processor']}, {where['cores']} cores, {where['system']}, Python {where['python']}. "
        f"Medians of {rounds} round{'s' * (rounds > 1)} of {told['seconds']:g} s."
    )
    parts = [
        f"**{PARTS[name].title}**: {PARTS[name].about}.\n\n{report.table('', PARTS[name].columns, rows)}"
        for name, rows in told["results"].items()
    ]
    promises = [report.Kept(*one) for one in told["promises"]]
    if promises:
        parts.append(report.promises_table(promises))
    if told["notes"]:
        parts.append("\n".join(f"* {note}" for note in told["notes"]))
    return "\n\n".join([head, *parts]) + "\n"


def write_page(path: Path, told: Mapping[str, Any]) -> None:
    """Put it between the page's marks.

    Raises:
        ValueError: the page lacks them.
    """
    path.write_text(fill_marks(path.read_text(encoding="utf-8"), "instances", on_page(told)), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.instances", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("--only", action="append", choices=PARTS, help="this part (may be repeated)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of which the median is told [default: 3]")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="N", help="of each measurement [default: 5]")
    parser.add_argument("--quick", action="store_true", help="a tenth of every load, once, a second each")
    parser.add_argument(
        "--peers", type=Path, metavar="FOLDER", help="measure peers too; pip and npm install them there when missing"
    )
    parser.add_argument("--json", type=Path, metavar="FILE.json", help="write all figures there")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="put the tables between its marks")
    parser.add_argument("--check", action="store_true", help="1 when something that was asked for is not kept")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 when something could not be measured, or with --check is not kept; 130 after Ctrl-C."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds must be positive")
    if options.quick and options.check:
        parser.error("--quick is another load than what was asked for")
    if options.only and options.page:
        parser.error("--page needs all parts")
    if options.page:
        try:
            fill_marks(options.page.read_text(encoding="utf-8"), "instances", "")  # better now than after the test
        except (OSError, ValueError) as error:
            parser.error(str(error))
    if not hasattr(select, "epoll") or not os.path.exists("/proc/self/stat"):
        print("This needs epoll and /proc: Linux.", file=sys.stderr)
        return 1
    # So that what was started is ended.
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        told = _measure(options)
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    print(on_page(told))
    if options.json is not None:
        options.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    if options.page is not None:
        write_page(options.page, told)
    missed = options.check and any(report.Kept(*one).kept is False for one in told["promises"])
    return 1 if told["failed"] or missed else 0


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    parts = {name: PARTS[name] for name in options.only or PARTS}
    rounds, seconds = options.rounds, options.seconds
    if options.quick:
        parts = {
            name: part._replace(rows={t: row._replace(load=smaller(row.load)) for t, row in part.rows.items()})
            for name, part in parts.items()
        }
        rounds, seconds = 1, min(1.0, seconds)
    bench = Bench(seconds, warm_up=0.3 if options.quick else 1.0)
    if "peers" in parts:
        bench.prepare_peers(options.peers)
    results = measure(bench, parts, rounds, lambda line: print(line, file=sys.stderr, flush=True))
    promises = [] if options.quick else [one for one in PROMISES if one.part in parts]
    return {
        "machine": {**machine(), "cores": os.cpu_count()},
        "rounds": rounds,
        "seconds": seconds,
        "promises": report.check(promises, results),
        "failed": bench.failed,
        "notes": bench.notes,
        "results": results,
    }


if __name__ == "__main__":
    sys.exit(main())
