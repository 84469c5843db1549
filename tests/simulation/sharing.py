"""Instances that share their rooms by way of one store, players who play on at whichever has theirs, and what goes
wrong: the scenario ``sharing``.

Managers, nodes, journals, rooms and the store are roomkit's own. What must hold is in ``stores.py`` and here.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import count
from typing import Any

import roomkit.manager
import roomkit.sharing.node
from roomkit import BackendUnavailable, Room, RoomConfig, RoomkitError, RoomManager, RoomNotFound
from roomkit.backends.memory import MemoryStore
from roomkit.core import commands as c
from roomkit.core.events import Event
from roomkit.core.state import RoomMachine
from roomkit.delivery import Batch
from roomkit.sharing.room import SharedRoom

from . import primitives as p
from .checks import Truth
from .scheduler import Scheduler
from .stores import Ledger, Unsteady, Watched
from .watch import forget
from .world import SETTLE, World


class Bounds:
    """What a seed makes of the scenario, besides ``Knobs``."""

    def __init__(self, rng: random.Random) -> None:
        self.instances = rng.choice((2, 2, 3))
        self.ttl = rng.choice((0.3, 1.0))
        self.timeout = rng.choice((0.02, 0.1))
        self.rooms = rng.choice((1, 1, 2))
        self.players = rng.randint(2, 4)
        self.steps = rng.randint(5, 14)
        self.faults = rng.randint(1, 6)
        self.pause = rng.choice((0.0, 0.05, 0.3))
        self.config = RoomConfig(
            max_players=rng.choice((3, 6)),
            history_size=rng.choice((3, 1000)),
            queue_size=10_000,  # nothing is dropped: a hole is a hole
            empty_ttl=rng.choice((2, 1000, 1000)),
            reconnect_grace=rng.choice((0.5, 1000)),
            busy_timeout=rng.choice((0.05, 0.5)),
        )

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in vars(self).items())


class Instance:
    """A manager, and its way to the store."""

    def __init__(self, world: SharedWorld, number: int) -> None:
        bounds = world.bounds
        watched = Watched(world.ledger, world.store, bounds.ttl)
        self.backend: Any = Unsteady(world, watched, bounds.timeout, f"instance {number}")
        self.manager = RoomManager(
            bounds.config,
            p.clock,
            wall_clock=p.wall,
            backend=self.backend,
            instance=f"i{number}",
            new_room_id=lambda: f"n{next(world.ids)}",
            new_token=lambda: f"token-number-{next(world.ids):010d}",
        )
        self.manager._runtime.new_epoch = lambda: f"e{next(world.ids)}"
        self.manager.use_broadcaster(world.broadcaster)
        self.manager.start_cleanup()
        assert self.manager._node is not None
        self.node = self.manager._node

    def __str__(self) -> str:
        return self.node.instance.name


class Guest:
    """A connection to a shared room."""

    def __init__(self, client: Client, room: SharedRoom) -> None:
        self.client = client
        self.room = room
        self.known = client.known
        self.epoch: str | None = None
        self.last = 0
        self.welcome_seq = 0
        self.cut = False
        self.attached = False
        self.busy = False
        self.messages = 0
        self.closes: list[tuple[int, str]] = []

    def __str__(self) -> str:
        return f"the connection of {self.client.name}"

    @property
    def over(self) -> bool:
        return self.cut or bool(self.closes)

    def deliver(self, batch: Batch) -> None:
        world = self.client.world
        p.check_no_locks(world.scheduler, "a connection's deliver")
        if self.busy:
            world.scheduler.fail("two deliver at once", str(self))
        if self.closes:
            world.scheduler.fail("delivered after the close", str(self))
        self.busy = True
        try:
            world.scheduler.point("deliver", self)
            world.hiccup()
            for message in batch.messages:
                self.messages += 1
                if not self.cut:
                    self.take(json.loads(message))
        finally:
            self.busy = False

    def take(self, message: dict[str, Any]) -> None:
        world, room_id = self.client.world, self.room.id
        if message["type"] == "welcome":
            self.take_welcome(message["data"])
        elif self.epoch is None:
            world.scheduler.fail("welcome first", f"{self} got {message['type']} before")
        elif message["seq"] != self.last + 1:
            world.scheduler.fail("twice, out of order or a hole", f"{self}: {message['seq']} after {self.last}")
        else:
            world.ledger.check_told(room_id, self.epoch, message, str(self))
            self.last = message["seq"]
            self.client.known = (self.epoch, self.last)
            world.deliveries += 1

    def take_welcome(self, data: dict[str, Any]) -> None:
        world = self.client.world
        epoch, seq, recovered = data["epoch"], data["seq"], data["recovered"]
        if self.epoch is not None:
            world.scheduler.fail("welcome once", str(self))
        world.ledger.check_stored(self.room.id, epoch, seq, f"the welcome of {self.client.name}")
        events = world.ledger.logs[self.room.id, epoch].events
        self.epoch, self.last, self.welcome_seq = epoch, seq, seq
        if self.known is not None:
            was, after = self.known
            covered = was == epoch and 0 <= seq - after <= min(seq, world.bounds.config.history_size)
            mine = ("player_joined", self.client.name)
            anew = was == epoch and mine in [
                (event["type"], event["data"].get("player", {}).get("id")) for event in events[after:seq]
            ]
            if recovered is not covered and not (recovered is None and (anew or was != epoch)):
                world.scheduler.fail("recovered", f"{self} is told {recovered}, had {self.known}; it is {epoch}, {seq}")
            if recovered:
                self.last = after
                world.outcomes["resumed"] += 1
                if self.client.room is not None and self.client.room is not self.room:
                    world.outcomes["resumed at another instance"] += 1
        self.client.known = (epoch, self.last)

    def close(self, code: int, reason: str) -> None:
        world = self.client.world
        p.check_no_locks(world.scheduler, "a connection's close")
        world.scheduler.point("close", f"{self} {code}")
        if self.closes:
            world.scheduler.fail("closed twice", f"{self}: {self.closes}, {code}")
        world.outcomes[f"closed {code}"] += 1
        self.closes.append((code, reason))


class Client:
    """Plays in one room, at whichever instance has it."""

    def __init__(self, world: SharedWorld, room_id: str, name: str) -> None:
        self.world = world
        self.room_id = room_id
        self.name = name
        self.token = f"token-of-{name}".ljust(24, "-")  # its own, so that it can come back when its welcome was lost
        self.rng = random.Random(f"{name} {world.seed}")
        self.known: tuple[str, int] | None = None
        self.guest: Guest | None = None
        self.room: SharedRoom | None = None
        self.sent = 0

    def run(self) -> None:
        world = self.world
        for _ in range(world.bounds.steps):
            if world.bounds.pause and self.rng.random() < 0.5:
                world.scheduler.sleep(self.rng.random() * 2 * world.bounds.pause)
            if self.guest is None or self.guest.over:
                world.attempt(self.come_in)
                continue
            names = ("submit", "say", "ready", "drop", "leave", "told", "listen", "settings")
            operation = getattr(self, self.rng.choices(names, (30, 20, 5, 12, 3, 5, 3, 3))[0])
            assert self.room is not None
            world.attempt(lambda operation=operation, room=self.room: operation(room))

    def come_in(self) -> None:
        world = self.world
        try:
            room = world.find(self.room_id, self.rng)
        except RoomNotFound:
            manager = self.rng.choice(world.instances).manager
            room = world.stored(lambda: manager.create_room(self.room_id))
        known: dict[str, Any] = {}
        if self.known is not None:
            known = {"epoch": self.known[0], "seq": self.known[1]}
        guest = Guest(self, room)
        world.guests.append(guest)
        try:
            world.stored(lambda: room.join(self.name, guest, token=self.token, **known))
        except BackendUnavailable:  # it may have been carried out: hang up
            guest.cut = True
            world.attempt(lambda: room.remove_connection(self.name, guest))
            raise
        except RoomkitError as error:
            if guest.messages or guest.closes:
                world.scheduler.fail("refused and yet changed", f"{guest} was used, and {error!r} raised")
            guest.cut = True
            raise
        guest.attached = True
        self.guest, self.room = guest, room

    def next_name(self) -> str:
        self.sent += 1
        return f"{self.name}.{self.sent}"

    def submit(self, room: SharedRoom) -> None:
        """As a session does: the answer comes behind the events, by the thread that delivers them."""
        world, name = self.world, self.next_name()
        told = p.Event()
        guest = self.guest

        def answer(events: list[Event]) -> None:
            world.outcomes["acknowledged"] += 1
            p.check_no_locks(world.scheduler, "an answer")
            world.ledger.check_told(room.id, room._machine.epoch, _as_told(events[-1]), f"the answer to {name}")
            if guest is not None and not guest.over and guest.last < events[-1].seq:
                world.scheduler.fail("answered too early", f"{name}: {events[-1].seq}, {guest} is at {guest.last}")
            told.set()

        self.careful(name, lambda: room.submit(c.SendMessage(self.name, {"n": name}, None), answer))
        if self.rng.random() < 0.4:
            told.wait(0.2)

    def say(self, room: SharedRoom) -> None:
        name = self.next_name()
        self.careful(name, lambda: self.world.stored(lambda: room.send_message(self.name, {"n": name})))
        if not any(name in log.names for log in self.world.ledger.logs.values()):
            self.world.scheduler.fail("told, not stored", f"{name} was said and is in no log")

    def careful(self, name: str, operation: Callable[[], object]) -> None:
        """What is refused is never stored."""
        try:
            operation()
        except BackendUnavailable:  # nobody knows
            raise
        except RoomkitError:
            self.world.ledger.refuse(name)
            raise

    def ready(self, room: SharedRoom) -> None:
        self.world.stored(lambda: room.set_player_ready(self.name, self.rng.random() < 0.7))

    def settings(self, room: SharedRoom) -> None:
        self.world.stored(lambda: room.update_settings(self.name, {"a": self.rng.randrange(3)}))

    def leave(self, room: SharedRoom) -> None:
        self.world.stored(lambda: room.remove_player(self.name))

    def drop(self, room: SharedRoom) -> None:
        """Its network is gone; the server notices, or does not before it is back."""
        guest = self.guest
        assert guest is not None
        guest.cut = True
        if self.rng.random() < 0.7:
            room.remove_connection(self.name, guest)
        if self.rng.random() < 0.5:
            self.come_in()

    def told(self, room: SharedRoom) -> None:
        epoch, seq = room._machine.epoch, room._machine.seq
        ledger = self.world.ledger
        room.when_stored(lambda: ledger.check_stored(room.id, epoch, seq, f"when_stored() of {self.name}"))

    def listen(self, room: SharedRoom) -> None:
        world, epoch, last = self.world, room._machine.epoch, [0]

        def heard(event: Event) -> None:
            p.check_no_locks(world.scheduler, "a subscriber's callback")
            world.ledger.check_told(room.id, epoch, _as_told(event), f"a subscriber of {self.name}")
            if event.seq <= last[0] or (last[0] and event.seq != last[0] + 1):
                world.scheduler.fail("twice, out of order or a hole", f"a subscriber: {event.seq} after {last[0]}")
            last[0] = event.seq

        room.subscribe(heard, limit=10_000_000)


def _as_told(event: Event) -> dict[str, Any]:
    return {"seq": event.seq, "type": event.type, "data": dict(event.data)}


class Operator:
    """What goes wrong, and what an operator does: cut off, deaf, frozen; drained, and another one made; removed."""

    def __init__(self, world: SharedWorld) -> None:
        self.world = world
        self.rng = random.Random(f"operator {world.seed}")

    def run(self) -> None:
        names = ("cut_off", "deaf", "freeze", "drain", "remove", "calm", "create")
        for _ in range(self.world.bounds.faults):
            instance = self.rng.choice(self.world.instances)
            fault = self.rng.choices(names, (4, 4, 3, 3, 2, 2, 2))[0]
            self.world.outcomes[f"fault: {fault}"] += 1
            self.world.attempt(lambda fault=fault, instance=instance: getattr(self, fault)(instance))
        for instance in self.world.instances:
            instance.backend.steady()

    def wait(self, most: float) -> None:
        """In leases."""
        self.world.scheduler.sleep(self.rng.random() * most * self.world.bounds.ttl)

    def calm(self, instance: Instance) -> None:
        self.wait(1.0)

    def cut_off(self, instance: Instance) -> None:
        instance.backend.down = True
        self.wait(self.rng.choice((0.5, 2.5)))
        instance.backend.down = self.rng.random() < 0.2

    def deaf(self, instance: Instance) -> None:
        instance.backend.deaf = True
        self.wait(self.rng.choice((0.2, 1.0)))
        instance.backend.deaf = False

    def freeze(self, instance: Instance) -> None:
        backend = instance.backend
        backend.frozen, backend.pause = self.rng.choice((0.1, 0.5)), self.rng.random() * 2 * self.world.bounds.ttl
        self.wait(2.0)
        backend.frozen = 0.0

    def drain(self, instance: Instance) -> None:
        """Ended, and another one made, before or afterwards. With little time it gives up what is not stored."""
        world = self.world
        world.instances.remove(instance)
        first = self.rng.random() < 0.5 or not world.instances
        if first:
            world.instances.append(world.make())
        in_time = self.rng.random() < 0.7
        steady = not (world.late or instance.backend.down or instance.backend.frozen)
        ended = instance.manager.shutdown(10.0 if in_time else 0.2, spread=0.0)
        if not ended:
            world.given_up.add(id(instance.manager._runtime))
        if in_time and steady and not ended:
            world.scheduler.fail("shutdown", f"{instance} did not end in time")
        if not first:
            world.instances.append(world.make())
        instance.backend.steady()

    def remove(self, instance: Instance) -> None:
        instance.manager.remove_room(f"r{self.rng.randrange(self.world.bounds.rooms)}")

    def create(self, instance: Instance) -> None:
        self.world.stored(lambda: instance.manager.create_room(f"r{self.rng.randrange(self.world.bounds.rooms + 1)}"))


class SharedWorld(World):
    """See the module."""

    def __init__(self, scheduler: Scheduler, scenario: str) -> None:
        super().__init__(scheduler, scenario)
        self.bounds = Bounds(self.rng)
        self.ledger = Ledger(scheduler)
        self.ids = count(1)
        self.numbers = count()
        self.instances: list[Instance] = []  # that are not drained
        self.everyone: list[Instance] = []
        self.guests: list[Guest] = []
        self.given_up: set[int] = set()  # runtimes of managers that were given too little time to be ended
        self.machines: dict[int, Truth] = {}  # of each instance its own

    # What the watchers tell. A room has a machine at each instance that has it or had it.

    def watch_machine(self, machine: RoomMachine) -> None:
        pass

    def truth_of(self, machine: RoomMachine) -> Truth:
        truth = self.machines.get(id(machine))
        if truth is None:
            truth = self.machines[id(machine)] = Truth(self.scheduler, machine)
            truth.events = [None] * machine.seq  # type: ignore[list-item]
        return truth

    def watch_apply(
        self, machine: RoomMachine, command: c.Command, apply: Callable[[], list[Event]], now: float
    ) -> list[Event]:
        self.truths[machine.epoch] = self.truth_of(machine)
        return super().watch_apply(machine, command, apply, now)

    def watch_execute(self, room: Room, command: c.Command, execute: Callable[[], list[Event]]) -> list[Event]:
        events = execute()
        self.operations += 1
        if events:
            self.made[self.scheduler.current] = (room, events[-1].seq)
        return events

    def watch_admit(self, room: Room) -> None:
        self.rooms.append(room)

    # Tools.

    def dawdle(self) -> None:
        """Nowhere: what stands still here is the way to the store."""

    def stored(self, operation: Callable[[], Any]) -> Any:
        """An operation that blocks until what it did is stored."""
        me = self.scheduler.current
        self.made[me] = None
        result = operation()
        made = self.made[me]
        if made is not None:
            room, seq = made
            self.ledger.check_stored(room.id, room._machine.epoch, seq, f"an operation of {me.name}")
        if isinstance(result, Room):
            self.ledger.check_stored(result.id, result._machine.epoch, 0, f"a room that {me.name} made")
        return result

    def find(self, room_id: str, rng: random.Random) -> Any:
        """The room, at whichever instance has it; RoomkitError: none has it for now."""
        managers = [instance.manager for instance in self.instances]
        rng.shuffle(managers)
        for manager in managers:
            room: Any = manager.find_room(room_id)
            if room is not None and room._journal.refusal is None and rng.random() < 0.9:
                return room
        return managers[0].get_room(room_id)

    def make(self) -> Instance:
        instance = Instance(self, next(self.numbers))
        self.everyone.append(instance)
        return instance

    # The run.

    def run(self) -> None:
        forget()
        roomkit.manager.random = random.Random(f"manager {self.seed}")
        roomkit.sharing.node.random = random.Random(f"node {self.seed}")
        names = count(1)
        roomkit.manager.new_short_id = lambda: f"{next(names)}"
        bounds = self.bounds
        self.store = MemoryStore(log_size=1_000_000)
        self.instances = [self.make() for _ in range(bounds.instances)]
        for number in range(bounds.rooms):
            self.attempt(lambda number=number: self.instances[0].manager.create_room(f"r{number}"))
        clients = [Client(self, f"r{number % bounds.rooms}", f"p{number}") for number in range(bounds.players)]
        threads = [p.Thread(target=client.run, name=client.name) for client in clients]
        threads.append(p.Thread(target=Operator(self).run, name="operator"))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.settle()
        for instance in self.instances:
            if not instance.manager.shutdown(1000.0, spread=0.0):
                self.scheduler.fail("shutdown", f"{instance} did not end in time")
        self.scheduler.sleep(SETTLE)
        self.check_gone()

    # Before the clock jumps.

    def check_idle(self) -> None:
        for room in self.rooms:
            fanout = room._fanout
            if fanout._held and id(room._runtime) not in self.given_up:
                self._check_at_work(fanout.broadcaster, f"what is stored of room {room.id}, {list(fanout._held)},")
            for subscription in fanout._subscriptions:
                if subscription._outbox and not subscription._ended:
                    self._check_at_work(subscription._worker, f"the outbox of {subscription._worker.name}")
        for instance in self.everyone:
            node = instance.node
            thread: Any = node._thread
            if thread is None or not thread.waits_for("condition of leaf lock (node)"):
                continue
            if node._marked:
                self.scheduler.fail("a wake is lost", f"{instance} sleeps, {list(node._marked)} are to be stored")
            for journal in node._journals.values():
                due = journal.changed or journal.step is not None or journal._waiters or _queued(journal)
                if due and journal not in node._locked and not journal.lost:
                    text = f"changed {journal.changed}, step {journal.step}, {len(journal._waiters)} wait"
                    self.scheduler.fail("a mark is lost", f"{instance} sleeps: {journal.room}, {text}")
            wakes = self.scheduler.wakes_at(thread._task)
            due_at = max(self.scheduler.now, min(node._renew_at, node._scan_at))
            if not self.late and node._stop_by is None and (wakes is None or wakes > due_at + 0.01):
                self.scheduler.fail("the node oversleeps", f"{instance} until {wakes}, due at {due_at}")

    # When nothing is under way.

    def check_rooms(self) -> None:
        """Every room that is stored is somebody's, and one's alone; nothing is left to be stored or told."""
        owners: dict[str, Instance] = {}
        for instance in self.instances:
            node, manager = instance.node, instance.manager
            if node._marked or node._locked or node._busy or node._undo or node._unopened:
                left = (list(node._marked), len(node._locked), node._busy, node._undo, list(node._unopened))
                self.scheduler.fail("left to be done", f"{instance}: %s marked, %d locked, %s, %s, %s" % left)
            if set(node._journals) != set(manager._rooms):
                self.scheduler.fail("room and journal", f"{instance}: {list(node._journals)}, {list(manager._rooms)}")
            for room_id, journal in node._journals.items():
                room: Any = manager._rooms[room_id]
                if journal.room is not room or room._journal is not journal or journal.refusal is not None:
                    self.scheduler.fail("room and journal", f"{instance}: {room_id}")
                if (
                    journal.step is not None
                    or journal.changed
                    or journal._waiters
                    or journal.removing
                    or _queued(journal)
                ):
                    self.scheduler.fail("left to be stored", f"{instance}: {room_id}")
                connected = {seat.id for seat in room._machine.seats.values() if seat.connected}
                if not room._machine.closed and connected != set(room._fanout._links):
                    self.scheduler.fail("seat and connection", f"{instance}: {connected}, {list(room._fanout._links)}")
                if room_id in owners:
                    self.scheduler.fail("two owners", f"{room_id}: {instance} and {owners[room_id]}")
                owners[room_id] = instance
                if journal.lease.token != self.store.scopes[room_id].token:
                    self.scheduler.fail("two owners", f"{instance} has an old lease of {room_id}")
                if self.ledger.length(room_id, room._machine.epoch) != room._machine.seq:
                    self.scheduler.fail("left to be stored", f"{instance}: {room_id}, {room._machine.seq}")
        if set(owners) != set(self.store.rooms):
            self.scheduler.fail("nobody's room", f"{list(self.store.rooms)} are stored, owned are {list(owners)}")
        for guest in self.guests:
            self.check_guest(guest)

    def check_guest(self, guest: Guest) -> None:
        link = guest.room._fanout._links.get(guest.client.name)
        if not guest.attached or guest.over or id(guest.room._runtime) in self.given_up:
            return
        is_live = link is not None and link.connection is guest
        if not is_live:
            self.scheduler.fail("forgotten", f"{guest} is attached no more, and was not closed")
        if is_live and guest.last != guest.room._machine.seq:
            self.scheduler.fail("not told", f"{guest} is at {guest.last} of {guest.room._machine.seq}")

    def check_gone(self) -> None:
        names = [task.name for task in self.scheduler.alive() if task.name != "main"]
        if names:
            self.scheduler.fail("threads left", ", ".join(names))
        for instance in self.everyone:
            node, manager = instance.node, instance.manager
            if node._journals or node._marked or len(manager) or len(manager._heap):
                self.scheduler.fail("left behind", f"{instance}: {list(node._journals)}, {list(node._marked)}")
        now = self.scheduler.now
        leases = [(name, scope.instance) for name, scope in self.store.scopes.items() if scope.until > now]
        if leases:
            self.scheduler.fail("leases left", str(leases))
        for guest in self.guests:
            if guest.attached and not guest.over and id(guest.room._runtime) not in self.given_up:
                self.scheduler.fail("left open", str(guest))
        if self.scheduler.pending_timers():
            self.scheduler.fail("timers left", str(self.scheduler.pending_timers()))


def _queued(journal: Any) -> bool:
    """Whether something of a room that is this instance's waits to be taken out."""
    return journal.room is not None and bool(journal.room._fanout.queue.queue)
