"""Room: the state machine with its lock, its queue and those who listen.

How an operation goes::

    reserve places for critical events        (may wait, at most busy_timeout, before any lock)
      write lock
        machine.apply(command)                (refuses, or changes the state and numbers the events)
        history, queue                        (same lock: what clients see is the order in which state changed)
      unlock
    wake the broadcaster                      (which encodes, frames and sends)

Nothing slow happens under the lock: no socket, no hook, no log handler, no encoding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import get_ident
from time import monotonic
from typing import Any

import msgspec

from roomkit.broadcaster import Broadcaster, BroadcasterFactory, ThreadBroadcaster
from roomkit.concurrency.eventqueue import Entry, EventQueue
from roomkit.concurrency.rwlock import RWLock
from roomkit.core import commands as c
from roomkit.core.config import RoomConfig
from roomkit.core.events import CRITICAL_TYPES, Event, clean_data, encode_json, rfc3339
from roomkit.core.history import History
from roomkit.core.ids import check_id, check_name
from roomkit.core.lifecycle import GAME, Lifecycle
from roomkit.core.state import Player, RoomMachine, RoomState, check_song_id
from roomkit.delivery import (
    Batch,
    CloseAll,
    CloseLink,
    Connection,
    Link,
    SendTo,
    Subscription,
    encode_gap,
    gap_event,
    welcome_messages,
)
from roomkit.errors import CLOSE, InvalidMessage, LockUpgradeError, RoomBusy, RoomkitError
from roomkit.runtime import Runtime

log = logging.getLogger("roomkit.room")

_LEAVE_CODES = {
    "left": (CLOSE["normal"], "left"),
    "kicked": (CLOSE["kicked"], "kicked by the host"),
    "banned": (CLOSE["kicked"], "banned by the host"),
    "expired": (CLOSE["room_not_found"], "the seat was given up"),
}

#: Events after which the share of dropped ones is judged anew.
_DROP_WINDOW = 100


class Joined(msgspec.Struct, frozen=True):
    """What :meth:`Room.join` answers: the player with its token, the state, and whether missed events are replayed."""

    player: Player
    state: RoomState
    recovered: bool | None


class Room:
    """A small group of people who share one state, live. Made by ``RoomManager.create_room``.

    Every operation is carried out by the calling thread and returns when the state has changed; the events reach the
    listeners soon after, by the broadcaster. An operation that raises has changed nothing. ``player_id=None`` stands
    for server code, to which no host check applies.

    Blocking: an operation waits at most ``busy_timeout`` seconds for a place in the queue and as long for the lock, then
    raises ``RoomBusy``. Reads wait only while the first reader after a change builds the snapshot.

    Thread safety: full.
    """

    __slots__ = (
        "__weakref__",
        "_broadcaster",
        "_config",
        "_drainer",
        "_drop_window",
        "_history",
        "_link_view",
        "_links",
        "_lock",
        "_machine",
        "_queue",
        "_runtime",
        "_snapshot",
        "_subscriptions",
        "_watermark_passed",
        "id",
    )

    def __init__(
        self,
        room_id: str,
        config: RoomConfig | None = None,
        *,
        lifecycle: Lifecycle = GAME,
        metadata: Mapping[str, Any] | None = None,
        private: bool = False,
        password: str | None = None,
        runtime: Runtime | None = None,
        broadcaster: BroadcasterFactory = ThreadBroadcaster,
    ) -> None:
        self.id = check_id(room_id, "a room id")
        self._runtime = runtime = runtime if runtime is not None else Runtime()
        self._config = config = config if config is not None else RoomConfig()
        self._lock = RWLock()
        self._queue = EventQueue(config.queue_size, config.queue_ceiling)
        self._broadcaster: Broadcaster = broadcaster(self.id, self.drain)
        # Guarded by _lock:
        self._machine = RoomMachine(
            self.id,
            runtime.new_epoch(),
            runtime.clock(),
            runtime.wall_clock(),
            config,
            lifecycle,
            metadata=clean_data(dict(metadata), "metadata") if metadata is not None else None,
            private=private,
            password=password,
        )
        self._history = History(config.history_size)
        self._links: dict[str, Link] = {}
        # Written under _lock, read without it (each is one immutable object, replaced as a whole):
        self._link_view: tuple[Link, ...] = ()
        self._subscriptions: tuple[Subscription, ...] = ()
        self._snapshot: RoomState | None = None
        # The id of the thread that is in drain(); only ever compared by a thread with its own id.
        self._drainer: int | None = None
        # For the watermark hook; a race only moves the moment at which it is called.
        self._watermark_passed = False
        self._drop_window = (0, 0)

    def __repr__(self) -> str:
        return f"<Room {self.id} {self._machine.status!s} players={len(self._machine.seats)}>"

    # Reading.

    def get_state(self) -> RoomState:
        """The room at one moment between two changes, immutable.

        Built at most once per change, so reading again costs next to nothing and never waits, not even for a writer.

        Raises:
            RoomBusy: a writer held the lock for ``busy_timeout`` seconds while the snapshot had to be built.
        """
        state = self._snapshot
        if state is None:
            with self._lock.read(self._config.busy_timeout):
                state = self._snapshot = self._machine.snapshot()
        return state

    def get_players(self) -> tuple[Player, ...]:
        """Who is seated, in the order of sitting down, without tokens."""
        return self.get_state().players

    @property
    def status(self) -> str:
        """The status now."""
        return self._machine.status

    @property
    def lifecycle(self) -> Lifecycle:
        """The transition table in force."""
        return self._machine.lifecycle

    @property
    def config(self) -> RoomConfig:
        """The bounds in force."""
        return self._config

    @contextmanager
    def reading(self) -> Iterator[RoomState]:
        """Hold the read lock: nothing changes within the block. Other readers go on; writers wait.

        An operation on this room within the block raises ``LockUpgradeError`` (seed: the upgrade trap).
        """
        with self._lock.read(self._config.busy_timeout):
            state = self._snapshot
            if state is None:
                state = self._snapshot = self._machine.snapshot()
            yield state

    def get_events(self, after: int = 0) -> tuple[Event, ...] | None:
        """The events after seq ``after`` in order, or None when the history does not cover them all."""
        with self._lock.read(self._config.busy_timeout):
            return self._history.since(after)

    def get_recent_events(self, count: int = 50) -> tuple[Event, ...]:
        """The newest events, oldest first."""
        with self._lock.read(self._config.busy_timeout):
            return self._history.latest(count)

    # Seats.

    def add_player(self, player_id: str, name: str | None = None, *, token: str | None = None) -> Player:
        """Seat a player; the first one becomes host. The returned player carries the seat's token.

        Seating one who is in already changes nothing when ``token`` is the seat's, and is refused otherwise.

        Raises:
            InvalidTransition, PlayerExists, PlayerBanned, RoomLocked, RoomFull, RoomBusy, InvalidId, InvalidMessage (the
            name): nothing changed.
        """
        check_id(player_id, "a player id")
        command = c.AddPlayer(player_id, check_name(name, player_id), self._runtime.new_token(), token)
        seated: list[Player] = []
        self.execute(command, lambda events: seated.append(self._view_with_token_locked(player_id)))
        return seated[0]

    def _view_with_token_locked(self, player_id: str) -> Player:
        seat = self._machine.seats[player_id]
        return seat.view(seat.token)

    def remove_player(self, player_id: str) -> None:
        """Free a seat, as its holder's leaving does; its connection is closed with 1000.

        Raises:
            InvalidTransition, PlayerNotFound, RoomBusy: nothing changed.
        """
        self.execute(c.RemovePlayer(player_id))

    def kick(self, player_id: str | None, target_id: str, *, ban: bool = False) -> None:
        """The host frees somebody's seat; its connection is closed with 4503. With ``ban`` the id cannot come back.

        Raises:
            InvalidTransition, PlayerNotFound, NotHost, InvalidMessage (the host itself), RoomBusy: nothing changed.
        """
        check_id(target_id, "a player id")
        self.execute(c.Kick(player_id, target_id, ban))

    # The game.

    def set_player_ready(self, player_id: str, ready: bool = True) -> None:
        """Set or clear a ready flag; once all are set the room is ready.

        Raises:
            InvalidTransition, PlayerNotFound, RoomBusy: nothing changed.
        """
        self.execute(c.SetPlayerReady(player_id, bool(ready)))

    def select_song(self, player_id: str | None, song_id: str) -> None:
        """Choose the song; choosing another one clears all ready flags.

        Raises:
            InvalidTransition, PlayerNotFound, InvalidMessage (not text of 1 to 256 characters), RoomBusy: nothing changed.
        """
        settings = clean_data({"song_id": check_song_id(song_id)}, "song_id")
        self.execute(c.UpdateSettings(player_id, settings, song=True))

    def update_settings(self, player_id: str | None, settings: Mapping[str, Any]) -> None:
        """Merge into the shared settings (a None removes a key); a change clears all ready flags.

        Raises:
            InvalidTransition, PlayerNotFound, InvalidMessage, RoomBusy: nothing changed.
        """
        self.execute(c.UpdateSettings(player_id, clean_data(dict(settings), "settings")))

    def start_game(self, player_id: str | None = None) -> None:
        """Start.

        Raises:
            InvalidTransition, PlayerNotFound, NotHost, RoomBusy: nothing changed.
        """
        self.execute(c.StartGame(player_id))

    def finish_game(self, player_id: str | None = None, results: Mapping[str, Any] | None = None) -> None:
        """Finish; ``results`` are kept in the state.

        Raises:
            InvalidTransition, PlayerNotFound, NotHost, InvalidMessage (results without a JSON form), RoomBusy: nothing
            changed.
        """
        self.execute(c.FinishGame(player_id, None if results is None else clean_data(dict(results), "results")))

    def close(self, reason: str = "closed", player_id: str | None = None) -> None:
        """Close for good: ``room_closed`` reaches everybody, then their connections are closed with 4510.

        A closed room stays as it is. Never waits for the queue.

        Raises:
            PlayerNotFound, NotHost (with ``player_id``), InvalidTransition (a lifecycle without that way): nothing changed.
        """
        self.execute(c.Close(player_id, str(reason)))

    def perform(self, operation: str, player_id: str | None = None, data: Mapping[str, Any] | None = None) -> None:
        """Carry out an operation of the room's own lifecycle.

        Raises:
            InvalidTransition, PlayerNotFound, NotHost, InvalidMessage, RoomBusy, or what the operation's check raises:
            nothing changed.
        """
        self.execute(c.Perform(player_id, operation, clean_data(dict(data or {}))))

    def send_message(self, player_id: str | None, data: Mapping[str, Any], *, key: str | None = None) -> None:
        """Relay ``data`` to everybody. With ``key`` it replaces an older one of the same sender and key that still waits.

        Raises:
            InvalidTransition (closed), PlayerNotFound, InvalidMessage (no JSON form), RoomBusy: nothing changed.
        """
        self.execute(c.SendMessage(player_id, clean_data(dict(data)), key))

    # The room itself.

    def lock(self, player_id: str | None = None) -> None:
        """Take no new player; who is seated may come back. Raises NotHost, PlayerNotFound, InvalidTransition (closed)."""
        self.execute(c.UpdateRoom(player_id, locked=True))

    def unlock(self, player_id: str | None = None) -> None:
        """Undo :meth:`lock`."""
        self.execute(c.UpdateRoom(player_id, locked=False))

    def set_private(self, private: bool, player_id: str | None = None) -> None:
        """In or out of the listing."""
        self.execute(c.UpdateRoom(player_id, private=bool(private)))

    def set_metadata(self, metadata: Mapping[str, Any], player_id: str | None = None) -> None:
        """Replace the metadata, by which rooms are found."""
        self.execute(c.UpdateRoom(player_id, metadata=clean_data(dict(metadata), "metadata")))

    def is_expired(self) -> bool:
        """Whether the room should be taken away now (seed, fourth disaster, rules 1 to 3)."""
        with self._lock.read(self._config.busy_timeout):
            return self._machine.expired_reason(self._runtime.clock()) is not None

    def next_deadline(self) -> float:
        """When time next demands something of the room, by the injected clock."""
        with self._lock.read(self._config.busy_timeout):
            return self._machine.next_deadline()

    # Connections and subscribers.

    def join(
        self,
        player_id: str,
        connection: Connection | None = None,
        *,
        name: str | None = None,
        token: str | None = None,
        password: str | None = None,
        epoch: str | None = None,
        seq: int | None = None,
        greeting: Mapping[str, Any] | None = None,
    ) -> Joined:
        """Come in from outside: take a seat, or the own one again by ``token``, and attach ``connection`` to it.

        All of it is one change. The connection first gets ``welcome``, then the missed events if ``epoch`` and ``seq``
        tell where the client stopped and the history reaches that far, then live ones. A connection that the seat had
        is closed with 4509. Without a connection the seat is kept for ``reservation_ttl`` seconds. Who was seated in a
        room that has closed in the meantime is told what it missed, and then closed with 4510.

        Args:
            greeting: more fields for the welcome (the server's heartbeat times).

        Raises:
            BadToken, BadPassword, PlayerBanned, RoomLocked, RoomFull, InvalidTransition, RoomBusy, InvalidId,
            InvalidMessage: nothing changed, the connection was not touched.
        """
        check_id(player_id, "a player id")
        command = c.Join(
            player_id,
            check_name(name, player_id),
            self._runtime.new_token(),
            token,
            password,
            connection is not None,
            self._config.reservation_ttl,
        )
        done: list[Joined] = []

        def attach(events: list[Event]) -> None:
            if connection is not None:
                # A new seat has nothing to recover, whatever an earlier holder of the id knew.
                known = None if events and events[0].type == "player_joined" else epoch
                done.append(self._attach_locked(player_id, connection, known, seq, greeting))
            else:
                done.append(Joined(self._view_with_token_locked(player_id), self._machine.snapshot(), None))

        self.execute(command, attach)
        return done[0]

    def add_connection(
        self,
        player_id: str,
        connection: Connection,
        *,
        epoch: str | None = None,
        seq: int | None = None,
        greeting: Mapping[str, Any] | None = None,
    ) -> Joined:
        """Attach a connection to a seat, for server code that knows whose it is (no token is asked for).

        Otherwise as :meth:`join`.

        Raises:
            PlayerNotFound, InvalidTransition (closed), RoomBusy: nothing changed, the connection was not touched.
        """
        done: list[Joined] = []
        self.execute(
            c.Connect(player_id),
            lambda events: done.append(self._attach_locked(player_id, connection, epoch, seq, greeting)),
        )
        return done[0]

    def _attach_locked(
        self,
        player_id: str,
        connection: Connection,
        epoch: str | None,
        seq: int | None,
        greeting: Mapping[str, Any] | None,
    ) -> Joined:
        machine = self._machine
        state = machine.snapshot()
        recovered: bool | None = None
        replay = None
        if epoch is not None and seq is not None:
            replay = self._history.since(seq) if epoch == machine.epoch else None
            recovered = replay is not None
        link = Link(player_id, connection, machine.seq)
        closed = machine.closed  # then it is told what it missed, and closed like the others were
        older = self._links.get(player_id)
        if older is not None and older.connection is not connection:
            self._queue.put_control(CloseLink(older, CLOSE["replaced"], "a newer connection took the seat"))
        if not closed:
            self._links[player_id] = link
            self._link_view = tuple(self._links.values())
        player = self._view_with_token_locked(player_id)

        def welcome() -> dict[str, Any]:
            return {
                "player_id": player_id,
                "token": player.token,
                "epoch": state.epoch,
                "seq": state.seq,
                "recovered": recovered,
                "state": state.to_dict(),
                "time": rfc3339(self._runtime.wall_clock()),
                **(greeting or {}),
            }

        # Through the queue, so that it is in order with the events: those after state.seq come behind it.
        self._queue.put_control(SendTo(link, welcome_messages(welcome, replay)))
        if closed:
            self._queue.put_control(CloseLink(link, CLOSE["room_closed"], "the room is closed"))
        return Joined(player, state, recovered)

    def remove_connection(self, player_id: str, connection: Connection | None = None) -> bool:
        """The connection is lost; the seat stays for ``reconnect_grace`` seconds.

        Args:
            connection: the one that was lost; when the seat has a newer one by now, nothing happens.

        Returns:
            Whether the seat was dropped by this call.

        Raises:
            RoomBusy: the lock was not to be had; nothing changed, try again.
        """
        with self._lock.read(self._config.busy_timeout):
            link = self._links.get(player_id)
        if link is None or (connection is not None and link.connection is not connection):
            return False
        return self._drop_link(link)

    def _drop_link(self, link: Link) -> bool:
        dropped: list[bool] = []

        def detach(events: list[Event]) -> None:
            dropped.append(self._detach_locked(link))

        try:
            self.execute(c.Disconnect(link.player_id), detach, lambda: self._links.get(link.player_id) is link)
        except (RoomBusy, LockUpgradeError):
            raise
        except RoomkitError:  # replaced or gone in the meantime
            return False
        return bool(dropped and dropped[0])

    def _detach_locked(self, link: Link) -> bool:
        if self._links.get(link.player_id) is not link:
            return False
        del self._links[link.player_id]
        self._link_view = tuple(self._links.values())
        return True

    def subscribe(self, callback: Callable[[Event], None], *, limit: int = 1000) -> Callable[[], None]:
        """Call ``callback(event)`` for every event from now on, in seq order, on a thread of its own.

        Args:
            limit: events that may wait for a slow callback; past it they are left out, counted and announced by an
                event of type ``gap`` (fetch them with :meth:`get_events`).

        Returns:
            The function that ends it: no callback begins after it has returned.

        Raises:
            RoomBusy: the lock was not to be had; nothing changed.
        """
        tally = self._runtime.tally
        with self._lock.write(self._config.busy_timeout):
            subscription = Subscription(
                f"roomkit-subscriber-{self.id}",
                callback,
                self._machine.seq,
                limit,
                lambda: tally.add("subscriber_errors"),
            )
            if self._machine.closed:
                subscription.request_stop()
            else:
                self._subscriptions = (*self._subscriptions, subscription)

        def stop() -> None:
            subscription.request_stop()
            with self._lock.write(self._config.busy_timeout):
                self._subscriptions = tuple(s for s in self._subscriptions if s is not subscription)

        return stop

    # The one way in.

    def execute(
        self,
        command: c.Command,
        then: Callable[[list[Event]], None] | None = None,
        unless_changed: Callable[[], bool] | None = None,
    ) -> list[Event]:
        """Carry out a command; the methods above are made of this.

        Args:
            then: called with the events under the lock, after the change.
            unless_changed: asked under the lock before the change; when it says no, nothing is done.

        Raises:
            RoomkitError: as the command's handler says; nothing changed.
        """
        reserved = self._reserve(c.CRITICAL_EVENTS[type(command)])
        runtime = self._runtime
        machine = self._machine
        events: list[Event] = []
        dropped = 0
        deadline = None
        try:
            writer = self._lock.acquire_write(self._config.busy_timeout)
            try:
                if unless_changed is None or unless_changed():
                    events = machine.apply(command, runtime.clock(), runtime.wall_clock())
                    if events:
                        self._snapshot = None  # first: whoever gets an event must not read an older state
                        key = command.key if type(command) is c.SendMessage else None
                        if key is not None:
                            key = (command.player_id, key)  # type: ignore[assignment, union-attr]
                        reserved, dropped = self._publish_locked(events, reserved, key)
                    if then is not None:
                        then(events)
                if machine.deadline_moved:
                    machine.deadline_moved = False
                    deadline = machine.next_deadline()
            finally:
                self._lock.release_write(writer)
        finally:
            if reserved > 0:
                self._queue.release(reserved)
        runtime.tally.add("operations", type(command).__name__)
        if self._queue.queue or dropped:  # a drop must be announced, even if everything else was delivered by now
            self._broadcaster.wake()
            if (dropped or self._queue.load >= self._config.watermark) and not self._broadcaster.is_current():
                self._check_watermark(len(events), dropped)  # the thread that drains is about to
        if deadline is not None:
            runtime.schedule(self, deadline)
        return events

    def _reserve(self, count: int) -> int:
        """Set places aside for critical events, before any lock. The thread that drains never waits: it drains."""
        if not (self._link_view or self._subscriptions):
            return 0
        queue = self._queue
        if queue.load >= self._config.watermark and self._broadcaster.is_current():
            self.drain()
        if not count:
            return 0
        if queue.reserve(count, 0):
            return count
        self._lock.refuse_upgrade()  # who reads is told so at once, not after waiting for a place
        timeout = self._config.busy_timeout
        if self._broadcaster.is_current():
            self.drain()
            timeout = 0
        if not queue.reserve(count, timeout):
            self._runtime.tally.add("busy")
            raise RoomBusy(f"the queue of room {self.id!r} had no place within {timeout} s; try again")
        return count

    def _publish_locked(self, events: Sequence[Event], reserved: int, key: object) -> tuple[int, int]:
        """History and queue, in the order of the change; returns what is left of ``reserved``, and how many dropped."""
        history = self._history
        for event in events:
            history.append(event)
        dropped = 0
        if self._link_view or self._subscriptions:
            queue = self._queue
            for event in events:
                kind = event.type
                if kind in CRITICAL_TYPES:
                    queue.put_reserved(event, event.seq, reserved > 0)
                    reserved -= 1
                elif queue.offer(event, event.seq, kind, key) is None:
                    dropped += 1
            if events[-1].type == "room_closed":
                # From here on nobody is attached or detached: what is left is the broadcaster's to close.
                self._links.clear()
                self._queue.put_control(CloseAll(CLOSE["room_closed"], str(events[-1].data["reason"])[:100]))
                return reserved, dropped
        for event in events:
            if event.type == "player_left":
                link = self._links.get(event.data["player_id"])
                if link is not None:
                    self._detach_locked(link)
                    # What is still queued would not reach a link that is no longer in the view.
                    self._queue.put_control(SendTo(link, _rest_for(link, history.latest(len(history)) or events)))
                    self._queue.put_control(CloseLink(link, *_LEAVE_CODES[event.data["reason"]]))
        return reserved, dropped

    def _check_watermark(self, count: int, dropped: int) -> None:
        config = self._config
        seen, lost = self._drop_window
        seen, lost = seen + count, lost + dropped
        load = self._queue.load
        passed = load >= config.watermark
        if seen >= _DROP_WINDOW:
            passed = passed or lost / seen > config.drop_watermark
            seen = lost = 0
        self._drop_window = (seen, lost)
        if passed and not self._watermark_passed:
            self._watermark_passed = True
            self._runtime.watermark(self, load)

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
        finally:
            self._drainer = None

    def _drain(self) -> None:
        entries, trailing = self._queue.drain()
        self._watermark_passed = False
        run: list[Entry] = []
        for entry in entries:
            if type(entry.item) is Event:
                run.append(entry)
                continue
            if run:
                self._guarded(self._deliver, run, None)
                run = []
            self._guarded(self._control, entry.item)
        if run or trailing is not None:
            self._guarded(self._deliver, run, trailing)

    def _guarded(self, step: Callable[..., None], *args: Any) -> None:
        """One step that fails must not take with it what comes after (a close, another player's welcome)."""
        try:
            step(*args)
        except Exception:
            log.exception("room %s could not deliver everything", self.id)
            self._runtime.tally.add("delivery_errors")

    def _deliver(self, run: Sequence[Entry], trailing: Any) -> None:
        # The views are read after the queue was drained: whoever was attached before an event was queued is in them.
        links = self._link_view
        subscriptions = self._subscriptions
        messages: list[bytes] = []
        seqs: list[int] = []
        events: list[Event] = []
        lost: dict[str, int] = {}
        for entry in run:
            event: Event = entry.item
            if entry.gap is not None:
                self._note_gap(entry.gap, event.timestamp, messages, seqs, events, lost)
            if entry.conflated:
                event = msgspec.structs.replace(event, conflated=entry.conflated)
            messages.append(encode_json(event))
            seqs.append(event.seq)
            events.append(event)
        if trailing is not None:
            stamp = rfc3339(self._runtime.wall_clock())
            self._note_gap(trailing, stamp, messages, seqs, events, lost)
        batch = Batch(messages)
        first = seqs[0]
        delivered = 0
        for link in links:
            if link.ended:
                continue
            after = link.after_seq
            mine = batch
            if after >= first:
                rest = [message for message, seq in zip(messages, seqs, strict=True) if seq > after]
                if not rest:
                    continue
                mine = Batch(rest)
            link.after_seq = seqs[-1]
            if self._send(link, mine):
                delivered += len(mine)
        for subscription in subscriptions:
            missed = subscription.offer(events)
            if missed:
                self._runtime.tally.add("dropped_by_subscribers", count=missed)
        if delivered:
            self._runtime.tally.add("deliveries", count=delivered)
        if lost:
            self._runtime.tally.add_many("dropped", lost)

    def _note_gap(
        self, gap: Any, stamp: str, messages: list[bytes], seqs: list[int], events: list[Event], lost: dict[str, int]
    ) -> None:
        notice = gap_event(gap.after, gap.types, stamp)
        messages.append(encode_gap(notice))
        seqs.append(gap.last)
        events.append(notice)
        for kind, count in gap.types.items():
            lost[kind] = lost.get(kind, 0) + count

    def _send(self, link: Link, batch: Batch) -> bool:
        try:
            link.connection.deliver(batch)
        except Exception:
            log.exception("a connection of room %s failed and is dropped", self.id)
            self._runtime.tally.add("connection_errors")
            try:
                self._drop_link(link)
            except RoomBusy:
                log.warning("room %s was too busy to drop a failed connection", self.id)
            return False
        return True

    def _control(self, item: Any) -> None:
        if type(item) is SendTo:
            messages = item.messages()
            if self._send(item.link, Batch(messages)):
                self._runtime.tally.add("deliveries", count=len(messages))
        elif type(item) is CloseLink:
            self._close_connection(item.link, item.code, item.reason)
        elif type(item) is CloseAll:
            # Without the lock, which a reader may hold for long: a closed room attaches and detaches nobody.
            links, self._link_view = self._link_view, ()
            for link in links:
                self._close_connection(link, item.code, item.reason)
            for subscription in self._subscriptions:
                subscription.finish()
            self._broadcaster.retire()

    def _close_connection(self, link: Link, code: int, reason: str) -> None:
        if link.ended:
            return
        link.ended = True
        try:
            link.connection.close(code, reason)
        except Exception:
            log.exception("a connection of room %s failed to close", self.id)
            self._runtime.tally.add("connection_errors")

    # For the manager.

    def use_broadcaster(self, factory: BroadcasterFactory, timeout: float) -> None:
        """Have another thread drain from now on; waits at most ``timeout`` seconds for the one that did."""
        self._broadcaster.stop(timeout)
        self._broadcaster = factory(self.id, self.drain)
        if self._queue.queue:
            self._broadcaster.wake()

    def expire(self) -> bool:
        """Do all that time has made due; whether the room is to be taken away (idle, too old, or closed long enough).

        Raises:
            RoomBusy: not all of it could be done; call again.
        """
        gone = False
        while events := self.execute(c.ExpireNext()):
            last = events[-1]
            gone = last.type == "room_closed" and last.data["reason"] in ("expired: idle", "expired: lifetime")
        return gone or self.is_expired()

    def seats_locked(self) -> list[Player]:
        """The players with their tokens; the caller is within :meth:`reading`."""
        return [seat.view(seat.token) for seat in self._machine.seats.values()]

    def bans_locked(self) -> frozenset[str]:
        """Who was banned; the caller is within :meth:`reading`."""
        return frozenset(self._machine.bans or ())

    @property
    def password(self) -> str | None:
        """What is asked of those who join from outside."""
        return self._machine.password

    def seat_again(self, player: Player) -> None:
        """Keep a seat, with the token that it had elsewhere, for ``reconnect_grace`` seconds."""
        assert player.token is not None
        grace = self._config.reconnect_grace
        self.execute(c.Join(player.id, player.name, player.token, None, self.password, False, grace))

    def inherit(self, state: RoomState, bans: frozenset[str]) -> None:
        """Take over another room's settings, lock and bans. For a room that nobody has seen: no event tells of it."""
        with self._lock.write(self._config.busy_timeout):
            self._machine.settings = dict(state.settings)
            self._machine.locked = state.locked
            self._machine.bans = set(bans) or None
            self._snapshot = None

    def announce_restart(self, reason: Callable[[], str]) -> None:
        """Close every connection with 1012 (come back), after what is queued. The seats stay."""
        for link in self._link_view:
            self._queue.put_control(CloseLink(link, CLOSE["service_restart"], reason()))
        self._broadcaster.wake()

    def dispose(self) -> None:
        """The manager has let go of the room: let its threads end, once who came too late has been told so."""
        self._broadcaster.retire()

    def stop_threads(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds for the broadcaster and the subscribers; False if one still runs."""
        deadline = monotonic() + timeout
        ended = self._broadcaster.stop(timeout)
        for subscription in self._subscriptions:
            # Where the broadcaster did not get to finish it nothing more will come: it ends after its callback.
            end = subscription.join if ended else subscription.stop
            ended = end(max(0.0, deadline - monotonic())) and ended
        return ended

    @property
    def connection_count(self) -> int:
        """Live connections."""
        return len(self._link_view)

    @property
    def queue_depth(self) -> int:
        """Entries that wait for delivery."""
        return len(self._queue.queue)

    @property
    def dropped(self) -> dict[str, int]:
        """Events dropped from live delivery since the room was made, by type."""
        return dict(self._queue.dropped)

    @property
    def conflated(self) -> int:
        """Events replaced by a newer one of their key before they were delivered."""
        return self._queue.conflated


def _rest_for(link: Link, events: Sequence[Event]) -> Callable[[], Sequence[bytes]]:
    """Of ``events``, those that the link does not have when the broadcaster comes to it."""
    return lambda: [encode_json(event) for event in events if event.seq > link.after_seq]


def check_ready(value: object) -> bool:
    """A ready flag from outside."""
    if not isinstance(value, bool):
        raise InvalidMessage("ready must be true or false")
    return value
