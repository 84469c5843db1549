"""``python -m tests.sharing.storms``: a storm of faults over real instances and a real store while people play, and the
proof that all they were told is true.

Exit 1 when something is not. ``--store``: one (a Valkey of its own, the default), cluster (three masters with a replica
each), or a URL, where the store itself is left in peace; ROOMKIT_REDIS_URL is such a one.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [path for path in (str(_HERE), str(_HERE.parent)) if path not in sys.path]  # as pytest has it

import fence  # noqa: E402
from fleet import Fleet, Store  # noqa: E402
from people import Caller, End, Person  # noqa: E402
from proof import violations  # noqa: E402
from stories import read_log  # noqa: E402
from support.rest import request  # noqa: E402
from weather import Weather  # noqa: E402

from roomkit.runtime import new_short_id  # noqa: E402

TTL = 1.5
_ROOMS = 3
_PEOPLE = 3  # in each room, each begins at another instance
_STUCK = 20.0  # seconds after a fault until everybody must have been acknowledged something


class Report(NamedTuple):
    """What a storm was like. ``pauses``: the longest that anybody waited for an acknowledgement, by kind of fault."""

    wrong: list[str]
    faults: Counter[str]
    acked: int
    events: int
    resumed: int
    lost: int
    refused: Counter[str]
    forwarded: int
    owners: int
    pauses: dict[str, float]
    after: bool

    def lines(self) -> list[str]:
        """For people to read."""
        faults = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))
        pauses = ", ".join(f"{name} {seconds:.2f}" for name, seconds in sorted(self.pauses.items()))
        return [
            f"{self.acked} operations acknowledged, {self.events} events received, {self.forwarded} forwarded; "
            f"{self.lost} connections lost, {self.resumed} resumes; leases given {self.owners}; "
            f"refused: {dict(self.refused)}",
            f"faults: {faults}",
            f"longest pause of anybody in seconds: {pauses}",
            *(f"WRONG: {text}" for text in self.wrong[:40]),
            *([f"... and {len(self.wrong) - 40} more"] if len(self.wrong) > 40 else []),
        ]


class Storm:
    """One storm. See the module.

    Args:
        store: closed by who made it. rounds: of faults, after which it is over in any case. kinds: the
        faults that may be; none: all. mutant: instances of wrong code. careless, patience: see
        Person; two values that leave an instance which hangs, unless given.
        stuck: seconds after which somebody who is acknowledged nothing is stuck.
    """

    def __init__(
        self,
        seed: int,
        seconds: float,
        store: Store,
        *,
        rounds: int = 1_000_000,
        kinds: tuple[str, ...] = (),
        ttl: float = TTL,
        instances: int = 3,
        mutant: str = "",
        careless: float = 0.003,
        patience: float | None = None,
        stuck: float = _STUCK,
    ) -> None:
        rng = random.Random(seed)
        self._seconds = seconds
        self._rounds = rounds
        self._store = store
        self._stuck = stuck
        self._end = End()
        self._faults: list[tuple[str, float, float]] = []  # name, from, to
        self._wrong: list[str] = []
        self._prefix = f"storm-{new_short_id()}:"
        self.watch = self._make_watch()
        flags = ("--mutant", mutant) if mutant else ()
        self.fleet = Fleet(store, self._prefix, ttl, instances, flags)
        self._rooms = [f"r{n}" for n in range(_ROOMS)]
        self.people: list[Person] = []
        for n, room_id in enumerate(self._rooms):
            for k in range(_PEOPLE):
                where = self._route(n + k, random.Random(f"{seed} {n} {k}"))
                waits = rng.choice((2 * ttl, 2 * ttl + 3.0)) if patience is None else patience
                person = Person(room_id, f"p{n}{k}", where, self._end, waits, f"{seed} {n} {k} says", careless)
                self.people.append(person)
        self.caller = Caller(self._rooms, self.fleet.port, self._end, 2 * ttl)
        try:
            self._weather = Weather(rng, self.fleet, self.people, self.watch, kinds)
        except BaseException:
            self.close()
            raise

    def _make_watch(self) -> fence.Watch | None:
        watch = fence.Watch(self._prefix)
        try:
            for host, port in self._store.addresses:
                watch.attach(port, host, self._store.login)
        except (OSError, ValueError) as error:  # somebody else's, who does not let us
            print(f"the store is not watched: {error}", file=sys.stderr)
            watch.close()
            return None
        return watch

    def _route(self, first: int, rng: random.Random) -> Callable[[int], int]:
        def port(turn: int) -> int:
            return self.fleet.port(first if turn == 0 else rng.randrange(len(self.fleet.berths)))

        return port

    def run(self) -> Report:
        """Let it rage, then let everything calm down, and look."""
        try:
            self.begin()
            end = time.monotonic() + self._seconds
            while time.monotonic() < end and len(self._faults) < self._rounds and not self._broken():
                self._fault()
            return self.end()
        finally:
            self.close()

    def begin(self) -> None:
        """Rooms, one at each instance, and everybody plays."""
        for n, room_id in enumerate(self._rooms):
            room = {"id": room_id, "max_players": 8}
            made = request(("127.0.0.1", self.fleet.port(n)), "POST", "/api/rooms", room)
            assert made.status == 201, made.body
        for one in (*self.people, self.caller):
            one.thread.start()
        self.goes_on("the start")

    def end(self) -> Report:
        """Everybody plays, says a last word and goes; the instances end; then it is looked at what people were told."""
        calm_at = time.monotonic()
        if not self._broken():
            self.goes_on("all")
        self._end.come(give_up=self._broken())
        for one in (*self.people, self.caller):
            one.thread.join(60.0)
            assert not one.thread.is_alive(), one.thread.name
        self.fleet.close()  # so that nothing more is done while it is looked
        if self.watch is not None:
            self.watch.catch_up()
        return self._report(calm_at)

    def close(self) -> None:
        """End everything. Can be called again."""
        self._end.come(give_up=True)
        self.fleet.close()
        if self.watch is not None:
            self.watch.close()

    def _broken(self) -> bool:
        """Whether there is no need to go on."""
        return bool(self._wrong) or any(one.wrong for one in (*self.people, self.caller))

    def _fault(self) -> None:
        faults = self._weather.next()
        name = " + ".join(name for name, _ in faults)
        begin = time.monotonic()
        with ExitStack() as stack:
            for _, fault in faults:
                stack.enter_context(fault())
        self._faults.append((name, begin, time.monotonic()))
        self.goes_on(name)

    def goes_on(self, name: str) -> None:
        """Until everybody was acknowledged something from now on, after a fault of this name."""
        begin = time.monotonic()
        pause = threading.Event()
        while True:
            late = [person.name for person in self.people if not person.acks or person.acks[-1] < begin]
            if not late or self._broken():
                return
            if time.monotonic() > begin + self._stuck:
                self._wrong.append(f"{', '.join(late)}: nothing was acknowledged for {self._stuck} s after {name}")
                return
            pause.wait(0.01)

    def _report(self, calm_at: float) -> Report:
        from roomkit.backends.redis import RedisBackend

        backend = RedisBackend(self._store.url, prefix=self._prefix, timeout=5.0)
        try:
            logs = {room_id: read_log(backend, room_id) for room_id in self._rooms}
        finally:
            backend.close()
        histories = None if self.watch is None else self.watch.histories()
        acts = [seen.act for history in (histories or {}).values() for seen in history]
        people = self.people
        return Report(
            self._wrong + violations(people, [self.caller], logs, histories),
            Counter(name for names, _, _ in self._faults for name in names.split(" + ")),
            sum(len(one.acked) for one in (*people, self.caller)),
            sum(len(person.got) for person in people),
            sum(person.resumed for person in people),
            sum(person.lost for person in people),
            Counter(code for one in (*people, self.caller) for code in one.refused.values()),
            sum(act.acted for act in acts if isinstance(act, fence.Logged)),
            sum(isinstance(act, fence.Acquired) for act in acts),
            self._pauses(),
            all(person.acks and person.acks[-1] > calm_at for person in people),
        )

    def _pauses(self) -> dict[str, float]:
        pauses: dict[str, float] = {}
        for name, begin, end in self._faults:
            for person in self.people:
                for one, next_one in zip(person.acks, person.acks[1:], strict=False):
                    if one <= end and next_one >= begin:
                        pauses[name] = max(pauses.get(name, 0.0), next_one - one)
        return {name: seconds for name, seconds in pauses.items() if " + " not in name}


def main(arguments: list[str] | None = None) -> int:
    """Run storms with successive seeds."""
    parser = argparse.ArgumentParser("python -m tests.sharing.storms", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1, help="so many storms, each with the next seed")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--store", default=os.environ.get("ROOMKIT_REDIS_URL") or "one")
    parser.add_argument("--instances", type=int, default=3)
    parser.add_argument("--ttl", type=float, default=TTL, help="seconds of a lease")
    parser.add_argument("--only", action="append", default=[], metavar="FAULT", help="a kind of fault; may be repeated")
    parser.add_argument("--stuck", type=float, default=_STUCK)
    parser.add_argument("--mutant", default="", help="instances of wrong code: see tests.sharing.mutants")
    parser.add_argument("--keep", type=Path, help="a folder for the instances' logs of a storm that went wrong")
    options = parser.parse_args(arguments)
    failed = 0
    for seed in range(options.seed, options.seed + options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            store = Store(options.store, Path(folder))
            try:
                storm = Storm(
                    seed,
                    options.seconds,
                    store,
                    kinds=tuple(options.only),
                    ttl=options.ttl,
                    instances=options.instances,
                    mutant=options.mutant,
                    stuck=options.stuck,
                )
                began = time.monotonic()
                report = storm.run()
            finally:
                store.close()
        print(f"seed {seed}, {options.store}, {time.monotonic() - began:.0f} s")
        print(*[f"  {line}" for line in report.lines()], sep="\n", flush=True)
        failed += bool(report.wrong)
        if report.wrong and options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            for n, text in enumerate(storm.fleet.logs):
                (options.keep / f"seed-{seed}-instance-{n}.log").write_text(text)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
