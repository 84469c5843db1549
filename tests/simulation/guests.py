"""Those who play in shared rooms, at whichever instance they like: a client's thread, and its connections."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

from roomkit import BackendUnavailable, RoomBusy, RoomkitError, RoomNotFound
from roomkit.core import commands as c
from roomkit.core.events import Event
from roomkit.delivery import Batch
from roomkit.sharing.room import SharedRoom

from . import primitives as p

if TYPE_CHECKING:
    from .sharing import Instance, SharedWorld


class Guest:
    """A connection to a shared room."""

    def __init__(self, client: Client, instance: Instance, room: SharedRoom) -> None:
        self.client = client
        self.instance = instance
        self.room = room
        self.known = client.known
        self.epoch: str | None = None
        self.last = 0
        self.cut = False  # the client's network is gone: it hears no more
        self.hung_up = False  # and the server has noticed
        self.refused = False
        self.let_in = False  # join() has returned, or a welcome came
        self.busy = False
        self.messages = 0
        self.closes: list[tuple[int, str]] = []
        self.settled = p.Event()  # let in, refused or closed

    def __str__(self) -> str:
        return f"the connection of {self.client.name} at {self.instance}"

    @property
    def over(self) -> bool:
        return self.cut or self.refused or bool(self.closes)

    def deliver(self, batch: Batch) -> None:
        world = self.client.world
        p.check_no_locks(world.scheduler, "a connection's deliver")
        if self.busy:
            world.scheduler.fail("two deliver at once", str(self))
        if self.closes:
            world.scheduler.fail("delivered after the close", str(self))
        if self.refused:
            world.scheduler.fail("refused and yet changed", f"{self} was refused, and is delivered to")
        self.busy = True
        try:
            world.scheduler.point("deliver", self)
            world.hiccup()
            for message in batch.messages:
                self.messages += 1
                if not self.cut:
                    self.take(json.loads(message))
            if self.last and world.rng.random() < 0.1:
                self.look()
        finally:
            self.busy = False

    def look(self) -> None:
        """Whoever was told of an event reads no older state."""
        world = self.client.world
        try:
            state = self.room.get_state()
        except RoomBusy:
            return
        if state.epoch == self.epoch and state.seq < self.last:
            world.scheduler.fail("stale read", f"{self} was told {self.last} and reads {state.seq}")

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
        self.check_state(data, epoch, seq)
        events = world.ledger.logs[self.room.id, epoch].events
        self.epoch, self.last = epoch, seq
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
                if self.client.at is not None and self.client.at is not self.instance:
                    world.outcomes["resumed at another instance"] += 1
        if self.room.followed:
            world.outcomes["let in where the room is followed"] += 1
        self.client.known = (epoch, self.last)
        self.client.at = self.instance
        self.let_in = True
        self.settled.set()

    def check_state(self, data: dict[str, Any], epoch: str, seq: int) -> None:
        """The welcome's state is that of its seq, and tells the seat's token."""
        world, state = self.client.world, data["state"]
        if (state["epoch"], state["seq"]) != (epoch, seq):
            world.scheduler.fail("half a change", f"{self}: a state of {state['seq']} with seq {seq}")
        seats = world.ledger.logs[self.room.id, epoch].seats_at(seq)
        if {player["id"] for player in state["players"]} != seats:
            world.scheduler.fail("half a change", f"{self}: {state['players']} at {seq}, by the log {sorted(seats)}")
        if data["token"] != self.client.token:
            world.scheduler.fail("token", f"{self} is told {data['token']!r}, it came with {self.client.token!r}")

    def close(self, code: int, reason: str) -> None:
        world = self.client.world
        p.check_no_locks(world.scheduler, "a connection's close")
        world.scheduler.point("close", f"{self} {code}")
        if self.closes:
            world.scheduler.fail("closed twice", f"{self}: {self.closes}, {code}")
        if code == 1012 and id(self.room) not in world.broken_off:
            world.scheduler.fail("closed without cause", f"{self}: {reason}")
        world.outcomes[f"closed {code}"] += 1
        self.closes.append((code, reason))
        self.settled.set()


class Client:
    """Plays in one room, at whichever instance: it comes in anywhere, and comes back anywhere."""

    def __init__(self, world: SharedWorld, room_id: str, name: str) -> None:
        self.world = world
        self.room_id = room_id
        self.name = name
        self.token = f"token-of-{name}".ljust(24, "-")  # its own, so that it can come back when its welcome was lost
        self.rng = random.Random(f"{name} {world.seed}")
        self.known: tuple[str, int] | None = None
        self.at: Instance | None = None  # where it was welcomed last
        self.guest: Guest | None = None
        self.sent = 0

    def run(self) -> None:
        world = self.world
        names = ("submit", "say", "ready", "drop", "leave", "told", "listen", "settings", "kick")
        for _ in range(world.bounds.steps):
            if world.bounds.pause and self.rng.random() < 0.5:
                world.scheduler.sleep(self.rng.random() * 2 * world.bounds.pause)
            guest = self.guest
            if guest is None or guest.over:
                world.attempt(self.come_in)
                continue
            operation = getattr(self, self.rng.choices(names, (30, 20, 5, 12, 3, 5, 3, 3, 1))[0])
            world.attempt(lambda operation=operation, room=guest.room: operation(room))

    # In and out.

    def come_in(self) -> None:
        """At any instance, wherever the room is; by a thread that waits, or as a session does, which does not."""
        world = self.world
        self.guest = None
        instance = self.rng.choice(world.instances)
        try:
            room: Any = instance.manager.get_room(self.room_id)
        except RoomNotFound:
            room = world.stored(lambda: instance.manager.create_room(self.room_id))
        known: dict[str, Any] = {}
        if self.known is not None:
            known = {"epoch": self.known[0], "seq": self.known[1]}
        guest = Guest(self, instance, room)
        world.guests.append(guest)
        if self.rng.random() < 0.5:
            self.wait_to_come_in(guest, known)
        else:
            self.ask_to_come_in(guest, known)

    def wait_to_come_in(self, guest: Guest, known: dict[str, Any]) -> None:
        room = guest.room
        try:
            joined = self.world.stored(lambda: room.join(self.name, guest, token=self.token, **known))
        except BackendUnavailable:  # it may have been carried out
            self.hang_up(guest)
            raise
        except RoomkitError as error:
            self.was_refused(guest, error)
            raise
        self.world.ledger.check_stored(room.id, joined.state.epoch, joined.state.seq, f"join() of {self.name}")
        guest.let_in = True
        self.guest = guest

    def ask_to_come_in(self, guest: Guest, known: dict[str, Any]) -> None:
        errors: list[RoomkitError] = []

        def refuse(error: RoomkitError) -> None:
            p.check_no_locks(self.world.scheduler, "a refusal")
            errors.append(error)
            if not isinstance(error, BackendUnavailable):
                self.was_refused(guest, error)
            guest.settled.set()

        guest.room.submit_join(self.name, guest, refuse, token=self.token, **known)
        waits = self.rng.choice((0.01, 0.5, 10.0, 10.0))  # an impatient client goes
        if not guest.settled.wait(waits):
            if waits == 10.0 and not self.world.troubled(guest.instance):
                self.world.scheduler.fail("neither let in nor refused", f"{guest}, for {waits} s")
            self.world.outcomes["went while it was let in"] += 1
            self.hang_up(guest)
        elif errors:
            self.hang_up(guest)
            raise errors[0]
        else:
            self.guest = guest

    def was_refused(self, guest: Guest, error: RoomkitError) -> None:
        if guest.messages or guest.closes:
            self.world.scheduler.fail("refused and yet changed", f"{guest} was used, and {error!r} raised")
        guest.refused = True

    def hang_up(self, guest: Guest) -> None:
        """As a server that notices: until it is done."""
        guest.cut = True
        for _ in range(20):
            try:
                guest.room.remove_connection(self.name, guest)
                guest.hung_up = True
                return
            except RoomkitError as error:
                self.world.refused(error)
                self.world.scheduler.sleep(0.1)

    def drop(self, room: SharedRoom) -> None:
        """Its network is gone; the server notices, or does not before it is back."""
        guest = self.guest
        assert guest is not None
        guest.cut = True
        if self.rng.random() < 0.7:
            self.hang_up(guest)
        if self.rng.random() < 0.5:
            self.come_in()

    # Operations.

    def next_name(self) -> str:
        self.sent += 1
        return f"{self.name}.{self.sent}"

    def submit(self, room: SharedRoom) -> None:
        """As a session does: the answer comes behind the events, by the thread that delivers them."""
        world, name = self.world, self.next_name()
        settled = p.Event()
        guest = self.guest
        epoch = room._machine.epoch

        def answer(seq: int) -> None:
            world.outcomes["acknowledged"] += 1
            p.check_no_locks(world.scheduler, "an answer")
            world.ledger.check_acknowledged(room.id, epoch, name, seq)
            if guest is not None and not guest.over and guest.last < seq:
                world.scheduler.fail("answered too early", f"{name}: {seq}, {guest} is at {guest.last}")
            if settled.is_set():
                world.scheduler.fail("answered twice", name)
            settled.set()

        def refuse(error: RoomkitError) -> None:
            p.check_no_locks(world.scheduler, "a refusal")
            world.outcomes["refused later"] += 1
            if not isinstance(error, BackendUnavailable):
                world.ledger.refuse(name)
            if settled.is_set():
                world.scheduler.fail("answered twice", name)
            settled.set()

        try:
            room.submit(c.SendMessage(self.name, {"n": name}, None), answer, refuse)
        except BackendUnavailable:
            raise
        except RoomkitError:
            world.ledger.refuse(name)
            raise
        if self.rng.random() < 0.4:
            settled.wait(0.2)

    def say(self, room: SharedRoom) -> None:
        name = self.next_name()
        try:
            self.world.stored(lambda: room.send_message(self.name, {"n": name}))
        except BackendUnavailable:  # nobody knows
            raise
        except RoomkitError:
            self.world.ledger.refuse(name)
            raise
        if not any(name in log.names for log in self.world.ledger.logs.values()):
            self.world.scheduler.fail("told, not stored", f"{name} was said and is in no log")

    def ready(self, room: SharedRoom) -> None:
        self.world.stored(lambda: room.set_player_ready(self.name, self.rng.random() < 0.7))

    def settings(self, room: SharedRoom) -> None:
        self.world.stored(lambda: room.update_settings(self.name, {"a": self.rng.randrange(3)}))

    def kick(self, room: SharedRoom) -> None:
        self.world.stored(lambda: room.kick(self.name, f"p{self.rng.randrange(self.world.bounds.players)}"))

    def leave(self, room: SharedRoom) -> None:
        self.world.stored(lambda: room.remove_player(self.name))

    def told(self, room: SharedRoom) -> None:
        epoch, seq = room._machine.epoch, room._machine.seq
        ledger = self.world.ledger
        room.when_stored(lambda: ledger.check_stored(room.id, epoch, seq, f"when_stored() of {self.name}"))

    def listen(self, room: SharedRoom) -> None:
        world, epoch, last = self.world, room._machine.epoch, [0]

        def heard(event: Event) -> None:
            p.check_no_locks(world.scheduler, "a subscriber's callback")
            world.ledger.check_told(room.id, epoch, as_told(event), f"a subscriber of {self.name}")
            if event.seq <= last[0] or (last[0] and event.seq != last[0] + 1):
                world.scheduler.fail("twice, out of order or a hole", f"a subscriber: {event.seq} after {last[0]}")
            last[0] = event.seq

        room.subscribe(heard, limit=10_000_000)


def as_told(event: Event) -> dict[str, Any]:
    return {"seq": event.seq, "type": event.type, "data": dict(event.data)}
