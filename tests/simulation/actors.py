"""Those who live in a simulated world: players with their connections, subscribers, and the server's own code."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from roomkit import LockUpgradeError, Room, RoomBusy, RoomkitError
from roomkit.core.events import Event
from roomkit.delivery import Batch

from . import primitives as p
from .checks import Stream, Truth
from .lines import Line

if TYPE_CHECKING:
    from .world import World

#: Closed with one of these: it has left, by itself or not.
LEAVE_CODES = (1000, 4503, 4504)


class Wire:
    """A connection, and the client's end of it."""

    def __init__(self, world: World, player: Player, room: Room, known: Memory | None, over_a_line: bool) -> None:
        self.world = world
        self.player = player
        self.room = room
        self.known_epoch = known.epoch if known is not None else None
        self.known_seq = known.seq if known is not None else None
        self.stream: Stream | None = None
        self.replayed_up_to = 0
        self.busy = False
        self.cut = False  # the client's network is gone: it hears no more
        self.failed = False
        self.attached = False
        self.messages = 0
        self.closes: list[tuple[int, str]] = []
        self.line = self.make_line() if over_a_line else None

    def make_line(self) -> Line:
        return Line(self.world, self, self.room)

    def __str__(self) -> str:
        return f"the connection of {self.player.name}"

    def deliver(self, batch: Batch) -> None:
        world = self.world
        scheduler = world.scheduler
        p.check_no_locks(scheduler, "a connection's deliver")
        self.check_thread()
        if self.busy:
            scheduler.fail("two deliver at once", str(self))
        if self.closes:
            scheduler.fail("delivered after the close", str(self))
        self.busy = True
        try:
            scheduler.point("deliver", self)
            world.hiccup()
            if self.failed or world.rng.random() < world.knobs.failing:
                self.failed = self.cut = True
                raise ConnectionResetError("as a lost network would")
            world.deliveries += len(batch.messages)
            for message in batch.messages:
                if not self.cut:
                    self.take(json.loads(message))
            if world.rng.random() < 0.02:
                world.look(self.room, self.stream.last if self.stream is not None else 0)
            if world.rng.random() < 0.01 and not self.cut:  # what a server does when an outbox is full
                self.cut = True
                self.lose()
        finally:
            self.busy = False

    def check_thread(self) -> None:
        """A line is its I/O thread's alone."""
        if self.line is not None and not self.line.reactor.is_current():
            self.world.scheduler.fail(
                "another thread's connection", f"{self} is used, a line of {self.line.reactor.name}"
            )

    def ask(self, operation: Callable[[], Any]) -> Any:
        """Have an operation carried out where this connection's are."""
        return operation() if self.line is None else self.line.ask(operation)

    def lose(self) -> None:
        """The network is gone, and the server notices."""
        if self.line is not None:
            self.line.hang_up()
        else:
            self.world.attempt(lambda: self.room.remove_connection(self.player.name, self))

    def take(self, message: dict[str, Any]) -> None:
        self.messages += 1
        kind, data = message["type"], message["data"]
        if kind == "welcome":
            self.take_welcome(data)
        elif self.stream is None:
            self.world.scheduler.fail("welcome first", f"{self} got {kind} before")
        elif kind == "gap":
            self.stream.gap(data["after"], data["dropped"], data["types"])
        else:
            seq = message["seq"]
            if seq <= self.replayed_up_to and seq != self.stream.last + 1:
                self.stream.fail("a hole in the replay", f"event {seq} after {self.stream.last}")
            self.stream.event(kind, seq, data, message.get("conflated", 0))
            self.remember(seq)

    def take_welcome(self, data: dict[str, Any]) -> None:
        world = self.world
        if self.stream is not None:
            world.scheduler.fail("welcome once", str(self))
        truth = world.truths[data["epoch"]]
        seq = data["seq"]
        truth.check_state(data["state"], seq, str(self))
        recovered = data["recovered"]
        start = seq
        if recovered is None:
            if self.known_seq is not None and not truth.has_just_joined(self.player.name, seq):
                truth.fail("recovered", f"{self} had {self.known_seq} of {seq}, and is told nothing of that")
        else:
            missed = seq - (self.known_seq or 0)
            covered = 0 <= missed <= min(seq, truth.machine.config.history_size)
            if recovered is not (self.known_epoch == data["epoch"] and covered):
                truth.fail("recovered", f"{self} is told {recovered}, had {self.known_seq} of {seq}")
            if recovered:
                assert self.known_seq is not None
                start, self.replayed_up_to = self.known_seq, seq
        self.stream = Stream(truth, str(self), start)
        self.stream.known = seq
        self.welcomed(data, start)

    def remember(self, seq: int) -> None:
        assert self.stream is not None
        self.player.remember(self.stream.truth, seq)

    def welcomed(self, data: dict[str, Any], start: int) -> None:
        self.player.welcomed(data, start)

    def enter(self, memory: Memory | None) -> bool:
        """Take the seat; False: it was refused."""
        world, player = self.world, self.player
        token = memory.token if memory is not None else player.secret
        settled = world.truth(self.room).settled
        try:
            joined = self.ask(
                lambda: self.room.join(player.name, self, token=token, epoch=self.known_epoch, seq=self.known_seq)
            )
        except RoomkitError as error:
            if self.line is not None:
                self.line.hang_up()
            world.refused(error)
            if self.messages or self.closes:
                world.scheduler.fail("refused and yet changed", f"{self} was used, and {error!r} raised")
            return False
        self.attached = True
        truth = world.truth(self.room)
        truth.check_state(joined.state, settled, f"join of {player.name}")
        epoch = truth.machine.epoch
        known = player.memories.setdefault(epoch, Memory(epoch, None, None))
        known.token = joined.player.token
        return True

    def carry_out(self, operation: str) -> None:
        """Have one of the player's operations carried out."""
        self.ask(lambda: getattr(self.player, operation)(self.room))

    def close(self, code: int, reason: str) -> None:
        p.check_no_locks(self.world.scheduler, "a connection's close")
        self.check_thread()
        self.world.scheduler.point("close", f"{self} {code}")
        self.closes.append((code, reason))
        if self.line is not None:
            self.line.mark_dirty()
        self.take_close(code)

    def take_close(self, code: int) -> None:
        if self.cut or self.stream is None:
            return
        stream = self.stream
        if self.replayed_up_to > stream.last:
            stream.fail("a hole in the replay", f"closed ({code}) after {stream.last} of {self.replayed_up_to}")
        if code == 4510:
            stream.finish(stream.truth.seq)
        elif code in LEAVE_CODES:
            last = stream.truth.events[stream.last - 1]
            if last.type != "player_left" or last.data["player_id"] != self.player.name:
                # Others may have been told to it too, as long as its own leaving is among them.
                self.world.check_told_of_leaving(self)


