"""RoomManager: makes, finds, lists and takes away rooms.

Lock order, for the whole library (a thread may take a lock only when it holds none of its line or below)::

    room lock (Room._lock)  ->  queue mutex (EventQueue.mutex)
    manager lock (RoomManager._lock)           alone: never while a room's lock is held, nor the other way round
    leaf locks (Tally, Worker, Subscription, Reaper and Node conditions)   nothing is taken while one is held

No user hook, socket call, log handler or backend call runs under any of them.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from roomkit import forks
from roomkit.backends.base import Backend, Instance
from roomkit.broadcaster import BroadcasterFactory, ThreadBroadcaster
from roomkit.concurrency.turns import Turns
from roomkit.concurrency.worker import Worker
from roomkit.core import commands as c
from roomkit.core.config import RoomConfig
from roomkit.core.expiry import DeadlineHeap
from roomkit.core.ids import check_id
from roomkit.core.lifecycle import GAME, Lifecycle
from roomkit.core.record import load, load_events
from roomkit.core.snapshot import Player, RoomState
from roomkit.core.state import RoomMachine
from roomkit.errors import (
    BackendUnavailable,
    InvalidMessage,
    InvalidRecord,
    LimitExceeded,
    RoomBusy,
    RoomExists,
    RoomkitError,
    RoomNotFound,
    ShuttingDown,
)
from roomkit.listing import RoomPage, Wanted, Wish, fits, unhurried
from roomkit.metrics import Tally
from roomkit.reaper import Reaper
from roomkit.room import Room
from roomkit.runtime import Pressure, Runtime, new_secret, new_short_id
from roomkit.sharing.node import Node
from roomkit.sharing.room import SharedRoom

log = logging.getLogger("roomkit.manager")

_TOLD = frozenset(("max_players", "min_players", "owner"))  # wishes for a room that other instances are told
_MAKING = 3.0  # seconds for which somebody with the same wish, who makes a room for it, is waited for
_MOST_OFFERED = 20  # rooms that one instance offers another
_ANSWERS = 1.0  # seconds for which, at the end, the owners of followed rooms may answer what was asked
_RETRY = 1.0  # seconds until a room that was too busy to expire is looked at again


class RoomManager:
    """A set of rooms.

    Args:
        config: the bounds of rooms that are made without their own.
        clock: monotonic seconds, for every deadline; inject one to age rooms by hand.
        wall_clock: Unix seconds, for timestamps.
        lifecycle: the table of rooms that are made without their own.
        max_rooms, max_rooms_per_owner: limits; 0: none.
        on_watermark: called as ``on_watermark(room, pressure)`` on the thread ``roomkit-hooks`` when the load of a
            room's queue passes 80 %, and when its share of dropped events passes 5 % (``pressure.load``,
            ``pressure.drop_rate``; the marks are in ``RoomConfig``).
        new_room_id, new_token: where ids and secrets come from.
        backend: where instances share their rooms; None: they are this process's alone. The manager does not close it.
        instance, address: how this instance is called there, and where people and load balancers reach it. What makes
            the name unique is added: a process that is started anew is another instance.
        lifecycles: other tables of rooms that may be found there, besides ``lifecycle`` and the game's.

    No thread is started before it is needed. :meth:`start_cleanup` (or ``with``) starts the reaper; without it call
    :meth:`cleanup` now and then, or nothing ever expires.

    Thread safety: full.
    """

    def __init__(
        self,
        config: RoomConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        wall_clock: Callable[[], float] = time.time,
        lifecycle: Lifecycle = GAME,
        max_rooms: int = 0,
        max_rooms_per_owner: int = 0,
        on_watermark: Callable[[Room, Pressure], None] | None = None,
        new_room_id: Callable[[], str] = new_short_id,
        new_token: Callable[[], str] = new_secret,
        backend: Backend | None = None,
        instance: str = "instance",
        address: str = "",
        lifecycles: Iterable[Lifecycle] = (),
    ) -> None:
        self.config = config if config is not None else RoomConfig()
        self.lifecycle = lifecycle
        self.max_rooms = max_rooms
        self.max_rooms_per_owner = max_rooms_per_owner
        self.tally = Tally()
        self._clock = clock
        self._new_room_id = new_room_id
        self._on_watermark = on_watermark
        self._runtime = Runtime(
            clock,
            wall_clock,
            new_token=new_token,
            tally=self.tally,
            schedule=self._schedule,
            watermark=self._watermark,
        )
        self._hooks = Worker("roomkit-hooks", self._run_hooks)
        # Of those who want the same room at once, and find none, one makes it. Held while that is stored.
        self._making = Turns()
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._rooms: dict[str, Room] = {}
        self._owners: dict[str, str] = {}
        self._owned: Counter[str] = Counter()
        self._heap: DeadlineHeap[str] = DeadlineHeap()
        self._reaper: Reaper | None = None
        self._shut_down = False
        self._broadcaster: BroadcasterFactory = ThreadBroadcaster
        self._passed: dict[str, tuple[Room, Pressure]] = {}  # watermarks to be told, by room
        self._last_sweep: dict[str, Any] = {"at": None, "due": 0, "taken_away": 0, "seconds": 0.0}
        self._forked = False
        self._handlers: dict[str, Callable[[str, dict[str, Any]], Any]] = {
            "transfer": self._serve_transfer,
            "remove": self._serve_remove,
            "list": self._serve_list,
            "open_rooms": self._serve_open_rooms,
            "join_or_create": self._serve_join_or_create,
        }
        self._lifecycles = {known.name: known for known in (GAME, lifecycle, *lifecycles)}
        self._node: Node | None = None
        self._kind = Room if backend is None else SharedRoom
        if backend is not None:
            name = check_id(f"{instance}.{new_short_id()}", "an instance's name")
            self._node = Node(backend, Instance(name, address), self, self.tally, clock, self._handlers)
        forks.watch(self)

    def __enter__(self) -> RoomManager:
        self.start_cleanup()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()

    def __len__(self) -> int:
        return self._count_locked()

    def __contains__(self, room_id: str) -> bool:
        return room_id in self._rooms

    # Making and finding.

    def create_room(
        self,
        room_id: str | None = None,
        *,
        config: RoomConfig | None = None,
        lifecycle: Lifecycle | None = None,
        metadata: Mapping[str, Any] | None = None,
        private: bool = False,
        password: str | None = None,
        owner: str | None = None,
        **options: Any,
    ) -> Room:
        """Make a room; without an id one is generated.

        Args:
            config: its bounds (default: the manager's). options: single fields of ``RoomConfig`` to change.
            private: found by its id only. password: asked of everyone who joins from outside.
            owner: who is charged for it, when ``max_rooms_per_owner`` is set.

        Raises:
            RoomExists, LimitExceeded, ShuttingDown, InvalidId, InvalidConfig, InvalidMessage (metadata): nothing was
            made.
        """
        room = self._make_room(
            room_id,
            config=config,
            lifecycle=lifecycle,
            metadata=metadata,
            private=private,
            password=password,
            owner=owner,
            **options,
        )
        self._publish(room, owner)
        return room

    def _make_room(
        self,
        room_id: str | None = None,
        *,
        config: RoomConfig | None = None,
        lifecycle: Lifecycle | None = None,
        metadata: Mapping[str, Any] | None = None,
        private: bool = False,
        password: str | None = None,
        owner: str | None = None,
        **options: Any,
    ) -> Room:
        """A room that nobody can find until :meth:`_admit`; left alone it is gone without a trace."""
        if room_id is not None:
            check_id(room_id, "a room id")
        base = config if config is not None else self.config
        if (
            isinstance(options.get("max_players"), int)
            and "min_players" not in options
            and (base.min_players or 0) > options["max_players"]
        ):
            options["min_players"] = None
        settled = base.replace(**options) if options else base
        if password is not None and (not isinstance(password, str) or not 1 <= len(password) <= 256):
            raise InvalidMessage("a password is text of 1 to 256 characters")
        self._check_limits(room_id, owner)
        return self._kind(
            room_id if room_id is not None else self._new_room_id(),
            settled,
            lifecycle=lifecycle if lifecycle is not None else self.lifecycle,
            metadata=metadata,
            private=private,
            password=password,
            runtime=self._runtime,
            broadcaster=self._broadcaster,
        )

    def _publish(self, room: Room, owner: str | None) -> None:
        """A new room is as it should be: let it be stored, where rooms are, and found. Raises what _admit does, and
        BackendUnavailable, RoomBusy: it was not.
        """
        node = self._node
        if node is None:
            self._admit(room, owner)
            return
        assert isinstance(room, SharedRoom)
        node.create(room)
        try:
            self._admit(room, owner)
        except BaseException:
            node.remove(room)
            raise
        if not node.has(room):  # lost before it could be found: it goes on elsewhere
            self._drop(room)
            raise BackendUnavailable(f"room {room.id!r} was made, and went on elsewhere at once")

    def _admit(self, room: Room, owner: str | None, new: bool = True) -> None:
        """Let a new room be found, or one that was another instance's. RoomExists, LimitExceeded, ShuttingDown: it was
        not.
        """
        try:
            deadline = room.next_deadline()
        except RoomBusy:  # of a shared room others may know already: with the next look
            deadline = self._clock() + _RETRY
        while True:
            broadcaster = self._broadcaster
            room.use_broadcaster(broadcaster, 0)  # it may be another one than when the room was made
            with self._lock:
                if new:
                    self._check_limits_locked(room.id, owner)
                elif self._shut_down:
                    raise ShuttingDown("the server is shutting down")
                if broadcaster is not self._broadcaster:
                    continue
                self._rooms[room.id] = room
                if owner is not None:
                    self._owners[room.id] = owner
                    self._owned[owner] += 1
                self._heap.set(room.id, deadline)
                reaper = self._reaper if self._heap.next_deadline() == deadline else None
                break
        if new:
            self.tally.add("rooms_created")
        if reaper is not None:
            reaper.wake()

    def _check_limits(self, room_id: str | None, owner: str | None) -> None:
        with self._lock:
            self._check_limits_locked(room_id, owner)

    def _check_limits_locked(self, room_id: str | None, owner: str | None) -> None:
        if self._shut_down:
            raise ShuttingDown("the server is shutting down")
        if room_id is not None and room_id in self._rooms:
            raise RoomExists(f"there is already a room {room_id!r}")
        if self.max_rooms and self._count_locked() >= self.max_rooms:
            self.tally.add("limited", "rooms")
            raise LimitExceeded(f"there are already {self.max_rooms} rooms")
        if self.max_rooms_per_owner and owner is not None and self._owned[owner] >= self.max_rooms_per_owner:
            self.tally.add("limited", "rooms_per_owner")
            raise LimitExceeded(f"{owner!r} already has {self.max_rooms_per_owner} rooms")

    def _count_locked(self) -> int:
        """Rooms, those that are only followed left out."""
        return len(self._rooms) - (0 if self._node is None else len(self._node.following.rooms))

    def get_room(self, room_id: str) -> Room:
        """The room with this id. Where instances share their rooms it may be another instance's: it is like any other,
        but for ``Room.followed``. One that none of them goes on with is this one's from now on. To look for a room that
        is not here yet waits for some answers of the store.

        Raises:
            RoomNotFound: there is none. RoomBusy: too many look for it. BackendUnavailable.
        """
        room = self._rooms.get(room_id)  # a dict read is atomic
        if room is not None:
            return room
        if self._node is None:
            raise RoomNotFound(f"there is no room {room_id!r}")
        return self._open(self._node, check_id(room_id, "a room id"))

    def _open(self, node: Node, room_id: str) -> Room:
        node.open(room_id)
        room = self._rooms.get(room_id)
        if room is None:  # it has ended in the meantime
            raise RoomNotFound(f"there is no room {room_id!r}")
        return room

    def find_room(self, room_id: str) -> Room | None:
        """The room with this id, if it is in this process now, or None."""
        return self._rooms.get(room_id)

    def rooms(self) -> tuple[Room, ...]:
        """Every room at this moment, in the order of creation; where instances share them, those that this one owns."""
        with self._lock:
            rooms = tuple(self._rooms.values())
        return rooms if self._node is None else tuple([room for room in rooms if not room.followed])

    def list_rooms(
        self,
        *,
        status: str | Iterable[str] | None = None,
        has_space: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
        include_private: bool = False,
        sort: str = "created_at",
        limit: int | None = None,
        cursor: str | None = None,
    ) -> RoomPage:
        """The rooms that fit, as states; where instances share them, every instance's that answers within a second.

        Args:
            status: one or several. has_space: whether a new player could sit down now.
            metadata: pairs that must all be there.
            sort: created_at, players or id; with ``-`` in front descending. Equal ones by id.
            limit: at most so many; the page then has ``next_cursor``, which continues it even when rooms come and go.

        Raises:
            InvalidMessage: an unknown sort, a negative limit, or a cursor that a listing with this sort did not give.
        """
        wanted = Wanted(
            None if status is None else (str(status),) if isinstance(status, str) else tuple(map(str, status)),
            has_space,
            None if metadata is None else dict(metadata),
            include_private,
            sort,
            limit,
            cursor,
        )
        if self._node is None:
            return self._list(wanted)
        states = [*self._list(wanted.with_one_more()), *self._node.elsewhere.list_rooms(wanted.with_one_more())]
        return wanted.page_of(states)

    def _list(self, wanted: Wanted) -> RoomPage:
        """Of the rooms that are this process's."""
        states = []
        for room in self.rooms():
            state = room.get_state()
            fitting = wanted.has_space is None or is_open(room, state) is wanted.has_space
            if fitting and (wanted.include_private or not state.private):
                states.append(state)
        return wanted.page_of(states)

    def join_or_create(
        self,
        player_id: str,
        name: str | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        reserve: bool = False,
        **options: Any,
    ) -> tuple[Room, Player]:
        """Seat a player in an open, public room that fits, the fullest first, or in a new one.

        Args:
            metadata: pairs that the room must have; a new one gets them.
            reserve: give the seat up after ``reservation_ttl`` unless a connection comes (for seats taken over REST).
            options: for ``create_room``; ``max_players`` and ``min_players`` also choose among rooms.

        Returns:
            The room and the player with its token.

        Raises:
            what ``create_room`` and ``Room.add_player`` raise, but not RoomFull; nothing changed.
        """
        check_id(player_id, "a player id")
        if self._shut_down:
            raise ShuttingDown("the server is shutting down")
        if self._node is None or not _TOLD.issuperset(options):  # what is no JSON cannot be asked for elsewhere
            return self._join_or_create(player_id, name, metadata, reserve, options)
        elsewhere = self._node.elsewhere.open_rooms(player_id, metadata, options)
        here = [key for key, _ in self.open_rooms(player_id, metadata, options)]
        for key in sorted([*here, *elsewhere]):
            try:
                room = self.get_room(key[2])
                return room, self._seat(room, player_id, name, reserve)
            except (InvalidMessage, ShuttingDown):
                raise
            except RoomkitError:  # it filled up, closed or locked in the meantime: the next one
                continue
        # All with the same wish come to the same instance in the end, where they meet instead of making a room each.
        wish = {"metadata": metadata, "options": options}
        found = self._node.elsewhere.meet(wish, {**wish, "player_id": player_id, "name": name, "reserve": reserve})
        if found is None:
            return self._join_or_create(player_id, name, metadata, reserve, options)
        room = self.get_room(found["room_id"])
        player = room.get_state().get_player(player_id) or Player(player_id, found["name"])
        return room, msgspec.structs.replace(player, token=found["token"])

    def _join_or_create(
        self,
        player_id: str,
        name: str | None,
        metadata: Mapping[str, Any] | None,
        reserve: bool,
        options: Mapping[str, Any],
    ) -> tuple[Room, Player]:
        """Among the rooms that are this process's."""
        found = self._join_any(player_id, name, metadata, reserve, options)
        if found is not None:
            return found
        wish = repr((sorted((metadata or {}).items(), key=str), sorted(options.items(), key=str)))
        with self._making.take(wish, _MAKING):  # who had to wait finds the room that was made meanwhile
            found = self._join_any(player_id, name, metadata, reserve, options)
            if found is not None:
                return found
            room = self._make_room(metadata=metadata, **options)
            player = self._seat(room, player_id, name, reserve)  # before anybody else can find it
            self._publish(room, options.get("owner"))
            return room, player

    def _join_any(
        self,
        player_id: str,
        name: str | None,
        metadata: Mapping[str, Any] | None,
        reserve: bool,
        options: Mapping[str, Any],
    ) -> tuple[Room, Player] | None:
        for _, room in self.open_rooms(player_id, metadata, options):
            try:
                return room, self._seat(room, player_id, name, reserve)
            except (InvalidMessage, ShuttingDown):
                raise
            except RoomkitError:  # it filled up, closed or locked in the meantime: the next one
                continue
        return None

    def open_rooms(
        self, player_id: str, metadata: Mapping[str, Any] | None, options: Mapping[str, Any]
    ) -> list[tuple[tuple[int, float, str], Room]]:
        """The rooms that :meth:`join_or_create` tries, in that order, each with what they are sorted by."""
        candidates = []
        for room in self.rooms():
            state = room.get_state()
            if state.private or state.has_password or not is_open(room, state) or not fits(state.metadata, metadata):
                continue
            if any(options.get(key) not in (None, getattr(state, key)) for key in ("max_players", "min_players")):
                continue
            if state.get_player(player_id) is None:
                candidates.append(((-len(state.players), state.created_at, state.id), room))
        return sorted(candidates, key=lambda row: row[0])

    @staticmethod
    def _seat(room: Room, player_id: str, name: str | None, reserve: bool) -> Player:
        if reserve:
            return room.join(player_id, name=name, password=room.password).player
        return room.add_player(player_id, name)

    def transfer(
        self,
        room: Room,
        player_id: str | None = None,
        *,
        new_room_id: str | None = None,
        answer: Callable[[str, int], None] | None = None,
    ) -> Room:
        """Seat everybody of ``room`` in a new one with the same bounds, settings, bans and tokens (a rematch).

        Those who are connected get ``room_transferred``; with it the old room closes. Seats that nobody takes again are
        given up after ``reconnect_grace``. The host stays host.

        Args:
            answer: called with the new room's id and the old one's last seq, as :meth:`Room.submit` answers.

        Raises:
            NotHost, PlayerNotFound, InvalidTransition (closed), RoomExists, LimitExceeded, ShuttingDown, RoomBusy: the
            old room is as it was and no new one is left.
        """
        if isinstance(room, SharedRoom) and room.followed:
            # Its id is chosen here: whoever has to ask again asks for the same room.
            room_id = new_room_id if new_room_id is not None else self._new_room_id()
            room.ask_transfer(player_id, room_id, None if answer is None else lambda seq: answer(room_id, seq))
            return self.get_room(room_id)
        return self._transfer(room, player_id, new_room_id, answer)

    def _transfer(
        self,
        room: Room,
        player_id: str | None,
        new_room_id: str | None,
        answer: Callable[[str, int], None] | None = None,
        command_id: str = "",
    ) -> Room:
        """``command_id``: of another instance that asks for it."""
        with room.reading() as state:
            seats, bans = room.seats_locked(), room.bans_locked()
        with self._lock:
            owner = self._owners.get(room.id)
        new = self._make_room(
            new_room_id,
            config=room.config,
            lifecycle=room.lifecycle,
            metadata=dict(state.metadata),
            private=state.private,
            password=room.password,
            owner=owner,
        )
        # All of this before anybody else can find the room, so that no stranger takes a seat.
        for seat in sorted(seats, key=lambda seat: seat.id != state.host):  # stable: the host first, then the rest
            new.seat_again(seat)
        new.inherit(state, bans)
        self._publish(new, owner)
        try:
            if command_id and isinstance(room, SharedRoom):
                room.execute_once(c.Transfer(player_id, new.id), command_id)
            elif answer is None:
                room.execute(c.Transfer(player_id, new.id))
            else:
                room.submit(c.Transfer(player_id, new.id), lambda seq: answer(new.id, seq))
        except BackendUnavailable:  # it may have been carried out: then people are on their way there
            raise
        except BaseException:
            new.execute(c.Close(None, "transfer failed", force=True))
            self._remove(new)
            raise
        return new

    # Going.

    def remove_room(self, room_id: str, reason: str = "removed") -> None:
        """Close a room and take it away at once; out of the store, where there is one, as soon as that answers.

        Raises:
            RoomNotFound: there is none.
        """
        room = self.get_room(room_id)
        if room.followed:
            room.call_owner("remove", {"reason": reason})
            return
        room.execute(c.Close(None, reason, force=True))
        self._remove(room, wait=True)

    # Other instances: what they ask, and what they are asked.

    def ask_instances(self, what: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """What the others that are alive answer, by their names, each with what :meth:`answer_instances` has it call;
        none where nobody shares rooms. Waits a second at most; whoever does not answer by then is left out.
        """
        return {} if self._node is None else self._node.elsewhere.ask(what, dict(data))

    def answer_instances(self, what: str, answer: Callable[[str, dict[str, Any]], Any]) -> None:
        """When another instance asks for ``what``, call ``answer(room_id, data)``, which returns what JSON can tell."""
        self._handlers[what] = answer

    @property
    def instance(self) -> str:
        """What this instance is called among those that share rooms; empty: there are none."""
        return "" if self._node is None else self._node.instance.name

    def _serve_transfer(self, room_id: str, data: dict[str, Any]) -> str:
        room = self._own_room(room_id)
        player_id, new_room_id, command_id = data.get("player_id"), data.get("new_room_id"), data.get("id")
        if player_id is not None:
            check_id(player_id, "a player id")
        new_room_id = check_id(new_room_id, "a room id")
        if not isinstance(command_id, str) or not 1 <= len(command_id) <= 200:
            raise InvalidMessage("a command's id is text of 1 to 200 characters")
        if room.acted_by(command_id) is None:  # else its answer was lost
            self._transfer(room, player_id, new_room_id, command_id=command_id)
        return new_room_id

    def _serve_remove(self, room_id: str, data: dict[str, Any]) -> None:
        self._own_room(room_id)
        self.remove_room(room_id, str(data.get("reason", "removed"))[:100])

    def _serve_list(self, room_id: str, data: dict[str, Any]) -> list[Any]:
        page = self._list(msgspec.convert(data, Wanted))
        return [[state.to_dict(), state.created_at, state.started_at] for state in page]

    def _serve_open_rooms(self, room_id: str, data: dict[str, Any]) -> list[Any]:
        wish = msgspec.convert(data, Wish)
        return [key for key, _ in self.open_rooms(wish.player_id, wish.metadata, wish.options)[:_MOST_OFFERED]]

    def _serve_join_or_create(self, room_id: str, data: dict[str, Any]) -> dict[str, Any]:
        wish = msgspec.convert(data, Wish)
        check_id(wish.player_id, "a player id")
        options = {key: value for key, value in wish.options.items() if key in _TOLD}
        room, player = self._join_or_create(wish.player_id, wish.name, wish.metadata, wish.reserve, options)
        return {"room_id": room.id, "name": player.name, "token": player.token}

    def _own_room(self, room_id: str) -> SharedRoom:
        room = self._rooms.get(room_id)
        if not isinstance(room, SharedRoom) or room.followed:
            raise RoomBusy(f"room {room_id!r} goes on at another instance; try again")
        return room

    def _remove(self, room: Room, wait: bool = False) -> bool:
        """It has ended."""
        known = self._drop(room)
        if known and self._node is not None:
            self._node.remove(room, wait)
        return known

    def _drop(self, room: Room) -> bool:
        """It cannot be found any more."""
        with self._lock:
            if self._rooms.get(room.id) is not room:
                return False
            del self._rooms[room.id]
            self._heap.discard(room.id)
            owner = self._owners.pop(room.id, None)
            if owner is not None:
                self._owned[owner] -= 1
                if not self._owned[owner]:
                    del self._owned[owner]
        self.tally.add("rooms_removed")
        self.tally.add_many("dropped_by_removed", room.dropped)
        room.dispose()
        return True

    # For the node, where instances share rooms.

    def revive(self, record: bytes, read: Callable[[str, int], Sequence[bytes]]) -> SharedRoom:
        """See sharing.node.Rooms."""
        machine = self.machine_of(record)
        after = max(0, machine.seq - machine.config.history_size)
        try:
            history = load_events(read(machine.epoch, after), machine.seq)
        except InvalidRecord:  # who comes back gets a fresh state
            log.exception("the events of room %s cannot be read", machine.id)
            history = []
        return SharedRoom.from_machine(machine, history, self._runtime, self._broadcaster)

    def machine_of(self, record: bytes) -> RoomMachine:
        """See sharing.node.Rooms."""
        return load(record, self._lifecycles, self._clock(), self._runtime.wall_clock())

    def take_over(self, room: SharedRoom) -> None:
        """See sharing.node.Rooms."""
        self._admit(room, None, new=False)

    def lose(self, room: SharedRoom) -> None:
        """See sharing.node.Rooms."""
        self._drop(room)

    def cleanup(self) -> list[str]:
        """One sweep: do everything that is due by now, and return the ids of the rooms taken away.

        Costs what is due, not what exists. A room that is too busy is looked at again a second later.
        """
        started = time.perf_counter()
        now = self._clock()
        with self._lock:
            due = [(room_id, self._rooms[room_id]) for room_id in self._heap.pop_due(now) if room_id in self._rooms]
        gone = []
        for room_id, room in due:
            try:
                if room.expire():  # checks again, under the room's lock
                    if self._remove(room) and not room.followed:  # else it goes on at its owner
                        gone.append(room_id)
                    continue
                deadline = room.next_deadline()
            except (RoomBusy, ShuttingDown):
                deadline = now + _RETRY
            except BaseException:  # of a guard, SystemExit too: this room, and those behind it, would never expire
                log.exception("room %s could not be swept; it is looked at again", room_id)
                deadline = now + _RETRY
            deadline = max(deadline, math.nextafter(now, math.inf))
            with self._lock:
                if self._rooms.get(room_id) is room:
                    known = self._heap.get(room_id)  # of an operation since then
                    if known is None or deadline < known:
                        self._heap.set(room_id, deadline)
        if due and (reaper := self._reaper) is not None:  # it may have fallen asleep without these rooms
            reaper.wake()
        self._last_sweep = {
            "at": self._runtime.wall_clock(),
            "due": len(due),
            "taken_away": len(gone),
            "seconds": time.perf_counter() - started,
        }
        self.tally.add("sweeps")
        if gone:
            self.tally.add("rooms_expired", count=len(gone))
            log.info("took away %d expired rooms", len(gone))
        return gone

    def start_cleanup(self) -> None:
        """Start the reaper, a daemon thread named ``roomkit-reaper``, unless it runs. Ended by :meth:`shutdown`.

        Raises:
            ShuttingDown: the manager is shut down.
        """
        with self._lock:
            if self._shut_down:
                raise ShuttingDown("the manager is shut down")
            if self._reaper is not None:
                return
            self._reaper = reaper = Reaper(self.cleanup, self._seconds_to_next)
        reaper.start()
        if self._node is not None:
            self._node.start()

    def _seconds_to_next(self) -> float:
        with self._lock:
            deadline = self._heap.next_deadline()
        return math.inf if deadline is None else deadline - self._clock()

    def _schedule(self, room: Room, deadline: float) -> None:
        with self._lock:
            if self._rooms.get(room.id) is not room:  # not yet, or no more
                return
            known = self._heap.get(room.id)  # none: a sweep is looking at the room, and keeps the earlier one
            if known is not None and deadline >= known:  # later is found out when it pops
                return
            self._heap.set(room.id, deadline)
            reaper = self._reaper if self._heap.next_deadline() == deadline else None
        if reaper is not None:
            reaper.wake()

    def shutdown(self, timeout: float = 10.0, *, spread: float = 5.0) -> bool:
        """Stop admitting, tell connected clients to come back (1012, after a random part of ``spread`` seconds, so that
        they do not come all at once), close every room, deliver what is queued, and join the threads. Rooms that
        instances share are not closed: they are stored, and go on elsewhere.

        Blocks at most about ``timeout`` seconds. A second call does nothing.

        Returns:
            Whether every thread ended in time.
        """
        deadline = time.monotonic() + timeout
        if self._forked:  # nothing here is this process's to end
            return True
        with self._lock:
            if self._shut_down:
                return True
            self._shut_down = True
            reaper, self._reaper = self._reaper, None
            rooms = list(self._rooms.values())
        ended = reaper is None or reaper.stop(max(0.0, deadline - time.monotonic()))

        def come_back() -> str:
            return f"restarting; come back in {random.uniform(0, spread):.1f} s"  # nosec B311

        if self._node is not None:
            self._node.leave()
        busy = rooms
        answered_by = time.monotonic() + min(_ANSWERS, timeout / 4)
        while True:  # those that are too busy again, after all the others
            hurry = time.monotonic() >= answered_by
            busy = [room for room in busy if not _closed_for_restart(room, come_back, hurry)]
            if not busy or time.monotonic() >= deadline:
                break
            time.sleep(0.001)  # for rooms whose busy_timeout is 0, or whose owner answers just now
        for room in busy:
            log.warning("room %s was too busy to close", room.id)
            room.announce_restart(come_back)
        if self._node is not None:
            ended = self._node.stop(max(0.0, deadline - time.monotonic())) and ended
        for room in rooms:
            ended = room.refuse_connections(max(0.0, deadline - time.monotonic())) and ended
            ended = room.stop_threads(max(0.0, deadline - time.monotonic())) and ended
            self._drop(room)
        return self._hooks.stop(max(0.0, deadline - time.monotonic())) and ended

    @property
    def is_shut_down(self) -> bool:
        """Whether :meth:`shutdown` was called."""
        return self._shut_down

    @property
    def shares_rooms(self) -> bool:
        """Whether there is a backend."""
        return self._node is not None

    @property
    def store_answers(self) -> bool:
        """Whether the backend, if there is one, answered last."""
        return self._node is None or self._node.reachable

    @property
    def has_threads(self) -> bool:
        """Whether threads are at work for the rooms now: the reaper, broadcasters, subscribers, a server's."""
        return (
            self._reaper is not None
            or self._hooks.running
            or (self._node is not None and self._node.running)
            or self._broadcaster is not ThreadBroadcaster
            or any(room.has_threads for room in self._rooms.values())
        )

    def refuse_after_fork(self, refusal: Any) -> None:
        """In a forked child: have every use, but for :meth:`shutdown`, raise what ``refusal`` raises when used."""
        rooms = list(self._rooms.values())
        self._forked = True
        self._lock = self._rooms = refusal
        for room in rooms:
            room.refuse_after_fork(refusal)

    def use_broadcaster(self, factory: BroadcasterFactory, timeout: float = 1.0) -> None:
        """Have other threads drain the rooms, those that are there and those to come (the server's I/O threads)."""
        with self._lock:
            self._broadcaster = factory
            rooms = list(self._rooms.values())
        for room in rooms:
            room.use_broadcaster(factory, timeout)

    # Watching.

    def stats(self) -> dict[str, Any]:
        """Counts over all rooms at this moment; ``zombie_rooms`` (seed) are those with nobody connected or closed.

        Where instances share rooms ``sharing`` says how this one is doing; the rest is about the rooms that it owns.

        Takes no room's lock, and lets other threads run in between: with 10,000 rooms it takes some 50 ms, half of
        them asleep.
        """
        by_status: Counter[str] = Counter()
        players = depth = deepest = zombies = connections = conflated = 0
        dropped: Counter[str] = Counter(self.tally.by_label("dropped_by_removed"))
        rooms = self.rooms()
        for room in unhurried(rooms):
            now = room.glance()
            by_status[now.status] += 1
            players += now.players
            connections += now.connections
            depth += now.queue_depth
            conflated += now.conflated
            if now.queue_depth > deepest:
                deepest = now.queue_depth
            if now.dropped:
                dropped.update(dict(now.dropped))
            if not now.connected or now.closed:
                zombies += 1
        return {
            "total_rooms": len(rooms),
            "active_rooms": len(rooms) - zombies,
            "zombie_rooms": zombies,
            "by_status": {str(status): count for status, count in by_status.items()},
            "players": players,
            "connections": connections,
            "queue_depth": depth,
            "deepest_queue": deepest,
            "dropped": dict(dropped),
            "conflated": conflated,
            "operations": self.tally.by_label("operations"),
            "deliveries": self.tally.get("deliveries"),
            "busy": self.tally.get("busy"),
            "rooms_created": self.tally.get("rooms_created"),
            "rooms_removed": self.tally.get("rooms_removed"),
            "rooms_expired": self.tally.get("rooms_expired"),
            "sweeps": self.tally.get("sweeps"),
            "last_sweep": dict(self._last_sweep),
            "watermarks": self.tally.get("watermarks"),
            **({} if self._node is None else {"sharing": self._node.stats()}),
        }

    def _watermark(self, room: Room, pressure: Pressure) -> None:
        self.tally.add("watermarks")
        if self._on_watermark is None:
            return
        with self._lock:
            self._passed[room.id] = (room, pressure)
        self._hooks.wake()

    def _run_hooks(self) -> None:
        with self._lock:
            passed, self._passed = self._passed, {}
        assert self._on_watermark is not None
        for room, pressure in passed.values():
            try:
                self._on_watermark(room, pressure)
            except BaseException:
                self.tally.add("hook_errors")
                log.exception("on_watermark failed for room %s", room.id)


def is_open(room: Room, state: RoomState) -> bool:
    """Whether a new player could sit down now."""
    return state.has_space and not state.locked and room.lifecycle.allows(state.status, "add_player")


def _closed_for_restart(room: Room, reason: Callable[[], str], hurry: bool) -> bool:
    """False: it was too busy, or unless in a ``hurry`` some of its people wait for an owner's answer."""
    try:
        if isinstance(room, SharedRoom):
            room.hand_over(reason, hurry=hurry)
        else:
            room.close_for_restart(reason)
    except RoomBusy:
        return False
    return True
