"""What travels from a room's queue to those who listen: batches, control items, connections and subscriptions."""

from __future__ import annotations

import logging
import struct
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from roomkit.concurrency.worker import Worker
from roomkit.core.events import Event, encode_json

log = logging.getLogger("roomkit.delivery")


class Batch:
    """Messages (JSON, UTF-8) in order, and the same as WebSocket frames, made once for all who get them.

    Attributes:
        frames: all messages as unmasked, uncompressed text frames (RFC 6455, section 5.2), joined.

    Thread safety: immutable.
    """

    __slots__ = ("frames", "messages")

    def __init__(self, messages: Sequence[bytes]) -> None:
        self.messages = messages
        self.frames = text_frame(messages[0]) if len(messages) == 1 else b"".join(map(text_frame, messages))

    def __len__(self) -> int:
        return len(self.messages)


_SHORT = [bytes((0x81, length)) for length in range(126)]  # headers


def text_frame(payload: bytes) -> bytes:
    """One unfragmented, unmasked text frame, as a server sends it (RFC 6455, section 5.2)."""
    length = len(payload)
    if length < 126:
        return _SHORT[length] + payload
    if length < 65536:
        return b"\x81\x7e" + length.to_bytes(2, "big") + payload
    return struct.pack("!BBQ", 0x81, 127, length) + payload


class Connection(Protocol):
    """What carries a room's messages to one player. The bundled server's WebSockets are one; a user may bring others.

    Both methods are called by the room's broadcaster, never under a lock and never by two threads at once. They must
    not block: a connection that cannot take more keeps its own bounded outbox and gives up (closes itself) past it. An
    exception from ``deliver`` is logged and counted; the connection is dropped, as by a lost network, and closed
    (1011).
    """

    def deliver(self, batch: Batch) -> None:
        """Send these messages, after those of earlier calls."""

    def close(self, code: int, reason: str) -> None:
        """Send what was delivered, then close with a code of ``roomkit.errors.CLOSE_CODES``. May be called again."""


class Link:
    """A player's place in a room's delivery: its connection, and the last event that it has.

    ``after_seq`` is at first that of the welcome's state; from then on only the broadcaster's thread moves it.
    ``ended``: its connection was closed by the room and gets nothing more; only the broadcaster's thread looks at it.
    ``number``: of a shared room, which of its instance's connections it is; 0: nobody else asks.
    """

    __slots__ = ("after_seq", "connection", "ended", "number", "player_id")

    def __init__(self, player_id: str, connection: Connection, after_seq: float, number: int = 0) -> None:
        self.player_id = player_id
        self.connection = connection
        self.after_seq = after_seq
        self.ended = False
        self.number = number


class SendTo(NamedTuple):
    """Control item: messages for one link only, in order with the events around it."""

    link: Link
    messages: Callable[[], Sequence[bytes]]


class Answer(NamedTuple):
    """Control item: something to be told in order with the events, e.g. that an operation was carried out."""

    tell: Callable[[], None]


class CloseLink(NamedTuple):
    """Control item: close one link's connection."""

    link: Link
    code: int
    reason: str


class CloseAll(NamedTuple):
    """Control item: close every connection and end every subscription; no event follows."""

    code: int
    reason: str


def welcome_messages(
    data: Callable[[], dict[str, Any]], replay: Sequence[Event] | None
) -> Callable[[], Sequence[bytes]]:
    """The first messages on a connection, encoded only when they are sent, away from the room's lock."""

    def encode() -> Sequence[bytes]:
        messages = [encode_json({"type": "welcome", "data": data()})]
        messages.extend(encode_json(event) for event in replay or ())
        return messages

    return encode


def gap_event(after: int, types: dict[str, int], timestamp: str) -> Event:
    """A notice that events were not delivered."""
    return Event("gap", 0, timestamp, {"after": after, "dropped": sum(types.values()), "types": types})


def encode_gap(event: Event) -> bytes:
    """A gap notice as on the wire, where it has neither seq nor timestamp."""
    return encode_json({"type": "gap", "data": event.data})


class Subscription:
    """An in-process listener: ``callback(event)`` in seq order, on a thread of its own, never on an I/O thread.

    Its outbox is bounded like a slow connection's: past ``limit`` waiting events newer droppable and critical ones
    alike are left out, counted, and announced by a ``gap`` event after those that waited. A callback that raises is
    logged and counted. Neither touches anybody else.

    Monitor: ``_lock`` guards ``_outbox`` and the gap; the callback runs without it.

    Thread safety: full. Nothing blocks but :meth:`stop` with a timeout.
    """

    def __init__(
        self, name: str, callback: Callable[[Event], None], after_seq: int, limit: int, on_error: Callable[[], None]
    ) -> None:
        self.after_seq = after_seq
        self._callback = callback
        self._limit = limit
        self._on_error = on_error
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._outbox: list[Event] = []
        self._gap_after = 0
        self._gap_types: Counter[str] | None = None
        self._gap_timestamp = ""
        self.dropped = 0
        self.errors = 0
        self._ended = False
        self._worker = Worker(name, self._run)

    @property
    def running(self) -> bool:
        """Whether there is a thread at this moment."""
        return self._worker.running

    def offer(self, events: Sequence[Event]) -> int:
        """Take events for the callback; returns how many had no place."""
        lost = 0
        with self._lock:
            if self._ended:
                return 0
            for event in events:
                if event.seq and event.seq <= self.after_seq:
                    continue
                if len(self._outbox) >= self._limit and event.type != "room_closed":
                    lost += self._note_lost_locked(event)
                    continue
                self._tell_gap_locked()
                self._outbox.append(event)
            self.dropped += lost
        self._worker.wake()
        return lost

    def _note_lost_locked(self, event: Event) -> int:
        """Have the next gap notice tell of ``event``; a notice that has no place itself hands on what it told."""
        told = event.type == "gap"
        if self._gap_types is None:
            self._gap_types = Counter()
            self._gap_after = event.data["after"] if told else event.seq - 1
        self._gap_types.update(event.data["types"] if told else (event.type,))
        self._gap_timestamp = event.timestamp
        return 0 if told else 1  # the room has counted those already

    def _tell_gap_locked(self) -> None:
        if self._gap_types is not None:
            self._outbox.append(gap_event(self._gap_after, dict(self._gap_types), self._gap_timestamp))
            self._gap_types = None

    def _run(self) -> None:
        with self._lock:
            self._tell_gap_locked()  # what was left out came after everything in the outbox
            events, self._outbox = self._outbox, []
        for event in events:
            if self._ended:
                return
            try:
                self._callback(event)
            except BaseException:  # SystemExit too: it would take the events behind this one with it
                self.errors += 1
                self._on_error()
                log.exception("a subscriber of %s failed on %s and goes on", self._worker.name, event.type)
            if event.type == "room_closed":
                self.request_stop()

    def request_stop(self) -> None:
        """No callback begins after this one."""
        self._ended = True
        self._worker.request_stop()

    def stop(self, timeout: float = 0.0) -> bool:
        """:meth:`request_stop`, and wait at most ``timeout`` seconds for a callback that runs; False if it still
        does.
        """
        self._ended = True
        return self._worker.stop(timeout)

    def join(self, timeout: float) -> bool:
        """After :meth:`finish`: wait at most ``timeout`` seconds for the last callback; False if it still runs."""
        return self._worker.stop(timeout)

    def finish(self) -> None:
        """Deliver what is in the outbox, then end."""
        self._worker.wake()
        self._worker.request_stop()
