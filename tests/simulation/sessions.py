"""Players who come by a session: the real ``RoomSession`` behind a simulated WebSocket, and a client that speaks JSON.

A :class:`SessionWire` is both ends of one connection. Its server's end is all that a session uses of a
``WebSocketConnection``: what a room delivers and what the session replies go into one outbox, in the order of the real
one, and reach the client when the I/O thread flushes it, or later, when the client is slow. What a message did is
looked at as soon as the session returns; what it was answered, when the client reads it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from roomkit import Room
from roomkit.core import commands as c
from roomkit.core.events import Event, rfc3339
from roomkit.delivery import Batch
from roomkit.errors import CLOSE
from roomkit.server.reactor import Reactor
from roomkit.server.session import JoinRequest, RoomSession

from . import primitives as p
from .actors import Memory, Player, Wire
from .checks import Truth
from .lines import Line

if TYPE_CHECKING:
    from .world import World

#: What the connection or its session closes with by itself; the room may not have heard of it yet.
OWN_CODES = frozenset(CLOSE[name] for name in ("unsupported_data", "policy_violation", "too_slow", "over_limit"))
#: Closed with one of these, a connection has got all events of what it asked for before.
TOLD_ALL = (CLOSE["normal"], CLOSE["room_closed"])
#: Bad messages after which a session closes its connection.
MOST_BAD = 20
#: Messages over the rate after which the connection closes itself, as the real one does.
MOST_OVER_RATE = 6
#: Messages that may wait for a slow client.
OUTBOX = 12
#: Virtual seconds after which the rest of the closing handshake is not waited for.
CLOSE_TIMEOUT = 1.0
#: Longer than anybody waits for an answer or a welcome.
PATIENCE = 600.0


class StandIn:
    """What a session uses of ``roomkit.server.Server`` while no rooms are shared."""

    def __init__(self, world: World) -> None:
        self.rooms = world.manager
        self.tally = world.manager.tally
        self.greeting = {"ping_interval": 20.0, "pong_timeout": 60.0}
        self.wall_clock = p.wall


class Sent:
    """A message that a client has sent, and what is known of it."""

    def __init__(self, text: str | bytes, message_id: str | None, kind: str) -> None:
        self.text = text
        self.id = message_id
        self.kind = kind  # bad, binary, or its type
        self.handled = False  # by the session
        self.made = 0  # the last event that it made in its room
        self.answered = p.Event()


class SessionLine(Line):
    """The handler of a :class:`SessionWire` on its room's I/O thread: reads messages, flushes, notices the loss."""

    wire: SessionWire

    def __init__(self, world: World, wire: SessionWire, room: Room) -> None:
        self.sent: list[Sent] = []
        wire.line = self  # the I/O thread may open it at once
        super().__init__(world, wire, room)

    @property
    def ended(self) -> bool:
        return self._ended

    def send(self, sent: Sent) -> bool:
        """The client's thread; False: the connection is gone."""
        self.sent.append(sent)
        try:
            self._client.send(b"\0")
        except OSError:
            return False
        return True

    def _begin(self) -> None:
        super()._begin()
        self.wire.open()

    def on_io(self, mask: int) -> None:
        received = self._server.recv(4096)
        if not received:
            self.lose()
            return
        for _ in received:
            if not self._ended:
                self.wire.receive(self.sent.pop(0))

    def flush(self) -> None:
        self._dirty = False
        if not self._ended:
            self.wire.flush()

    def lose(self) -> None:
        if not self._ended:
            self.wire.cut = True
            self._end()
            self.wire.lost()

    abort = lose