class Memory:
    """What a client keeps of a room while it is away."""

    def __init__(self, epoch: str, token: str | None, seq: int | None) -> None:
        self.epoch = epoch
        self.token = token
        self.seq = seq


class Player:
    """A client: a thread that operates on rooms, drops out of them and comes back."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.rng = random.Random(f"{name} {world.seed}")
        self.name = name
        self.room: Room | None = None
        self.wire: Wire | None = None
        self.memories: dict[str, Memory] = {}  # by epoch
        self.secret: str | None = None  # of its own, for new seats: who comes by a session has one

    def remember(self, truth: Truth, seq: int) -> None:
        memory = self.memories[truth.machine.epoch]
        memory.seq = seq

    def welcomed(self, data: dict[str, Any], start: int) -> None:
        epoch = data["epoch"]
        memory = self.memories.setdefault(epoch, Memory(epoch, None, None))
        memory.token = data["token"]
        memory.seq = start

    def run(self) -> None:
        world = self.world
        for _ in range(world.knobs.steps):
            world.rest(self.rng)
            wire = self.wire
            if self.room is None or wire is None or wire.cut or wire.closes:
                self.come_in()
                continue
            operation = self.rng.choices(world.knobs.operations, world.knobs.weights)[0]
            world.attempt(partial(self.carry_out, operation, wire, self.room))

    def carry_out(self, operation: str, wire: Wire, room: Room) -> None:
        if operation in ("drop", "host", "hold"):  # no client's, or no matter of one operation
            getattr(self, operation)(room)
        else:
            wire.carry_out(operation)

    def come_in(self) -> None:
        """Into a room, with the token and the number that this client has of it."""
        world = self.world
        room = self.room
        if room is None or room.status == "closed" or self.rng.random() < 0.1:
            room = world.some_room(self.rng)
            if room is None:
                return
        epoch = world.truth(room).machine.epoch
        memory = self.memories.get(epoch)
        knows = memory is not None and memory.seq is not None and self.rng.random() < 0.95
        wire = world.connect(self, room, memory if knows else None, memory)
        world.wires.append(wire)
        self.room, self.wire = room, wire
        if not wire.enter(memory) and self.wire is wire:
            self.room = self.wire = None

    def message(self, room: Room) -> None:
        for _ in range(self.rng.choice((1, 1, 3))):
            room.send_message(self.name, {"n": self.rng.randrange(100)})

    def keyed(self, room: Room) -> None:
        for _ in range(self.rng.choice((1, 2))):
            room.send_message(self.name, {"at": self.rng.randrange(100)}, key=self.rng.choice("ab"))

    def ready(self, room: Room) -> None:
        room.set_player_ready(self.name, self.rng.random() < 0.9)

    def song(self, room: Room) -> None:
        room.select_song(self.name, f"song-{self.rng.randrange(3)}")

    def settings(self, room: Room) -> None:
        room.update_settings(self.name, {self.rng.choice("ab"): self.rng.choice((None, 1, 2))})

    def start(self, room: Room) -> None:
        room.start_game(self.rng.choice((self.name, None)))

    def finish(self, room: Room) -> None:
        room.finish_game(self.name, {"points": 1})

    def drop(self, room: Room) -> None:
        """Lose the connection. The server may notice before the client is back, meanwhile, afterwards, or never."""
        world, wire = self.world, self.wire
        assert wire is not None
        wire.cut = True

        noticed = self.rng.random()
        meanwhile = p.Thread(target=wire.lose, name=f"{self.name}-loss") if noticed < 0.3 else None
        if meanwhile is not None:
            meanwhile.start()
        elif noticed < 0.8:
            wire.lose()
        world.rest(self.rng)
        self.come_in()
        if noticed > 0.9:
            wire.lose()
        if meanwhile is not None:
            meanwhile.join()

    def leave(self, room: Room) -> None:
        room.remove_player(self.name)

    def kick(self, room: Room) -> None:
        room.kick(self.name, f"p{self.rng.randrange(self.world.knobs.players)}", ban=self.rng.random() < 0.2)

    def lock(self, room: Room) -> None:
        room.lock(self.name) if self.rng.random() < 0.4 else room.unlock(self.name)

    def close(self, room: Room) -> None:
        room.close("over", self.name)

    def transfer(self, room: Room) -> None:
        self.world.manager.transfer(room, self.name)

    def host(self, room: Room) -> None:
        self.world.create(f"r{self.rng.randrange(6)}", self.name)

    def look(self, room: Room) -> None:
        self.world.look(room, 0)

    def hold(self, room: Room) -> None:
        """A read block: nothing changes within it, and whoever wants to write within it is told so."""
        world = self.world
        with room.reading() as state:
            truth = world.truth(room)
            truth.check_state(state, truth.seq, f"reading() of {self.name}")
            world.scheduler.point("within reading()")
            world.scheduler.sleep(self.rng.choice(world.knobs.holds))
            if state.seq != truth.seq or truth.inside is not None:
                truth.fail("changed while it was read", f"{state.seq} became {truth.seq}")
            try:
                room.send_message(None, {})
            except (LockUpgradeError, RoomBusy):
                pass
            else:
                truth.fail("upgrade", "a reader wrote")

    def catch_up(self, room: Room) -> None:
        """Ask for what came after some event, as a client that was told of a gap does."""
        truth = self.world.truth(room)
        after = self.rng.randint(0, truth.seq)
        settled = truth.settled
        events = room.get_events(after)
        if events is None:
            return
        if [event.seq for event in events] != list(range(after + 1, after + 1 + len(events))):
            truth.fail("history", f"after {after} it has {[event.seq for event in events]}")
        if list(events) != truth.events[after : after + len(events)] or after + len(events) < settled:
            truth.fail("history", f"after {after} it has {events}")


class Server:
    """The server's own code: a thread that makes, lists, watches and removes rooms."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = random.Random(f"server {world.seed}")
        self.stops: list[Callable[[], None]] = []

    def run(self) -> None:
        names = ("create", "join_or_create", "remove", "list", "stats", "sweep", "subscribe", "unsubscribe", "seat")
        for _ in range(self.world.knobs.steps):
            self.world.rest(self.rng)
            sweeps = 12 if self.world.knobs.scenario == "expiry" else 2
            self.world.attempt(getattr(self, self.rng.choices(names, (5, 4, 1, 3, 2, sweeps, 4, 2, 3))[0]))

    def create(self) -> None:
        world = self.world
        world.create(f"r{self.rng.randrange(4)}", self.rng.choice((None, "amy", "bob")))

    def join_or_create(self) -> None:
        self.world.manager.join_or_create(f"q{self.rng.randrange(3)}", reserve=self.rng.random() < 0.7)

    def remove(self) -> None:
        self.world.manager.remove_room(f"r{self.rng.randrange(4)}")

    def list(self) -> None:
        page = self.world.manager.list_rooms(sort="players", limit=2, has_space=self.rng.choice((None, True)))
        for state in page:
            self.world.truths[state.epoch].check_state(state, 0, "list_rooms")

    def stats(self) -> None:
        stats = self.world.manager.stats()
        if stats["active_rooms"] + stats["zombie_rooms"] != stats["total_rooms"]:
            self.world.scheduler.fail("stats", str(stats))

    def sweep(self) -> None:
        """Where rooms live for a short time, at the moment at which the reaper does so too."""
        manager = self.world.manager
        if self.world.knobs.scenario == "expiry" and 0 < (pause := manager._seconds_to_next()) < 2:
            self.world.scheduler.sleep(pause)
        manager.cleanup()

    def seat(self) -> None:
        room = self.world.some_room(self.rng)
        if room is not None:
            room.add_player(f"q{self.rng.randrange(3)}")

    def subscribe(self) -> None:
        room = self.world.some_room(self.rng)
        if room is not None:
            self.stops.append(self.world.listen(room, self.rng.choice((1, 4, 1000))).stop)

    def unsubscribe(self) -> None:
        if self.stops:
            self.stops.pop(self.rng.randrange(len(self.stops)))()


