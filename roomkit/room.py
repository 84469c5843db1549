"""Room: the state machine with its lock, its queue and those who listen.

How an operation goes::

    reserve places for critical events        (may wait, at most busy_timeout, before any lock)
      write lock
        machine.apply(command)                (refuses, or changes the state and numbers the events)
        history, queue                        (same lock: what clients see is the order in which state changed)
      unlock
    wake the broadcaster                      (which encodes, frames and sends)

Nothing slow happens under the lock: no socket, no hook, no log handler, no encoding.

A room that instances share (``roomkit.sharing.room``) is the same, but that what is queued is stored before the
broadcaster gets it.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import msgspec

from roomkit.broadcaster import BroadcasterFactory, ThreadBroadcaster
from roomkit.concurrency.rwlock import RWLock
from roomkit.core import commands as c
from roomkit.core.config import RoomConfig
from roomkit.core.events import Event, clean_data, encode_json, rfc3339
from roomkit.core.history import History
from roomkit.core.ids import check_id, check_name, is_secret
from roomkit.core.lifecycle import GAME, Lifecycle
from roomkit.core.snapshot import Player, RoomState
from roomkit.core.state import RoomMachine, check_song_id
from roomkit.delivery import Connection, Link, Subscription, welcome_messages
from roomkit.errors import LockUpgradeError, PlayerNotFound, RoomBusy, RoomkitError, ShuttingDown
from roomkit.fanout import Fanout
from roomkit.runtime import Pressure, Runtime

log = logging.getLogger("roomkit.room")

AnyRoom = TypeVar("AnyRoom", bound="Room")


class Joined(msgspec.Struct, frozen=True):
    """What :meth:`Room.join` answers: the player with its token, the state, and whether missed events are replayed."""

    player: Player
    state: RoomState
    recovered: bool | None


class Glance(NamedTuple):
    """Numbers of a room for those who look at many: read without its lock, so two may be a change apart."""

    status: str
    closed: bool
    players: int
    connected: int  #: of the players
    connections: int
    queue_depth: int
    conflated: int
    dropped: Mapping[str, int]  #: by type; not to be kept: it goes on counting


class Room:
    """A small group of people who share one state, live. Made by ``RoomManager.create_room``.

    Every operation is carried out by the calling thread and returns when the state has changed; the events reach the
    listeners soon after, by the broadcaster. An operation that raises has changed nothing. ``player_id=None`` stands
    for server code, to which no host check applies.

    Blocking: an operation waits at most ``busy_timeout`` seconds for a place in the queue and as long for the lock,
    then raises ``RoomBusy``. Reads wait only while the first reader after a change builds the snapshot.

    Thread safety: full.
    """

    #: Whether instances share it: then what it does is told only once it is stored.
    shared = False
    #: Whether another instance owns it: then this one follows it, and asks the owner for every change.
    followed = False

    __slots__ = (
        "__weakref__",
        "_config",
        "_fanout",
        "_history",
        "_lock",
        "_machine",
        "_runtime",
        "_snapshot",
        "_was_read",
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
        self._fanout = Fanout(self.id, config, runtime, broadcaster, weakref.ref(self))
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
        # Written under _lock, read without it (immutable, replaced as a whole):
        self._snapshot: RoomState | None = None
        # Set by readers without it: whether somebody read the snapshot. Then the next change makes the next one, so
        # that who reads does not wait for writers; a room that nobody looks at makes none. A race only makes one too
        # many or one too few.
        self._was_read = False

    @classmethod
    def from_machine(
        cls: type[AnyRoom],
        machine: RoomMachine,
        history: Sequence[Event],
        runtime: Runtime,
        broadcaster: BroadcasterFactory,
    ) -> AnyRoom:
        """A room that was stored, with the last events that are known of it, in order and up to its seq."""
        room = cls(machine.id, machine.config, lifecycle=machine.lifecycle, runtime=runtime, broadcaster=broadcaster)
        room._machine = machine
        room._history.begin_again(machine.seq - len(history))
        for event in history:
            room._history.append(event)
        return room

    def __repr__(self) -> str:
        return f"<Room {self.id} {self._machine.status!s} players={len(self._machine.seats)}>"

    # Reading.

    def get_state(self) -> RoomState:
        """The room at one moment between two changes, immutable.

        Built once per change, and by the change itself when the one before was read: reading again costs next to
        nothing and never waits, not even for a writer. Threads that ask for the first time at the same moment may
        build one each; they are equal.

        Raises:
            RoomBusy: a writer held the lock for ``busy_timeout`` seconds while the snapshot had to be built.
        """
        state = self._snapshot
        if state is None:
            with self._lock.read(self._config.busy_timeout):
                state = self._snapshot = self._machine.snapshot()
        self._was_read = True
        return state

    def get_players(self) -> tuple[Player, ...]:
        """Who is seated, in the order of sitting down, without tokens."""
        return self.get_state().players

    @property
    def status(self) -> str:
        """The status now."""
        return self._machine.status

    @property
    def created_at(self) -> float:
        """When it was made, Unix seconds."""
        return self._machine.created_at

    @property
    def player_count(self) -> int:
        """Seats taken now."""
        return len(self._machine.seats)

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
            InvalidTransition, PlayerExists, PlayerBanned, RoomLocked, RoomFull, RoomBusy, InvalidId, InvalidMessage
            (the name): nothing changed.
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
            InvalidTransition, PlayerNotFound, InvalidMessage (not text of 1 to 256 characters), RoomBusy: nothing
            changed.
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
            PlayerNotFound, NotHost (with ``player_id``), InvalidTransition (a lifecycle without that way): nothing
            changed.
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
        """Relay ``data`` to everybody. With ``key`` it replaces an older one of the same sender and key that still
        waits.

        Raises:
            InvalidTransition (closed), PlayerNotFound, InvalidMessage (no JSON form), RoomBusy: nothing changed.
        """
        self.execute(c.SendMessage(player_id, clean_data(dict(data)), key))

    # The room itself.

    def lock(self, player_id: str | None = None) -> None:
        """Take no new player; who is seated may come back. Raises NotHost, PlayerNotFound, InvalidTransition
        (closed).
        """
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
            token: of the own seat; a secret of at least 22 of ``A-Za-z0-9_-`` becomes the token of a new seat, so that
                a client whose welcome was lost can come back.
            greeting: more fields for the welcome (the server's heartbeat times).

        Raises:
            BadToken, BadPassword, PlayerBanned, RoomLocked, RoomFull, InvalidTransition, RoomBusy, ShuttingDown (with
            a connection, once the manager's shutdown has stopped the room's delivery), InvalidId, InvalidMessage:
            nothing changed, the connection was not touched.
        """
        check_id(player_id, "a player id")
        command = c.Join(
            player_id,
            check_name(name, player_id),
            token if token is not None and is_secret(token) else self._runtime.new_token(),
            token,
            password,
            connection is not None,
            self._config.reservation_ttl,
        )
        done: list[Joined] = []

        def attach(events: list[Event]) -> None:
            if connection is not None:
                if self._fanout.stopped and self._machine.closed:  # then nothing has changed
                    raise ShuttingDown(f"room {self.id!r} is closed, and nobody is left to tell its story")
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
        player: Player | None = None,
        number: int = 0,
    ) -> Joined:
        """``player``: with the seat's token, where the machine does not know it; ``number``: see Link."""
        machine = self._machine
        state = machine.snapshot()
        recovered: bool | None = None
        replay = None
        if epoch is not None and seq is not None:
            replay = self._history.since(seq) if epoch == machine.epoch else None
            recovered = replay is not None
        if player is None:
            player = self._view_with_token_locked(player_id)
        token = player.token

        def welcome() -> dict[str, Any]:
            return {
                "player_id": player_id,
                "token": token,
                "epoch": state.epoch,
                "seq": state.seq,
                "recovered": recovered,
                "state": state.to_dict(),
                "time": rfc3339(self._runtime.wall_clock()),
                **(greeting or {}),
            }

        first = welcome_messages(welcome, replay)
        self._fanout.attach_locked(player_id, connection, machine.seq, first, closed=machine.closed, number=number)
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
            link = self._fanout.find_locked(player_id)
            seat = self._machine.seats.get(player_id)
        if link is not None:
            return (connection is None or link.connection is connection) and self.drop_link(link)
        if seat is None or not seat.connected or self._machine.closed:
            return False
        # Memory came to its end in the middle of a join: the seat counts as connected, and nobody else would drop it.
        fanout = self._fanout
        try:
            return bool(
                self.execute(c.Disconnect(player_id), None, lambda: fanout.find_locked(player_id) is None, wait=False)
            )
        except PlayerNotFound:
            return False

    def drop_link(self, link: Link) -> bool:
        """For the fanout: a link's connection is lost; whether the seat was dropped by this call. Raises RoomBusy."""
        dropped: list[bool] = []
        fanout = self._fanout

        def detach(events: list[Event]) -> None:
            dropped.append(fanout.detach_locked(link))

        try:
            self.execute(
                c.Disconnect(link.player_id), detach, lambda: fanout.find_locked(link.player_id) is link, wait=False
            )
        except (RoomBusy, LockUpgradeError):
            raise
        except RoomkitError:  # replaced or gone in the meantime
            return False
        return bool(dropped and dropped[0])

    def subscribe(self, callback: Callable[[Event], None], *, limit: int = 1000) -> Callable[[], None]:
        """Call ``callback(event)`` for every event from now on, in seq order, on a thread of its own.

        Args:
            limit: events that may wait for a slow callback; past it they are left out, counted and announced by an
                event of type ``gap`` (fetch them with :meth:`get_events`).

        Returns:
            The function that ends it. It does not wait: a callback that was about to begin, or runs, may still end
            after it has returned; none follows.

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
                self._fanout.subscribe_locked(subscription)

        def stop() -> None:
            subscription.request_stop()
            with self._lock.write(self._config.busy_timeout):
                self._fanout.unsubscribe_locked(subscription)

        return stop

    # The one way in.

    def execute(
        self,
        command: c.Command,
        then: Callable[[list[Event]], None] | None = None,
        unless_changed: Callable[[], bool] | None = None,
        *,
        wait: bool = True,
        timeout: float | None = None,
    ) -> list[Event]:
        """Carry out a command; the methods above are made of this.

        Args:
            then: called with the events under the lock, after the change.
            unless_changed: asked under the lock before the change; when it says no, nothing is done.
            wait: for a room that instances share, until the change is stored.
            timeout: seconds to wait for the room's lock (default: ``busy_timeout``), where this instance has the room.

        Raises:
            RoomkitError: as the command's handler says; nothing changed.
        """
        fanout = self._fanout
        reserved = fanout.reserve(c.CRITICAL_EVENTS[type(command)], self._lock.refuse_upgrade)
        runtime = self._runtime
        machine = self._machine
        events: list[Event] = []
        dropped = 0
        deadline = None
        try:
            self._lock.acquire_write(self._config.busy_timeout if timeout is None else timeout)
            try:
                if unless_changed is None or unless_changed():
                    events = machine.apply(command, runtime.clock(), runtime.wall_clock())
                    if events:
                        # First: whoever gets an event must not read an older state.
                        try:
                            self._snapshot = machine.snapshot() if self._was_read else None
                        except MemoryError:  # the next reader makes it
                            self._snapshot = None
                        self._was_read = False
                        try:
                            for event in events:
                                self._history.append(event)
                        except MemoryError:  # who comes back gets a fresh state
                            self._history.begin_again(machine.seq)
                        key = (
                            command.key and (command.player_id, command.key) if type(command) is c.SendMessage else None
                        )
                        reserved, dropped = fanout.publish_locked(events, reserved, key)
                    if then is not None:
                        then(events)
                if machine.deadline_moved:
                    deadline = machine.next_deadline()
                    machine.deadline_moved = False
            finally:
                self._lock.release_write()
        finally:
            if reserved > 0:
                fanout.queue.release(reserved)
            if events:  # whatever went wrong after the change: it is to be heard of
                fanout.published(len(events), dropped)
        if not events:  # a welcome may wait. Not where the lock was refused: a reader holds the room's
            fanout.published(0, dropped)
        runtime.tally.add("operations", type(command).__name__)
        if deadline is not None:
            runtime.schedule(self, deadline)
        return events

    def submit(
        self,
        command: c.Command,
        answer: Callable[[int], None] | None = None,
        refuse: Callable[[RoomkitError], None] | None = None,
    ) -> None:
        """Carry out a command, and have ``answer(seq)`` called on this thread: with the seq of its last event, or the
        room's when it had none.

        Of a room that instances share the answer comes later, by the thread that delivers its events, after this
        change's own; and not at all when the room goes on elsewhere before it is stored: then its connections are
        closed with 1012. Where another instance owns the room its refusal comes as ``refuse(error)`` in the same way;
        ``BackendUnavailable`` among them means that the change may have been carried out or not.

        Raises:
            RoomkitError: as the command's handler says; nothing changed, neither is called.
        """
        events = self.execute(command)
        if answer is not None:
            answer(events[-1].seq if events else self._machine.seq)

    def submit_join(
        self,
        player_id: str,
        connection: Connection,
        refuse: Callable[[RoomkitError], None],
        *,
        name: str | None = None,
        token: str | None = None,
        password: str | None = None,
        epoch: str | None = None,
        seq: int | None = None,
        greeting: Mapping[str, Any] | None = None,
    ) -> None:
        """:meth:`join` with a connection, without waiting for another instance: why not comes as ``refuse(error)``, at
        once or, where another instance owns the room, by the thread that delivers its events.
        """
        try:
            self.join(
                player_id,
                connection,
                name=name,
                token=token,
                password=password,
                epoch=epoch,
                seq=seq,
                greeting=greeting,
            )
        except RoomkitError as error:
            refuse(error)

    def call_owner(self, what: str, data: dict[str, Any]) -> Any:
        """Where another instance owns the room: have it do what is no command of a room (``answer_instances``).

        Waits for its answer as an operation does.

        Raises:
            RoomkitError: what it raised, or RoomBusy: nobody owns it elsewhere.
        """
        raise RoomBusy(f"room {self.id!r} is this process's own")

    def when_stored(self, tell: Callable[[], None], refuse: Callable[[RoomkitError], None] | None = None) -> None:
        """Call ``tell()``. Of a room that instances share it is called as :meth:`submit` answers, once all that the
        room has done by now is stored; ``refuse`` instead, with BackendUnavailable, when that takes too long.

        Raises:
            RoomBusy: of a shared room, the lock was not to be had.
        """
        tell()

    def drain(self) -> None:
        """Deliver everything that is queued: for the broadcaster's thread and no other. Never blocks."""
        self._fanout.drain()

    def on_pressure(self, pressure: Pressure) -> None:
        """For the fanout: the queue has passed a watermark."""
        self._runtime.watermark(self, pressure)

    # For the manager.

    @property
    def has_threads(self) -> bool:
        """Whether the room has threads of its own at this moment."""
        return self._fanout.has_threads

    def refuse_after_fork(self, refusal: Any) -> None:
        """In a forked child: have every operation raise what ``refusal`` raises when it is used."""
        self._fanout = self._lock = refusal

    def use_broadcaster(self, factory: BroadcasterFactory, timeout: float) -> None:
        """Have another thread drain from now on; waits at most ``timeout`` seconds for the one that did."""
        self._fanout.use_broadcaster(factory, timeout)

    def expire(self) -> bool:
        """Do all that time has made due; whether the room is to be taken away (idle, too old, or closed long enough).

        Raises:
            RoomBusy: not all of it could be done; call again.
        """
        gone = False
        while events := self.execute(c.ExpireNext(), wait=False):
            last = events[-1]
            gone = last.type == "room_closed" and last.data["reason"] in ("expired: idle", "expired: lifetime")
        # Not is_expired(): what has become due since then would be taken away without having been closed.
        with self._lock.read(self._config.busy_timeout):
            machine = self._machine
            return gone or (machine.closed and machine.expired_reason(self._runtime.clock()) is not None)

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
        """Close every connection with 1012 (come back), after what is queued. For a room too busy to be closed."""
        self._fanout.announce_restart_locked(reason)  # what it reads without the lock is replaced as a whole
        self._fanout.broadcaster.wake()

    def close_for_restart(self, reason: Callable[[], str]) -> None:
        """Close every connection with 1012 (come back), and then, unheard by them, the room; all in one change.

        So nothing can be acknowledged whose event has not reached everybody before their 1012.

        Raises:
            RoomBusy: the lock was not to be had; nothing changed.
        """

        def announce_locked() -> bool:
            self._fanout.announce_restart_locked(reason)
            return True

        self.execute(c.Close(None, "shutdown", force=True), None, announce_locked)

    def dispose(self) -> None:
        """The manager has let go of the room: let its threads end, once who came too late has been told so."""
        self._fanout.broadcaster.retire()

    def refuse_connections(self, timeout: float) -> bool:
        """From now on refuse who comes back to the closed room; False: the lock was not to be had in time.

        Under the lock: who was attached before is told how it ended, by :meth:`stop_threads` at the latest.
        """
        try:
            with self._lock.write(timeout):
                self._fanout.stopped = True
        except RoomBusy:
            return False
        return True

    def stop_threads(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds for the broadcaster and the subscribers; False if one still runs."""
        return self._fanout.stop_threads(timeout)

    # For those who watch.

    def glance(self) -> Glance:
        """Its numbers at this moment. Costs about a microsecond, never waits, builds no snapshot."""
        machine, fanout = self._machine, self._fanout
        queue = fanout.queue
        return Glance(
            machine.status,
            machine.closed,
            len(machine.seats),
            machine.connected_count,
            fanout.connection_count,
            len(queue.queue),
            queue.conflated,
            queue.dropped,
        )

    def card(self) -> dict[str, Any]:
        """What a list shows of a room beside its numbers, at this moment; without the lock, like :meth:`glance`."""
        machine = self._machine
        return {
            "host": machine.host,
            "locked": machine.locked,
            "private": machine.private,
            "has_password": machine.password is not None,
            "metadata": machine.metadata,
        }

    def mentions(self, text: str) -> bool:
        """Whether ``text`` (casefolded, in one line) is in the id, a player's id or name, or a value of the metadata,
        upper or lower case. Without the lock, like :meth:`glance`.
        """
        machine = self._machine
        words = [self.id]
        for seat in list(machine.seats.values()):  # a copy in one step: seats come and go meanwhile
            words += (seat.id, seat.name)
        for value in machine.metadata.values():
            words.append(value if isinstance(value, str) else encode_json(value).decode())
        return text in "\n".join(words).casefold()

    def deadlines(self) -> list[tuple[str, str | None, float]]:
        """What time will demand, as ``(rule, player id or None, seconds from now)``. Raises RoomBusy."""
        with self._lock.read(self._config.busy_timeout):
            found = self._machine.deadlines()
        now = self._runtime.clock()
        return [(rule, player_id, at - now) for rule, player_id, at in found]

    def connections(self) -> dict[str, Connection]:
        """Player id -> live connection, at this moment, without the lock. For a look: they belong to their threads."""
        return self._fanout.connections

    @property
    def connection_count(self) -> int:
        """Live connections."""
        return self._fanout.connection_count

    @property
    def queue_depth(self) -> int:
        """Entries that wait for delivery."""
        return len(self._fanout.queue.queue)

    @property
    def dropped(self) -> dict[str, int]:
        """Events dropped from live delivery since the room was made, by type."""
        return dict(self._fanout.queue.dropped)

    @property
    def conflated(self) -> int:
        """Events replaced by a newer one of their key before they were delivered."""
        return self._fanout.queue.conflated
