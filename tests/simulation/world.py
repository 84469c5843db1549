"""One simulated world: a RoomManager, its rooms, those who play in them, and what is checked while and after they do.

What happens is drawn from the seed too (``Knobs``): few seats, queues of a few places, slow and failing connections,
short lives. A player is a thread that operates, drops its connection and comes back with what it knows; one more thread
is the server's code.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any

import roomkit.manager
from roomkit import LockUpgradeError, Room, RoomBusy, RoomkitError, RoomManager
from roomkit.broadcaster import ThreadBroadcaster
from roomkit.core import commands as c
from roomkit.core.events import Event
from roomkit.core.state import RoomMachine
from roomkit.server.reactor import LoopBroadcaster

from . import primitives as p
from .actors import Memory, Player, Server, Subscriber, Wire
from .checks import Truth
from .knobs import SHARED, Knobs
from .lines import Loops
from .scheduler import Scheduler, Task
from .sessions import SessionWire, StandIn
from .watch import forget

#: Virtual seconds after which everything that was under way has ended: longer than any hiccup, retry or lingering.
SETTLE = 12.0
#: Longer than any room lives.
LIFETIME = 90.0


class World:
    """See the module. ``run`` is the first simulated thread of a :class:`Scheduler`."""

    def __init__(self, scheduler: Scheduler, scenario: str = "any") -> None:
        self.scheduler = scheduler
        self.seed = scheduler.seed
        self.rng = random.Random(f"world {self.seed}")
        self.choices = random.Random(f"sessions {self.seed}")
        self.knobs = Knobs(self.rng, scenario, self.choices)
        self.truths: dict[str, Truth] = {}  # by epoch
        self.wires: list[Wire] = []
        self.rooms: list[Room] = []  # every one that could be found at some time
        self.subscribers: list[Subscriber] = []
        self.loops = Loops(self)
        self.server: StandIn  # of those who come by a session
        self.noted: dict[Task, list[tuple[Room, c.Command, list[Event]]]] = {}  # what a session's message has done
        self.made: dict[Task, tuple[Room, int] | None] = {}  # by whom: the last event of its last operation
        self.deliveries = 0
        self.operations = 0
        self.expected_errors = 0
        self.outcomes: Counter[str] = Counter()
        self.ending = False
        self.sweeping = 0
        self.dawdling = 0
        self.late = bool(scheduler.strategy.slowness)
        scheduler.world = self

    # What the watchers tell (watch.py).

    def watch_machine(self, machine: RoomMachine) -> None:
        self.truths[machine.epoch] = Truth(self.scheduler, machine)

    def watch_apply(
        self, machine: RoomMachine, command: c.Command, apply: Callable[[], list[Event]], now: float
    ) -> list[Event]:
        truth = self.truths[machine.epoch]
        before = truth.enter(now)
        self.scheduler.point("apply", type(command).__name__)
        try:
            events = apply()
        except Exception as error:
            truth.refused(before, error)
            raise
        self.scheduler.point("applied", len(events))
        truth.applied(before, command, events)
        return events

    def watch_execute(self, room: Room, command: c.Command, execute: Callable[[], list[Event]]) -> list[Event]:
        events = execute()
        self.operations += 1
        noted = self.noted.get(self.scheduler.current)
        if noted is not None:
            noted.append((room, command, events))
        if events:
            truth = self.truth(room)
            truth.settled = max(truth.settled, events[-1].seq)
            self.made[self.scheduler.current] = (room, events[-1].seq)
            state = room._snapshot
            if state is not None:
                truth.check_state(state, events[-1].seq, "who has just operated")
        return events

    def watch_inherit(self, room: Room) -> None:
        truth = self.truth(room)
        truth.states[truth.seq] = truth.machine.snapshot()

    def logged(self, level: str, text: str, error: BaseException | None) -> None:
        if level == "error" and not isinstance(error, ConnectionResetError) and "as a subscriber" not in str(error):
            self.scheduler.fail("an error was logged", f"{text}: {error!r}")
        self.outcomes[f"log: {text.split()[0]}"] += 1

    def watch_admit(self, room: Room) -> None:
        self.rooms.append(room)
        if self.knobs.max_rooms and len(self.manager) > self.knobs.max_rooms:
            self.scheduler.fail("too many rooms", f"{len(self.manager)} of {self.knobs.max_rooms}")

    def watch_stop(self, room: Room, ended: bool) -> None:
        if ended and room.has_threads:
            self.truth(room).fail("threads left", "and it says that all have ended")

    # Tools.

    def truth(self, room: Room) -> Truth:
        return self.truths[room._machine.epoch]

    def attempt(self, operation: Callable[[], object]) -> None:
        try:
            operation()
        except RoomkitError as error:
            self.refused(error)

    def refused(self, error: RoomkitError) -> None:
        if isinstance(error, LockUpgradeError):
            self.scheduler.fail("upgrade", f"{error} where no lock is held")
        self.outcomes[error.code] += 1

    def rest(self, rng: random.Random) -> None:
        if self.knobs.pause and rng.random() < 0.5:
            self.scheduler.sleep(rng.random() * 2 * self.knobs.pause)

    def hiccup(self) -> None:
        """A listener that does not take what it is given for a while."""
        if self.knobs.hiccup and not self.ending and self.rng.random() < self.knobs.hiccup:
            self.scheduler.sleep(self.rng.choice((0.01, 0.1, 0.6)))

    def dawdle(self) -> None:
        """Where something is handed over to the server's threads: the machine does not run this one for a moment."""
        if self.knobs.broadcaster != "library" and not self.ending and self.rng.random() < 0.05:
            self.dawdling += 1
            self.scheduler.sleep(0.001)
            self.dawdling -= 1

    def look(self, room: Room, at_least: int) -> None:
        truth = self.truth(room)
        at_least = max(at_least, truth.settled)
        try:
            state = room.get_state()
        except RoomBusy:
            return
        truth.check_state(state, at_least, "get_state()")

    def some_room(self, rng: random.Random) -> Room | None:
        rooms = self.manager.rooms()
        if not rooms:
            self.attempt(lambda: self.create(f"r{rng.randrange(4)}", None))
            rooms = self.manager.rooms()
        return rng.choice(rooms) if rooms else None

    def create(self, room_id: str, owner: str | None) -> None:
        self.manager.create_room(room_id, owner=owner)

    def connect(self, player: Player, room: Room, known: Memory | None, memory: Memory | None) -> Wire:
        """A new connection of a player's, for ``join``. By a session it has a token, of its own if it has got none."""
        over_a_line = self.loops.open and player.rng.random() < self.knobs.lines
        if not (over_a_line and self.knobs.sessions and self.choices.random() < self.knobs.sessions):
            return Wire(self, player, room, known, over_a_line)
        player.secret = f"secret-of-{player.name}-0123456789"
        token = memory.token if memory is not None else None
        return SessionWire(self, player, room, known, token or player.secret)

    def listen(self, room: Room, limit: int) -> Subscriber:
        subscriber = Subscriber(self, room, limit, len(self.subscribers))
        self.subscribers.append(subscriber)
        return subscriber

    def on_watermark(self, room: Room, pressure: object) -> None:
        p.check_no_locks(self.scheduler, "on_watermark")
        self.outcomes["watermark"] += 1
        self.hiccup()

    def broadcaster(self, room_id: str, drain: Callable[[], None]) -> ThreadBroadcaster:
        """The library's, which in some runs parks sooner than after five seconds."""
        made = ThreadBroadcaster(room_id, drain)
        made._linger = self.knobs.linger
        return made

    # The run.

    def run(self) -> None:
        forget()
        roomkit.manager.random = random.Random(f"manager {self.seed}")
        knobs = self.knobs
        ids, tokens, epochs = count(1), count(1), count(1)
        self.manager = manager = RoomManager(
            knobs.config,
            p.clock,
            wall_clock=p.wall,
            max_rooms=knobs.max_rooms,
            max_rooms_per_owner=knobs.per_owner,
            on_watermark=self.on_watermark,
            new_room_id=lambda: f"n{next(ids)}",
            new_token=lambda: f"token-number-{next(tokens):010d}",
        )
        self.server = StandIn(self)
        manager._runtime.new_epoch = lambda: f"e{next(epochs)}"
        manager.use_broadcaster(self.broadcaster)
        if knobs.broadcaster == "server":
            self.loops.start()
        manager.start_cleanup()
        for number in range(knobs.rooms):
            self.create(f"r{number}", None)
            if knobs.observed:
                self.attempt(lambda: self.listen(self.rooms[-1], 10_000_000))
        threads = [
            p.Thread(target=Player(self, f"p{number}").run, name=f"p{number}") for number in range(knobs.players)
        ]
        threads.append(p.Thread(target=Server(self).run, name="server"))
        for thread in threads:
            thread.start()
        if knobs.broadcaster == "switch":
            self.scheduler.sleep(self.rng.random() * max(0.01, knobs.pause * knobs.steps))
            self.loops.start()
        if knobs.abrupt:
            self.scheduler.sleep(self.rng.random() * max(0.5, knobs.pause * knobs.steps))
            self.shutdown()
        for thread in threads:
            thread.join()
        if not knobs.abrupt:
            self.settle()
            if knobs.aged:
                self.scheduler.sleep(LIFETIME)
                self.check_aged()
            self.shutdown()
        self.settle()
        self.loops.stop()
        self.check_gone()

    def settle(self) -> None:
        """Let all that is under way come to its end, and look at everything."""
        self.ending = True
        self.scheduler.strategy.slowness = 0.0
        self.scheduler.sleep(SETTLE)
        self.check_rooms()

    def shutdown(self) -> None:
        if not self.manager.shutdown(1000.0):
            self.scheduler.fail("shutdown", "a thread did not end in time")

    # What must hold when nobody can go on before some time has passed.

    def check_idle(self) -> None:
        """Before the clock jumps: what is to be done has somebody who does it. Takes no lock, is no switch point."""
        for room in self.rooms:
            fanout = room._fanout
            if fanout.queue.queue or fanout.queue._gap_types is not None:
                self._check_at_work(fanout.broadcaster, f"the queue of room {room.id}")
            for subscription in fanout._subscriptions:
                if (subscription._outbox or subscription._gap_types is not None) and not subscription._ended:
                    self._check_at_work(subscription._worker, f"the outbox of {subscription._worker.name}")
        self.loops.check_idle()
        if not self.sweeping and not self.dawdling and not self.manager.is_shut_down:
            heap = self.manager._heap
            for room in self.manager._rooms.values():
                known, deadline = heap.get(room.id), room._machine.next_deadline()
                # One that was too busy is looked at again a second later.
                if known is None or known > max(deadline, self.scheduler.now + 1.0):
                    self.truth(room).fail("a deadline is lost", f"the heap has {known}, the room {deadline}")
            self._check_reaper(heap.next_deadline())

    def _check_reaper(self, deadline: float | None) -> None:
        reaper = self.manager._reaper
        if reaper is None or deadline is None or self.late:  # who is late may oversleep too
            return
        thread: Any = reaper._thread
        if thread.waits_to_be_woken:
            wakes = self.scheduler.wakes_at(thread._task)
            if wakes is None or wakes > max(deadline, self.scheduler.now) + 0.01:
                self.scheduler.fail("the reaper oversleeps", f"until {wakes}, the next deadline is {deadline}")

    def _check_at_work(self, worker: Any, what: str) -> None:
        if isinstance(worker, LoopBroadcaster):
            self.loops.check_at_work(worker, what)
            return
        if not worker._wanted and (worker._thread is None or worker._thread.waits_to_be_woken):
            self.scheduler.fail("a wake is lost", f"{what} is not empty, and its thread does not know")
        if worker._wanted and worker._thread is None:
            self.scheduler.fail("a wake is lost", f"{what} is not empty, and has no thread")

    # What must hold when nothing is under way.

    def check_rooms(self) -> None:
        manager = self.manager
        for room in self.rooms:
            truth = self.truth(room)
            fanout = room._fanout
            queue = fanout.queue
            closed = room.status == "closed"
            if queue.queue or queue._waiting or queue._gap_types is not None:
                truth.fail(
                    "left in the queue", f"{len(queue.queue)} entries, {queue._waiting} wait, {queue._gap_types}"
                )
            if queue._reserved:
                truth.fail("reservations left", str(queue._reserved))
            if room._lock._writer is not None or room._lock._readers or room._lock._lock.c_lock_write.locked():
                truth.fail("lock left", "nobody is at work")
            found = manager.find_room(room.id) is room
            if not found and not closed and not manager.is_shut_down:
                truth.fail("taken away and not closed", f"it is {room.status}")
            if found and manager._reaper is not None and room.next_deadline() < self.scheduler.now - 2.0:
                truth.fail("overdue", f"since {self.scheduler.now - room.next_deadline():.1f} s")
            if found and self.loops.open and not isinstance(fanout.broadcaster, LoopBroadcaster):
                truth.fail("not handed over", "the server has started, and a thread of its own drains it")
            if closed and (fanout._view or fanout._links):
                truth.fail("closed and not empty", str(fanout._links))
            if not closed:
                connected = {seat.id for seat in truth.machine.seats.values() if seat.connected}
                if connected != set(fanout._links):
                    truth.fail("seat and connection", f"connected: {sorted(connected)}, links: {sorted(fanout._links)}")
            if len(truth.events) != room._history.last_seq:
                truth.fail("history", f"it ends with {room._history.last_seq} of {truth.seq}")
        self.check_wires()
        self.check_subscribers()
        tally = manager.tally
        if tally.get("deliveries") != self.deliveries:
            self.scheduler.fail("count", f"{tally.get('deliveries')} deliveries of {self.deliveries}")
        if sum(tally.by_label("operations").values()) != self.operations:
            self.scheduler.fail("count", f"{tally.by_label('operations')} operations of {self.operations}")
        owned = Counter(manager._owners.values())
        if owned != manager._owned or set(manager._owners) - set(manager._rooms):
            self.scheduler.fail("owners", f"{manager._owned} for {owned}")

    def check_wires(self) -> None:
        for wire in self.wires:
            if isinstance(wire, SessionWire):
                wire.check_at_rest()
            if not wire.attached or wire.failed:
                continue
            room = wire.room
            live = room._fanout._links.get(wire.player.name)
            is_live = live is not None and live.connection is wire
            if not is_live and not wire.closes and not wire.cut:
                self.scheduler.fail("forgotten", f"{wire} of room {room.id} is attached no more, and was not closed")
            if is_live and wire.closes and wire.closes[0][0] != 1012:
                self.scheduler.fail("closed and attached", f"{wire} of room {room.id}: {wire.closes}")
            if is_live and not wire.cut and not wire.closes:
                if wire.stream is None:
                    self.scheduler.fail("no welcome", str(wire))
                else:
                    wire.stream.finish(wire.stream.truth.seq)

    def check_subscribers(self) -> None:
        for subscriber in self.subscribers:
            if subscriber.stopped:
                continue
            truth = subscriber.truth
            stream = subscriber.begin()
            stream.finish(truth.seq)
            if subscriber.complete:
                queue = subscriber.room._fanout.queue
                if stream.announced != queue.dropped or stream.replaced != queue.conflated:
                    text = f"told of {dict(stream.announced)} and {stream.replaced} replaced"
                    truth.fail("drops counted", f"{text}; counted {dict(queue.dropped)} and {queue.conflated}")
                missing = truth.seq - stream.start - stream.got
                if missing != stream.announced.total() + stream.replaced:
                    text = f"{dict(stream.announced)} announced and {stream.replaced} replaced"
                    truth.fail("drops counted", f"{missing} did not come; {text}")

    def check_told_of_leaving(self, wire: Wire) -> None:
        assert wire.stream is not None
        told = wire.stream.truth.events[wire.stream.start : wire.stream.last]
        if not any(event.type == "player_left" and event.data["player_id"] == wire.player.name for event in told):
            wire.stream.fail("not told of leaving", f"closed with {wire.closes} after {wire.stream.last}")

    def check_aged(self) -> None:
        """After longer than any room lives nothing but the reaper and the I/O threads are there."""
        if len(self.manager) or len(self.manager._heap):
            self.scheduler.fail("left behind", f"rooms {self.manager.rooms()}, {len(self.manager._heap)} deadlines")
        staying = ("main", "roomkit-reaper", "roomkit-io-")
        names = [task.name for task in self.scheduler.alive() if not task.name.startswith(staying)]
        if names:
            self.scheduler.fail("threads left", ", ".join(names))

    def check_gone(self) -> None:
        """After shutdown nothing is there."""
        manager = self.manager
        names = [task.name for task in self.scheduler.alive() if task.name != "main"]
        if names:
            self.scheduler.fail("threads left", ", ".join(names))
        if len(manager) or len(manager._heap) or manager._owners or manager._owned:
            self.scheduler.fail("left behind", f"{manager.rooms()}")
        if self.scheduler.pending_timers():
            self.scheduler.fail("timers left", str(self.scheduler.pending_timers()))
        if manager.tally.get("rooms_expired"):
            self.outcomes["expired"] += 1
        dropped: Counter[str] = Counter()
        for room in self.rooms:
            dropped.update(room.dropped)
        counted = Counter(manager.tally.by_label("dropped_by_removed"))
        if dropped != counted:
            self.scheduler.fail("drops counted", f"{dict(dropped)} in the rooms, {dict(counted)} in the tally")


def simulate(
    seed: int, scenario: str = "any", *, grain: str | None = None, record: bool = False
) -> tuple[Scheduler, World]:
    """One run; within ``patch.patched()``."""
    from .patch import is_traced
    from .scheduler import activate
    from .sharing import SharedWorld

    scheduler = Scheduler(seed, grain=grain, traced=is_traced, record=record)
    activate(scheduler)
    world = SharedWorld(scheduler, scenario) if scenario in SHARED else World(scheduler, scenario)
    try:
        scheduler.run(world.run)
    finally:
        activate(None)
    return scheduler, world
