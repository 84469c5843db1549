"""Instances that share their rooms by way of one store, players who come and go at all of them, and what goes wrong:
the scenario ``sharing``.

Managers, nodes, journals, rooms, desks and the store are roomkit's own. What must hold is in ``stores.py``,
``guests.py``, ``at_rest.py`` and here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import roomkit.manager
import roomkit.sharing.following
import roomkit.sharing.node
import roomkit.sharing.room
from roomkit import Room, RoomConfig, RoomkitError, RoomManager
from roomkit.backends.memory import MemoryStore
from roomkit.core import commands as c
from roomkit.core.events import Event
from roomkit.core.state import RoomMachine
from roomkit.sharing.room import SharedRoom

from . import at_rest
from . import primitives as p
from .checks import Truth
from .guests import Client, Guest, as_told
from .scheduler import Scheduler
from .stores import Ledger, Unsteady, Watched
from .watch import forget
from .world import SETTLE, World


class Bounds:
    """What a seed makes of the scenario, besides ``Knobs``."""

    def __init__(self, rng: random.Random, scenario: str) -> None:
        self.instances = rng.choice((2, 2, 3))
        self.ttl = rng.choice((0.3, 1.0))
        self.timeout = rng.choice((0.02, 0.1))
        self.rooms = rng.choice((1, 1, 2))
        self.players = rng.randint(2, 4)
        self.steps = rng.randint(5, 14)
        self.faults = rng.randint(1, 6)
        self.pause = rng.choice((0.0, 0.05, 0.3))
        self.loss = rng.choice((0.0, 0.0, 0.1, 0.3))  # the share of letters that are lost
        self.lag = rng.choice((0.0, 0.0, 0.1, 0.4))  # and of what is heard later
        self.lateness = rng.choice((0.01, 0.3, 1.5))
        self.config = RoomConfig(
            max_players=rng.choice((3, 6)),
            history_size=rng.choice((3, 20, 1000)),
            queue_size=10_000,  # nothing is dropped: a hole is a hole
            empty_ttl=rng.choice((2, 1000, 1000)),
            reconnect_grace=rng.choice((0.5, 1000)),
            busy_timeout=rng.choice((0.05, 0.5)),
        )
        # What the operator does, and how often.
        self.weights = {"cut_off": 4, "deaf": 3, "mute": 4, "freeze": 3, "kill": 2, "drain": 3, "remove": 2, "calm": 2}
        self.weights |= {"create": 2, "list": 1, "seat": 1}
        if scenario == "following":
            self.rooms, self.players, self.steps = 1, rng.randint(2, 4), rng.randint(8, 16)
            self.loss, self.lag, self.lateness = rng.choice((0.1, 0.4)), rng.choice((0.1, 0.5)), rng.choice((0.3, 1.5))
            self.pause = rng.choice((0.05, 0.3, 0.8))
            self.config = self.config.replace(empty_ttl=1000)
            self.weights = {"cut_off": 2, "mute": 4, "kill": 4, "drain": 1, "freeze": 1, "calm": 3, "deaf": 1}

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in vars(self).items())


class Instance:
    """A manager, and its way to the store."""

    def __init__(self, world: SharedWorld, number: int) -> None:
        bounds = world.bounds
        watched = Watched(world.ledger, world.store, bounds.ttl)
        self.backend: Any = Unsteady(world, watched, f"instance {number}")
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


class Operator:
    """What goes wrong, and what an operator does: an instance is cut off, deaf, mute, frozen or killed; drained, and
    another one made; rooms are made, listed and removed.
    """

    def __init__(self, world: SharedWorld) -> None:
        self.world = world
        self.rng = random.Random(f"operator {world.seed}")

    def run(self) -> None:
        weights = self.world.bounds.weights
        for _ in range(self.world.bounds.faults):
            instance = self.rng.choice(self.world.instances)
            fault = self.rng.choices(tuple(weights), tuple(weights.values()))[0]
            self.world.outcomes[f"fault: {fault}"] += 1
            self.world.attempt(lambda fault=fault, instance=instance: getattr(self, fault)(instance))
        if self.rng.random() < 0.5:  # else when all players have done
            for instance in self.world.instances:
                instance.backend.steady()

    def wait(self, most: float) -> None:
        """In leases."""
        self.world.scheduler.sleep(self.rng.random() * most * self.world.bounds.ttl)

    def calm(self, instance: Instance) -> None:
        self.wait(1.0)

    def cut_off(self, instance: Instance) -> None:
        instance.backend.become(down=True)
        self.wait(self.rng.choice((0.5, 2.5)))
        instance.backend.become(down=self.rng.random() < 0.2)

    def deaf(self, instance: Instance) -> None:
        instance.backend.become(deaf=True)
        self.wait(self.rng.choice((0.2, 1.0)))
        instance.backend.become()

    def mute(self, instance: Instance) -> None:
        instance.backend.become(mute=True)
        self.wait(self.rng.choice((0.2, 1.0, 3.0)))
        instance.backend.become(mute=self.rng.random() < 0.3)

    def freeze(self, instance: Instance) -> None:
        backend = instance.backend
        backend.frozen, backend.pause = self.rng.choice((0.1, 0.5)), self.rng.random() * 2 * self.world.bounds.ttl
        self.wait(2.0)
        backend.frozen = 0.0

    def kill(self, instance: Instance) -> None:
        """Nothing that it does reaches anybody any more: not the store, not its clients, who come back elsewhere."""
        world = self.world
        instance.backend.die()
        world.given_up.add(id(instance.manager._runtime))
        if self.rng.random() < 0.5 or len(world.instances) == 1:
            world.instances.append(world.make())
        world.instances.remove(instance)
        for guest in world.guests:
            if guest.instance is instance:
                guest.cut = True
                guest.settled.set()
        self.wait(2.0)
        instance.manager.shutdown(0.2, spread=0.0)  # so that its threads end

    def drain(self, instance: Instance) -> None:
        """Ended, and another one made, before or afterwards. With little time it gives up what is not stored."""
        world = self.world
        first = self.rng.random() < 0.5 or len(world.instances) == 1
        if first:
            world.instances.append(world.make())
        world.instances.remove(instance)
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

    def some_room(self, more: int = 0) -> str:
        return f"r{self.rng.randrange(self.world.bounds.rooms + more)}"

    def remove(self, instance: Instance) -> None:
        """Wherever it is owned."""
        instance.manager.remove_room(self.some_room())

    def create(self, instance: Instance) -> None:
        self.world.stored(lambda: instance.manager.create_room(self.some_room(1)))

    def list(self, instance: Instance) -> None:
        self.world.outcomes["listed"] += len(instance.manager.list_rooms())

    def seat(self, instance: Instance) -> None:
        """At whichever instance there is a place."""
        name = f"s{next(self.world.ids)}"
        room, player = instance.manager.join_or_create(name, reserve=True)
        epochs = [log for (room_id, _), log in self.world.ledger.logs.items() if room_id == room.id]
        if not player.token or not any(name in log.had for log in epochs):
            self.world.scheduler.fail("told, not stored", f"{player} in {room}")


class SharedWorld(World):
    """See the module."""

    def __init__(self, scheduler: Scheduler, scenario: str) -> None:
        super().__init__(scheduler, scenario)
        self.bounds = Bounds(self.rng, scenario)
        self.ledger = Ledger(scheduler)
        self.ids = count(1)
        self.numbers = count()
        self.instances: list[Instance] = []  # that are not drained
        self.everyone: list[Instance] = []
        self.guests: list[Guest] = []
        self.given_up: set[int] = set()  # runtimes of managers that were killed or given too little time to be ended
        self.broken_off: set[int] = set()  # rooms that were told to have their connections come back
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
        if room not in self.rooms:
            self.rooms.append(room)

    def watch_promoted(self, room: SharedRoom) -> None:
        self.outcomes["went on with what it followed"] += 1

    def watch_broken_off(self, room: SharedRoom) -> None:
        self.broken_off.add(id(room))

    def watch_forwarded(self, room: SharedRoom, events: Sequence[Event]) -> None:
        me = self.scheduler.current.name
        for event in events:
            self.ledger.check_told(room.id, room._machine.epoch, as_told(event), f"an operation of {me}")

    def logged(self, level: str, text: str, error: BaseException | None) -> None:
        super().logged(level, text, error)
        if text.endswith(("not all of its events were heard", "makes no sense")):
            self.outcomes["broken off"] += 1

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

    def troubled(self, instance: Instance) -> bool:
        """Its thread may stand still for longer than anybody waits."""
        return bool(self.late or instance.backend.frozen or instance.backend.dead or instance.manager.is_shut_down)

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
        roomkit.sharing.room._ids = count(1)
        roomkit.sharing.following._calls = count(1)
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

    def refused(self, error: RoomkitError) -> None:
        if type(error) is RoomkitError:
            self.scheduler.fail("refused for nothing", repr(error))
        super().refused(error)

    def settle(self) -> None:
        """From here on nothing goes wrong."""
        for instance in self.instances:
            instance.backend.steady()
        super().settle()
        for name in roomkit.sharing.node.COUNTERS:
            self.outcomes[f"count: {name}"] = sum(instance.manager.tally.get(name) for instance in self.everyone)

    def check_idle(self) -> None:
        at_rest.check_idle(self)

    def check_rooms(self) -> None:
        at_rest.check_rooms(self)

    def check_gone(self) -> None:
        at_rest.check_gone(self)
