"""Fanout: the delivery half of a room. Who listens, what waits for them, and how it reaches them.

The room calls it under its write lock to publish (``*_locked``), and its broadcaster's thread calls
:meth:`Fanout.drain`. The two meet in the queue alone: what the broadcaster reads besides is replaced as a whole, never
changed in place.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from threading import get_ident
from time import monotonic
from typing import Any, Protocol

import msgspec

from roomkit.broadcaster import Broadcaster, BroadcasterFactory, ThreadBroadcaster
from roomkit.concurrency.eventqueue import Entry, EventQueue, Gap, join_gaps
from roomkit.core.config import RoomConfig
from roomkit.core.events import CRITICAL_TYPES, Event, encode_json, rfc3339
from roomkit.delivery import (
    Answer,
    Batch,
    CloseAll,
    CloseLink,
    Connection,
    Link,
    SendTo,
    Subscription,
    encode_gap,
    gap_event,
)
from roomkit.errors import CLOSE, RoomBusy
from roomkit.runtime import Pressure, Runtime

log = logging.getLogger("roomkit.room")

_LEAVE_CODES = {
    "left": (CLOSE["normal"], "left"),
    "kicked": (CLOSE["kicked"], "kicked by the host"),
    "banned": (CLOSE["kicked"], "banned by the host"),
    "expired": (CLOSE["room_not_found"], "the seat was given up"),
}

#: Over about how many of the last events the share of dropped ones is judged.
_DROP_WINDOW = 100


class Owner(Protocol):
    """The room, as its fanout sees it. Both are called without any lock."""

    def drop_link(self, link: Link) -> bool:
        """Its connection failed."""

    def on_pressure(self, pressure: Pressure) -> None:
        """The queue's load or the share of dropped events has passed its watermark."""