class SessionWire(Wire):
    """See the module."""

    line: SessionLine

    def __init__(self, world: World, player: Player, room: Room, known: Memory | None, token: str) -> None:
        self.session = RoomSession(
            world.server,  # type: ignore[arg-type]
            room,
            JoinRequest(
                room.id,
                player.name,
                token=token,
                epoch=known.epoch if known is not None else None,
                seq=known.seq if known is not None else None,
            ),
        )
        # The server's end.
        self.outbox: list[bytes | None] = []  # None: the close frame
        self.replies: list[bytes] = []
        self.close_sent = False
        self.stalled = False
        self.spent: list[bool] = []  # what was said of the rate, to the message that is being handled
        self.over_rate = 0
        self.bad = 0
        # The client's end.
        self.count = 0
        self.pending: dict[str, Sent] = {}  # by id
        self.told_close = False
        self.let_in = p.Event()  # or not: then it is closed
        player.wire = self  # the welcome may come at once
        super().__init__(world, player, room, known, True)

    def make_line(self) -> SessionLine:
        return SessionLine(self.world, self, self.room)

    def fail(self, kind: str, text: str) -> None:
        self.world.scheduler.fail(kind, f"{self} of room {self.room.id}: {text}")

    def note(self, what: str) -> None:
        self.world.outcomes[f"session: {what}"] += 1

    # The server's end: what a WebSocketConnection is to its session and its room.

    @property
    def reactor(self) -> Reactor:
        return self.line.reactor

    def open(self) -> None:
        self.session.on_open(self)  # type: ignore[arg-type]
        self.attached = not self.closes

    def deliver(self, batch: Batch) -> None:
        world = self.world
        p.check_no_locks(world.scheduler, "a connection's deliver")
        self.check_thread()
        if self.busy:
            world.scheduler.fail("two deliver at once", str(self))
        if self.closes and self.closes[0][0] not in OWN_CODES:
            world.scheduler.fail("delivered after the close", str(self))
        self.busy = True
        try:
            world.scheduler.point("deliver", self)
            world.hiccup()
            world.deliveries += len(batch.messages)
            if not self.closes and not self.line.ended:
                self.outbox += batch.messages
                self.line.mark_dirty()
            if world.rng.random() < 0.01 and not self.cut:  # the network is gone at this very moment
                self.cut = True
                self.lose()
        finally:
            self.busy = False

    def reply(self, payload: bytes) -> None:
        self.check_thread()
        if not self.close_sent and not self.line.ended:
            self.replies.append(payload)
            self.line.mark_dirty()

    def close(self, code: int, reason: str = "") -> None:
        p.check_no_locks(self.world.scheduler, "a connection's close")
        self.check_thread()
        self.world.scheduler.point("close", f"{self} {code}")
        if not self.closes and not self.line.ended:
            self.closes.append((code, reason))
            self.line.mark_dirty()

    def spend(self, cost: float = 1.0) -> bool:
        self.check_thread()
        within = self.world.rng.random() >= self.world.knobs.over_rate
        self.spent.append(within)
        if not within:
            self.over_rate += 1
            if self.over_rate > MOST_OVER_RATE:
                self.close(CLOSE["over_limit"], "too many messages")
        return within

    def flush(self) -> None:
        world = self.world
        self.check_thread()
        world.scheduler.point("flush", self)
        self.outbox += self.replies
        self.replies.clear()
        if self.stalled and len(self.outbox) > OUTBOX and not self.closes:
            self.outbox.clear()
            self.closes.append((CLOSE["too_slow"], "the outbox is full"))
        if self.closes and not self.close_sent:
            self.close_sent = True
            self.outbox.append(None)
            self.reactor.call_later(CLOSE_TIMEOUT, self.line.lose)
        if not self.stalled and not world.ending and world.rng.random() < world.knobs.stalling:
            self.stalled = True
            self.reactor.call_later(world.rng.choice((0.01, 0.3)), self.go_on)
        if not self.stalled:
            outbox, self.outbox = self.outbox, []
            for message in outbox:
                if not self.cut:
                    self.read(message)

    def go_on(self) -> None:
        """A slow client reads again."""
        self.stalled = False
        if not self.line.ended:
            self.line.mark_dirty()

    def lost(self) -> None:
        """The connection is gone: called once."""
        code, reason = self.closes[0] if self.closes else (1006, "")
        if self.stream is None and not self.closes:
            self.note("lost before the welcome")
        self.session.on_close(code, reason)
        if self.is_attached():
            self.note("loss told later")
        self.wake_all()

    def is_attached(self) -> bool:
        link = self.room._fanout._links.get(self.player.name)
        return link is not None and link.connection is self

    def receive(self, sent: Sent) -> None:
        """Hand a message to the session, and judge what it did."""
        if self.closes:
            return
        world = self.world
        me = world.scheduler.current
        self.spent.clear()
        before, replied = world.truth(self.room).seq, len(self.replies)
        began = rfc3339(p.wall())
        world.noted[me] = noted = []
        try:
            self.session.on_message(sent.text)
        finally:
            del world.noted[me]
        sent.handled = True
        done = [
            (command, events)
            for room, command, events in noted
            if room is self.room and type(command) is not c.Disconnect
        ]
        self.judge(sent, done, [json.loads(reply) for reply in self.replies[replied:]], before, began)

    def judge(
        self,
        sent: Sent,
        done: list[tuple[c.Command, list[Event]]],
        answers: list[dict[str, Any]],
        before: int,
        began: str,
    ) -> None:
        what = f"{sent.kind} {sent.id} {sent.text!r:.80}: {answers}"
        if sent.kind == "binary":
            if answers or done or not self.closes:
                self.fail("binary", what)
            return
        if len(self.spent) != 1:
            self.fail("rate", f"{what} was counted {len(self.spent)} times")
        if [answer.get("id") for answer in answers] not in ([sent.id], [None] if sent.id is None else [sent.id], []):
            self.fail("answers", what)
        if not answers:
            if sent.id is not None or sent.kind in ("bad", "state", "ping"):
                self.fail("not answered", what)
            if not done:
                self.fail("neither done nor refused", what)
            return
        (answer,) = answers
        code = answer["data"].get("code") if answer["type"] == "error" else None
        if code is not None and done:
            self.fail("refused and yet changed", f"{what}, and {done}")
        if sent.kind == "bad":
            self.bad += 1
            if code != "invalid_message":
                self.fail("answers", what)
            if (self.bad > MOST_BAD) is not any(closed == CLOSE["policy_violation"] for closed, _ in self.closes):
                self.fail("bad messages", f"{self.bad}, closed with {self.closes}")
        elif not self.spent[0]:
            if code != "limit_exceeded":
                self.fail("rate", f"{what}, which is too many")
            self.note("over the rate")
        elif code == "invalid_message" and sent.kind != "kick":  # a host that would kick itself
            self.fail("answers", what)
        elif code is None:
            self.judge_ack(sent, done, answer["data"], before, began)

    def judge_ack(
        self, sent: Sent, done: list[tuple[c.Command, list[Event]]], data: dict[str, Any], before: int, began: str
    ) -> None:
        """It was carried out: the seq is that of its events, or what it tells is so."""
        truth = self.stream.truth if self.stream is not None else self.world.truth(self.room)
        if sent.kind == "ping":
            if not began <= data["time"] <= rfc3339(p.wall()) or done:
                self.fail("answers", f"ping: {data}, and {done}")
            return
        if sent.kind == "state":
            if "state" in data:
                truth.check_state(data["state"], min(before, truth.settled), f"state asked for by {self}")
            else:
                self.judge_events(truth, json.loads(sent.text)["data"]["after"], data)
            return
        if len(done) != 1:
            self.fail("told, not done", f"{sent.kind} {data}: {done}")
        events = done[0][1]
        if events:
            sent.made = events[-1].seq
        least, most = (sent.made, sent.made) if events else (before, truth.machine.seq)
        if not least <= data["seq"] <= most:
            self.fail("another seq", f"{sent.kind} is told {data}, its events: {events}")

    def judge_events(self, truth: Truth, after: int, data: dict[str, Any]) -> None:
        told = [(event["seq"], event["type"], event["data"]) for event in data["events"]]
        known = [(event.seq, event.type, event.data) for event in truth.events[after : after + len(told)]]
        if told != known or data["seq"] < after + len(told):
            self.fail("history", f"after {after}: {data}")

    # The client's end, when the I/O thread writes to it.

    def read(self, message: bytes | None) -> None:
        if self.told_close:
            self.fail("after the close", str(message))
        if message is None:
            code = self.closes[0][0]
            self.told_close = True
            self.note(f"closed {code}")
            if code != CLOSE["too_slow"]:
                self.take_close(code)
                self.check_answered()
            self.reactor.call_later(self.world.rng.choice((0.0, 0.1)), self.line.lose)
            self.wake_all()
        else:
            self.take(json.loads(message))

    def take(self, message: dict[str, Any]) -> None:
        if message["type"] not in ("ack", "error"):
            super().take(message)
            return
        if self.stream is None:
            self.world.scheduler.fail("welcome first", f"{self} got {message} before")
        kind = message["type"] if message["type"] == "ack" else message["data"]["code"]
        self.note(kind)
        if kind != "ack":
            self.world.outcomes[kind] += 1
        message_id = message.get("id")
        if message_id is None:
            return
        sent = self.pending.pop(message_id, None)
        if sent is None:
            self.fail("answered twice", f"{message}")
            return
        if kind == "ack" and (not self.closes or self.closes[0][0] in TOLD_ALL):
            self.line.check_told(sent.made)
        sent.answered.set()

    def take_welcome(self, data: dict[str, Any]) -> None:
        super().take_welcome(data)
        if any(data.get(name) != value for name, value in self.world.server.greeting.items()):
            self.fail("greeting", str(data))
        if self.world.truth(self.room).machine.epoch != data["epoch"] or data["player_id"] != self.player.name:
            self.fail("another's welcome", str(data))
        self.note("welcome")
        if data["recovered"]:
            self.note("resumed")
        self.let_in.set()

    def welcomed(self, data: dict[str, Any], start: int) -> None:
        if self.player.wire is self:
            super().welcomed(data, start)

    def remember(self, seq: int) -> None:
        if self.player.wire is self:  # else the newer one counts
            super().remember(seq)

    def check_answered(self) -> None:
        """What the session has handled is answered, or the connection has ended before."""
        for sent in self.pending.values():
            if sent.handled:
                self.fail("not answered", f"{sent.kind} {sent.id}")

    def check_at_rest(self) -> None:
        if self.is_attached():
            if self.cut:
                self.fail("gone and attached", f"its connection is lost, closed with {self.closes}")
            if not self.closes:
                self.check_answered()
        elif not self.line.ended and not self.closes:
            self.fail("forgotten", "open, and not of its room")
        if self.closes and not self.line.ended:
            self.fail("closed and open", str(self.closes))

    def wake_all(self) -> None:
        self.let_in.set()
        for sent in list(self.pending.values()):
            sent.answered.set()

    # The client's thread.

    def enter(self, memory: Memory | None) -> bool:
        """Wait for the welcome; some send something, or are gone, before it has come."""
        rng = self.player.rng
        if rng.random() < 0.2:
            for operation in rng.choices(("message", "ready", "ping"), k=rng.randint(1, 3)):
                self.send(*self.compose(operation))
        if rng.random() < self.world.knobs.vanishing:
            self.world.rest(rng)
            self.cut = True
            self.lose()
            return True
        self.wait(self.let_in, "neither let in nor refused")
        if self.stream is None and self.closes and not self.line.ended:
            self.note(f"refused {self.closes[0][0]}")
        return self.stream is not None or not self.closes

    def wait(self, event: Any, what: str) -> None:
        while not event.wait(PATIENCE):
            if not self.world.late:
                self.fail(what, f"for {PATIENCE} s")

    def carry_out(self, operation: str) -> None:
        """Send what stands for an operation, and often something else besides; wait for the answer, or do not."""
        rng = self.player.rng
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            self.ask(operation)
            if rng.random() < 0.3:
                operation = rng.choice(("ping", "bad", "look", "message", "catch_up", "perform"))
        extra = rng.random()
        if extra < 0.02:
            for _ in range(rng.randint(5, 25)):
                self.ask("bad")
        elif extra < 0.03:
            self.send(b"\0", None, "binary")
        elif extra < 0.06:
            self.player.come_in()  # with a newer connection, while this one is up

    def ask(self, operation: str) -> None:  # type: ignore[override]
        sent = self.send(*self.compose(operation))
        if sent is not None and self.player.rng.random() < 0.6:
            self.wait(sent.answered, "not answered")

    def send(self, text: str | bytes, message_id: str | None, kind: str) -> Sent | None:
        """None: it has no id, or the connection is gone."""
        sent = Sent(text, message_id, kind)
        if message_id is not None:
            self.pending[message_id] = sent
        if not self.line.send(sent) or self.line.ended or self.told_close:
            sent.answered.set()
            return None
        return sent if message_id is not None else None

    def compose(self, operation: str) -> tuple[str, str | None, str]:
        """The text, its id, and its kind."""
        rng = self.player.rng
        self.count += 1
        message_id = f"{self.player.name}-{self.count}" if rng.random() < 0.75 else None
        if operation == "bad":
            return *self.compose_bad(message_id), "bad"
        type_, data, *key = _MESSAGES[operation](self)
        message: dict[str, Any] = {"type": type_}
        if data is not None:
            message["data"] = data
        if key:
            message["key"] = key[0]
        if message_id is not None:
            message["id"] = message_id
        return json.dumps(message), message_id, type_

    def compose_bad(self, message_id: str | None) -> tuple[str, str | None]:
        message: dict[str, Any] = {} if message_id is None else {"id": message_id}
        pick = self.player.rng.randrange(6)
        if pick == 0:
            return self.player.rng.choice(("{", "null", "", "[1]")), None
        if pick == 1:
            return json.dumps({"type": "ping", "id": "x" * 65}), None
        wrong: dict[str, Any] = {
            2: {"type": "dance"},
            3: {"type": "ready", "data": {"ready": "yes"}},
            4: {"type": "message", "data": {}, "more": 1},
            5: {"type": "kick"},
        }[pick]
        return json.dumps({**message, **wrong}), message_id

    def somebody(self) -> str:
        return f"p{self.player.rng.randrange(self.world.knobs.players)}"

    def number(self) -> int:
        return self.player.rng.randrange(100)