class Subscriber:
    """An in-process listener."""

    def __init__(self, world: World, room: Room, limit: int, number: int) -> None:
        self.world = world
        self.room = room
        self.truth = world.truth(room)
        self.number = number
        self.stream: Stream | None = None
        self.busy = False
        self.stopped = False
        self.complete = limit > 1_000_000  # an observer: from the beginning, and nothing is left out
        self.end = room.subscribe(self.take, limit=limit)
        self.begin()

    def __str__(self) -> str:
        return f"subscriber {self.number}"

    def take(self, event: Event) -> None:
        world = self.world
        p.check_no_locks(world.scheduler, "a subscriber's callback")
        if self.busy:
            world.scheduler.fail("two deliver at once", str(self))
        self.busy = True
        try:
            world.scheduler.point("subscriber", self)
            if not self.complete:
                world.hiccup()
            stream = self.begin()
            if event.type == "gap":
                stream.gap(event.data["after"], event.data["dropped"], event.data["types"])
            else:
                stream.event(event.type, event.seq, event.data, event.conflated)
            if world.rng.random() < 0.02:
                world.look(self.room, stream.last)
            if not self.complete and world.rng.random() < 0.01:
                world.expected_errors += 1
                raise ValueError("as a subscriber with a fault would")
        finally:
            self.busy = False

    def begin(self) -> Stream:
        if self.stream is None:
            known = [one for one in self.room._fanout._subscriptions if one._callback == self.take]
            after = known[0].after_seq if known else self.truth.seq  # none: the room was closed
            self.stream = Stream(self.truth, str(self), after, lossy=not self.complete)
        return self.stream

    def stop(self) -> None:
        self.stopped = True
        self.end()