class Fanout:
    """See the module. One per room.

    Args:
        owner: the room, weakly, so that one that is gone leaves no reference cycle behind.

    Thread safety: ``*_locked`` under the room's write lock; :meth:`drain` and what it calls by the broadcaster's
    thread; the rest by any.
    """

    __slots__ = (
        "__weakref__",
        "_config",
        "_drainer",
        "_factory",
        "_held",
        "_leaving",
        "_links",
        "_lost",
        "_owner",
        "_passed",
        "_plenty",
        "_runtime",
        "_seen",
        "_subscriptions",
        "_untold",
        "_view",
        "broadcaster",
        "queue",
        "room_id",
        "stopped",
    )

    def __init__(
        self,
        room_id: str,
        config: RoomConfig,
        runtime: Runtime,
        broadcaster: BroadcasterFactory,
        owner: weakref.ref[Owner],
    ) -> None:
        self.room_id = room_id
        self.queue = EventQueue(config.queue_size, config.queue_ceiling)
        self.broadcaster: Broadcaster = broadcaster(room_id, self.drain)
        self._factory = broadcaster
        self._config = config
        self._plenty = int(config.watermark * config.queue_size)  # places that may be taken without a further look
        self._runtime = runtime
        self._owner = owner
        # Guarded by the room's write lock:
        self._links: dict[str, Link] = {}
        self.stopped = False  # its threads were told to end for good
        # Written under the room's write lock, read without it (each is one immutable object, replaced as a whole):
        self._view: tuple[Link, ...] = ()
        self._subscriptions: tuple[Subscription, ...] = ()
        # Links whose player has left, until they are closed: added under the room's write lock, read and taken out by
        # the broadcaster's thread, each in one step.
        self._leaving: dict[Link, None] = {}
        # The id of the thread that is in drain(); only ever compared by a thread with its own id.
        self._drainer: int | None = None
        # Of a shared room: what was taken out and is stored, to be delivered. Added to by the thread that stores, taken
        # from by the broadcaster's, each in one step. None: what is queued is delivered as it is.
        self._held: deque[tuple[list[Entry], Gap | None]] | None = None
        # What could not be delivered, to be told before what comes next; only the broadcaster's thread touches it.
        self._untold: Gap | None = None
        # For the watermark hook; a race only moves the moment at which it is called.
        self._passed = (False, False)  # the watermarks of load and drops
        self._seen = 0
        self._lost = 0

    @property
    def connection_count(self) -> int:
        """Live connections in this process."""
        view = self._view
        return len(view) if self._held is None else sum(link.after_seq != math.inf for link in view)

    @property
    def connections(self) -> dict[str, Connection]:
        """Player id -> live connection, those at other instances included."""
        return {link.player_id: link.connection for link in self._view}

    @property
    def in_use(self) -> bool:
        """Whether anybody listens."""
        return bool(self._view or self._subscriptions)

    @property
    def has_threads(self) -> bool:
        """Whether the room has threads of its own at this moment."""
        own = isinstance(self.broadcaster, ThreadBroadcaster) and self.broadcaster.running
        return own or any(subscription.running for subscription in self._subscriptions)

    # Before and after an operation, without the room's lock.

    def reserve(self, count: int, refuse_upgrade: Callable[[], None]) -> int:
        """Set places aside for ``count`` critical events; returns how many were (none when nobody listens).

        Waits at most ``busy_timeout``; the thread that drains never waits: it drains. ``refuse_upgrade`` is asked
        before waiting, so that a thread that will be refused the lock anyhow is told so at once.

        Raises:
            RoomBusy: there was no place in time; none is set aside.
        """
        if not (self._view or self._subscriptions):
            return 0
        queue = self.queue
        if queue.set_aside(count, self._plenty):
            return count
        if queue.load >= self._config.watermark and self.broadcaster.is_current():
            self.drain()
        if not count:
            return 0
        if queue.reserve(count, 0):
            return count
        refuse_upgrade()
        timeout = self._config.busy_timeout
        if self.broadcaster.is_current():
            self.drain()
            timeout = 0
        if not queue.reserve(count, timeout):
            self._runtime.tally.add("busy")
            raise RoomBusy(f"the queue of room {self.room_id!r} had no place within {timeout} s; try again")
        return count

    def published(self, count: int, dropped: int) -> None:
        """An operation has published ``count`` events, of which ``dropped`` had no place: have the queue drained."""
        self._seen += count
        self._lost += dropped
        if self._seen > _DROP_WINDOW:  # older ones count half
            self._seen //= 2
            self._lost //= 2
        # A drop must be announced, even if everything else was delivered by now.
        waiting = len(self.queue.queue)
        if waiting or dropped:
            try:
                if self._held is None:  # else the thread that stores takes what is queued
                    self.broadcaster.wake()
            except (RuntimeError, MemoryError):  # no thread to be had; the change stands, and the next one tries again
                log.exception("room %s has nobody to deliver its events", self.room_id)
                self._runtime.tally.add("delivery_errors")
            pressed = dropped or (waiting >= self._plenty and self.queue.load >= self._config.watermark)
            if pressed and not self.broadcaster.is_current():  # the thread that drains is about to
                self._check_watermark()

    def _check_watermark(self) -> None:
        config = self._config
        rate = self._lost / self._seen if self._seen >= _DROP_WINDOW // 2 else 0.0
        pressure = Pressure(self.queue.load, rate)
        passed = (pressure.load >= config.watermark, pressure.drop_rate > config.drop_watermark)
        before, self._passed = self._passed, passed
        if (passed[0] and not before[0]) or (passed[1] and not before[1]):
            owner = self._owner()
            if owner is not None:
                owner.on_pressure(pressure)

    # Under the room's write lock.

    def publish_locked(self, events: Sequence[Event], reserved: int, key: object) -> tuple[int, int]:
        """Queue the events, in order; returns what is left of ``reserved``, and how many were dropped."""
        dropped = 0
        if self._view or self._subscriptions:
            queue = self.queue
            last = events[-1]
            for event in events:
                kind = event.type
                try:
                    if kind in CRITICAL_TYPES:
                        queue.put_reserved(event, event.seq, reserved > 0)
                        reserved -= 1
                    else:
                        unused = reserved if event is last and reserved > 0 else 0
                        if queue.offer(event, event.seq, kind, key, unused) is None:
                            dropped += 1
                        reserved -= unused
                except MemoryError:  # the state has changed: who listens must hear that there is something to fetch
                    queue.note_lost(event.seq, kind)
                    dropped += 1
            if last.type == "room_closed":
                # From here on nobody is attached or detached: what is left is the broadcaster's to close.
                self._links.clear()
                self._put_control(CloseAll(CLOSE["room_closed"], str(last.data["reason"])[:100]))
                return reserved, dropped
        for event in events:
            if event.type == "player_left":
                link = self._links.get(event.data["player_id"])
                code, reason = _LEAVE_CODES.get(event.data["reason"], _LEAVE_CODES["left"])  # before anything changes
                if link is not None:
                    # Until it is closed it gets what is queued before that, its own leaving included. First this, then
                    # out of the view: the broadcaster reads them the other way round.
                    self._leaving[link] = None
                    self.detach_locked(link)
                    if not self._put_control(CloseLink(link, code, reason)):
                        del self._leaving[link]  # it is not closed, but hears nothing more
        return reserved, dropped

    def _put_control(self, item: Any) -> bool:
        """After a change, which stands: a lack of memory must not undo the count of reserved places. False: no."""
        try:
            self.queue.put_control(item)
        except MemoryError:
            return False
        return True

    def attach_locked(
        self,
        player_id: str,
        connection: Connection,
        seq: int,
        first: Callable[[], Sequence[bytes]],
        *,
        closed: bool,
        number: int = 0,
    ) -> None:
        """Begin with ``first`` (a welcome that knows everything up to ``seq``), then what comes after ``seq``.

        Through the queue, so that it is in order with the events. A connection that the player had is closed. In a
        ``closed`` room nothing comes after: it is told what it missed, and closed like the others were.
        """
        link = Link(player_id, connection, seq, number)
        older = self._links.get(player_id)
        if older is not None and older.connection is not connection:
            self._replaced_locked(older)
        self.queue.put_control(SendTo(link, first))
        if closed:
            self.queue.put_control(CloseLink(link, CLOSE["room_closed"], "the room is closed"))
        else:
            self._put_link_locked(link)

    def attach_remote_locked(self, player_id: str, connection: Connection, number: int) -> None:
        """A connection that another instance has, and delivers to: here it is only known whose it is."""
        older = self._links.get(player_id)
        if older is not None:
            self._replaced_locked(older)
        self._put_link_locked(Link(player_id, connection, math.inf, number))

    def _put_link_locked(self, link: Link) -> None:
        self._links[link.player_id] = link
        self._view = tuple(self._links.values())

    def links_locked(self) -> tuple[Link, ...]:
        """Every player's (the read lock is enough)."""
        return self._view

    def replace_locked(self, link: Link) -> None:
        """Another instance has a newer connection of this one's player."""
        if self._links.get(link.player_id) is link:
            self._replaced_locked(link)
            self.detach_locked(link)

    def _replaced_locked(self, link: Link) -> None:
        """Until it is closed it gets what is queued before that, so that no answer of it comes before its events. To be
        called before it is out of the view: see :meth:`publish_locked`.
        """
        self._leaving[link] = None
        try:
            self.queue.put_control(CloseLink(link, CLOSE["replaced"], "a newer connection took the seat"))
        except MemoryError:
            del self._leaving[link]
            raise

    def announce_restart_locked(self, reason: Callable[[], str]) -> None:
        """Close every connection with 1012 (come back), after what is queued."""
        for link in self._view:
            self.queue.put_control(CloseLink(link, CLOSE["service_restart"], reason()))

    def find_locked(self, player_id: str) -> Link | None:
        """The player's link (the read lock is enough)."""
        return self._links.get(player_id)

    def detach_locked(self, link: Link) -> bool:
        """Forget a link; False: it is not the player's any more."""
        if self._links.get(link.player_id) is not link:
            return False
        del self._links[link.player_id]
        self._view = tuple(self._links.values())
        return True

    def subscribe_locked(self, subscription: Subscription) -> None:
        """Add an in-process listener."""
        self._subscriptions = (*self._subscriptions, subscription)

    def unsubscribe_locked(self, subscription: Subscription) -> None:
        """Forget an in-process listener."""
        self._subscriptions = tuple(known for known in self._subscriptions if known is not subscription)

    def answer_locked(self, tell: Callable[[], None]) -> None:
        """Have the broadcaster's thread call ``tell``, after what is queued."""
        self.queue.put_control(Answer(tell))

    # Of a shared room, by the thread that stores.

    def hold_back_locked(self) -> None:
        """From now on deliver only what :meth:`release` gives back.

        Under the queue's mutex: where the room was followed its broadcaster may be about to take out what is queued,
        which would be delivered before it is stored.
        """
        with self.queue.mutex:
            self.queue.held = True
            self._held = deque()

    def take_locked(self) -> tuple[list[Entry], Gap | None]:
        """Take out what is queued, to be stored."""
        return self.queue.drain(held=True)

    def release(self, entries: list[Entry], trailing: Gap | None) -> None:
        """What was taken is stored: have it delivered."""
        assert self._held is not None
        if entries or trailing is not None:
            self._held.append((entries, trailing))
            self.broadcaster.wake()

    def abandon_locked(self, reason: str) -> None:
        """Drop what is queued and not stored, which nobody is to hear of, and close all connections with 1012. To be
        followed by :meth:`tell_last_locked`.
        """
        code = CLOSE["service_restart"]
        if self._held is not None:
            self.queue.drain(held=True)
            for link in self._leaving:
                self.queue.put_control(CloseLink(link, code, reason))
        self._links.clear()
        self.queue.put_control(CloseAll(code, reason))

    def tell_last_locked(self) -> None:
        """Have all that is queued delivered: nothing is stored any more."""
        if self._held is None:
            self.broadcaster.wake()
        else:
            self.release(*self.queue.drain(held=True))

    # Delivery: only the broadcaster's thread comes here.

    def drain(self) -> None:
        """Deliver everything that is queued. Called by the broadcaster's thread and no other; never blocks.

        Called again from within (by a connection that operates on the room while it is delivered to) it does nothing:
        what is queued by then goes out after what is being delivered.
        """
        if self._drainer == get_ident():
            return
        self._drainer = get_ident()
        try:
            self._drain()
            while self._held:
                self._drain()
        finally:
            self._drainer = None

    def _drain(self) -> None:
        held = self._held
        if held is None:
            entries, trailing = self.queue.drain()
        else:
            entries, trailing = held.popleft() if held else ([], None)
            if held and trailing is None:  # several steps of a busy room: one run, in one write to each connection
                entries = entries.copy()
                while held and trailing is None:
                    more, trailing = held.popleft()
                    entries += more
        if self._passed[0]:
            self._passed = (False, self._passed[1])
        if len(entries) == 1 and trailing is None and type(entries[0].item) is Event:  # most often
            self._deliver_run(entries, None)
            return
        begin = 0  # of a run of events between two control items
        for at, entry in enumerate(entries):
            if type(entry.item) is Event:
                continue
            if at > begin:
                self._deliver_run(entries[begin:at], None)
            self._guarded(self._control, entry.item)
            begin = at + 1
        if begin < len(entries) or trailing is not None or self._untold is not None:
            self._deliver_run(entries[begin:], trailing)

    def _deliver_run(self, run: Sequence[Entry], trailing: Gap | None) -> None:
        """Deliver; what cannot be delivered is counted, and announced before what comes next."""
        if self._untold is not None:
            untold, self._untold = self._untold, None
            if run:
                run[0].gap = join_gaps(untold, run[0].gap)
            else:
                trailing = join_gaps(untold, trailing)
        if self._guarded(self._deliver, run, trailing):
            return
        self._untold = _gap_of(run, trailing)
        self.queue.count_lost(Counter(entry.item.type for entry in run))
        if run:  # else it was the notice alone, which waits for the next event
            self.broadcaster.wake()

    def _guarded(self, step: Callable[..., None], *args: Any) -> bool:
        """One step that fails must not take with it what comes after (a close, another player's welcome)."""
        try:
            step(*args)
        except BaseException:  # SystemExit too
            log.exception("room %s could not deliver everything", self.room_id)
            self._runtime.tally.add("delivery_errors")
            return False
        return True

    def _deliver(self, run: Sequence[Entry], trailing: Gap | None) -> None:
        # The views are read after the queue was drained: whoever was attached before an event was queued is in them.
        links = self._view
        if self._leaving:  # one that is in both gets nothing twice: its after_seq has moved on
            links += tuple(self._leaving)
        subscriptions = self._subscriptions
        messages: Sequence[bytes]
        seqs: Sequence[int]
        events: Sequence[Event]
        if len(run) == 1 and trailing is None and run[0].gap is None and not run[0].conflated:  # most often
            event: Event = run[0].item
            messages, seqs, events = (encode_json(event),), (event.seq,), (event,)
        else:
            messages, seqs, events = self._encode(run, trailing)
        batch = Batch(messages)
        first, last, count = seqs[0], seqs[-1], len(messages)
        delivered = 0
        for link in links:
            if link.ended:
                continue
            after, link.after_seq = link.after_seq, last
            if after >= first:
                link.after_seq = max(after, last)
                rest = [message for message, seq in zip(messages, seqs, strict=True) if seq > after]
                if rest and self._send(link, Batch(rest)):
                    delivered += len(rest)
                continue
            try:
                link.connection.deliver(batch)
                delivered += count
            except BaseException:  # SystemExit too: it would be the others' loss
                self._failed(link)
        for subscription in subscriptions:
            try:
                missed = subscription.offer(events)
            except Exception:  # no thread to be had: they wait for the next event
                log.exception("a subscriber of room %s could not be woken", self.room_id)
                self._runtime.tally.add("subscriber_errors")
                continue
            if missed:
                self._runtime.tally.add("dropped_by_subscribers", count=missed)
        if delivered:
            self._runtime.tally.add("deliveries", count=delivered)

    def _encode(self, run: Sequence[Entry], trailing: Gap | None) -> tuple[list[bytes], list[int], list[Event]]:
        """What is to be told, gaps included: encoded, the seq up to which each tells, and as events."""
        messages: list[bytes] = []
        seqs: list[int] = []
        events: list[Event] = []
        for entry in run:
            event: Event = entry.item
            if entry.gap is not None:
                self._note_gap(entry.gap, event.timestamp, messages, seqs, events)
            if entry.conflated:
                event = msgspec.structs.replace(event, conflated=entry.conflated)
            messages.append(encode_json(event))
            seqs.append(event.seq)
            events.append(event)
        if trailing is not None:
            stamp = rfc3339(self._runtime.wall_clock())
            self._note_gap(trailing, stamp, messages, seqs, events)
        return messages, seqs, events

    @staticmethod
    def _note_gap(gap: Gap, stamp: str, messages: list[bytes], seqs: list[int], events: list[Event]) -> None:
        notice = gap_event(gap.after, gap.types, stamp)
        messages.append(encode_gap(notice))
        seqs.append(gap.last)
        events.append(notice)

    def _send(self, link: Link, batch: Batch) -> bool:
        try:
            link.connection.deliver(batch)
        except BaseException:
            self._failed(link)
            return False
        return True

    def _failed(self, link: Link) -> None:
        """Its connection raised."""
        log.exception("a connection of room %s failed and is dropped", self.room_id)
        self._runtime.tally.add("connection_errors")
        owner = self._owner()
        try:
            if owner is not None:
                owner.drop_link(link)
        except RoomBusy:
            log.warning("room %s was too busy to drop a failed connection", self.room_id)
        self._close_connection(link, CLOSE["internal_error"], "the connection failed")

    def _control(self, item: Any) -> None:
        if type(item) is Answer:
            item.tell()
        elif type(item) is SendTo:
            try:
                messages = item.messages()
                batch = Batch(messages)
            except BaseException:  # without a welcome it understands nothing: it is to come back
                self._failed(item.link)
                return
            if self._send(item.link, batch):
                self._runtime.tally.add("deliveries", count=len(messages))
        elif type(item) is CloseLink:
            self._close_connection(item.link, item.code, item.reason)
        elif type(item) is CloseAll:
            # Without the lock, which a reader may hold for long: a closed room attaches and detaches nobody.
            links, self._view = self._view, ()
            for link in links:
                self._close_connection(link, item.code, item.reason)
            for subscription in self._subscriptions:
                subscription.finish()
            self.broadcaster.retire()

    def _close_connection(self, link: Link, code: int, reason: str) -> None:
        if link.ended:
            return
        link.ended = True
        self._leaving.pop(link, None)
        try:
            link.connection.close(code, reason)
        except BaseException:
            log.exception("a connection of room %s failed to close", self.room_id)
            self._runtime.tally.add("connection_errors")

    # For the manager, by way of the room.

    def use_broadcaster(self, factory: BroadcasterFactory, timeout: float) -> None:
        """Have another thread drain from now on; waits at most ``timeout`` seconds for the one that did.

        Nothing happens when the room has a broadcaster of this factory.
        """
        if factory is self._factory:
            return
        self._factory = factory
        self.broadcaster.stop(timeout)
        self.broadcaster = factory(self.room_id, self.drain)
        if self._held or self.queue.queue or self.queue.has_gap:
            self.broadcaster.wake()

    def stop_threads(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds for the broadcaster and the subscribers; False if one still runs."""
        deadline = monotonic() + timeout
        ended = self.broadcaster.stop(timeout)
        if ended and isinstance(self.broadcaster, ThreadBroadcaster) and (self._held or self.queue.queue):
            self.drain()  # what came while it was told to end; its thread is gone
        for subscription in self._subscriptions:
            # Where the broadcaster did not get to finish it nothing more will come: it ends after its callback.
            end = subscription.join if ended else subscription.stop
            ended = end(max(0.0, deadline - monotonic())) and ended
        return ended


def _gap_of(run: Sequence[Entry], trailing: Gap | None) -> Gap | None:
    """One notice for entries that nobody got, and for what they and ``trailing`` were to tell."""
    gap = trailing
    for entry in reversed(run):
        event: Event = entry.item
        gap = join_gaps(Gap(event.seq - 1, event.seq, {event.type: 1}), gap)
        if entry.gap is not None:
            gap = join_gaps(entry.gap, gap)
    return gap