def _state_after(wire: SessionWire) -> tuple[Any, ...]:
    return "state", {"after": wire.player.rng.randint(0, wire.stream.last if wire.stream is not None else 3)}


#: Type and data of what stands for an operation (knobs.py) at a session.
_MESSAGES: dict[str, Any] = {
    "message": lambda wire: ("message", {"n": wire.number()}),
    "keyed": lambda wire: ("message", {"at": wire.number()}, wire.player.rng.choice("ab")),
    "ready": lambda wire: ("ready", wire.player.rng.choice((None, {"ready": True}, {"ready": False}))),
    "song": lambda wire: ("select_song", {"song_id": f"song-{wire.player.rng.randrange(3)}"}),
    "settings": lambda wire: (
        "update_settings",
        {"settings": {wire.player.rng.choice("ab"): wire.player.rng.choice((None, 1, 2))}},
    ),
    "start": lambda wire: ("start_game", None),
    "finish": lambda wire: ("finish_game", wire.player.rng.choice((None, {"results": {"points": 1}}))),
    "leave": lambda wire: ("leave", None),
    "kick": lambda wire: ("kick", {"player_id": wire.somebody(), "ban": wire.player.rng.random() < 0.2}),
    "lock": lambda wire: ("lock", {"locked": wire.player.rng.random() < 0.4}),
    "close": lambda wire: ("close", {"reason": "over"}),
    "transfer": lambda wire: ("rematch", None),
    "perform": lambda wire: ("perform", {"operation": "nothing"}),
    "look": lambda wire: ("state", None),
    "catch_up": _state_after,
    "ping": lambda wire: ("ping", {}),
}
