"""Following: the rooms that an instance follows, and its mail with the others.

How an operation goes at an instance that does not own the room::

    caller            Copy.ask -> post(owner, Ask)
    roomkit-store     Backend.send                                              (flush)
    the owner         roomkit-desk-N carries it out; its roomkit-store commits; the commit's entry names the command
    roomkit-feed-N    hear_events: write lock: state, history, queue; whoever waits for the command is told
                      the room's broadcaster delivers and answers

Hearing is never relied on. A command is sent again until its answer is there, to whoever owns the room by then, and
acts once. Every second the store is asked how far the rooms are and who owns them: what was not heard is read from the
log, once for all who are connected here. And whose connections are here is told every third of a lease, to a new owner
at once.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from roomkit.backends.base import Backend, Ear, Events, Held, Position
from roomkit.concurrency.turns import Turns
from roomkit.errors import BackendUnavailable, InvalidRecord, RoomBusy, RoomNotFound, ShuttingDown, error_for
from roomkit.metrics import Tally
from roomkit.room import Room
from roomkit.sharing import letters as mail
from roomkit.sharing.copy import Copy, Heard, Outcome
from roomkit.sharing.room import SharedRoom

log = logging.getLogger("roomkit.sharing")

_BATCH = 500  # rooms in one question
_LOCK = 0.002  # seconds for which one room's lock may hold up all the others
_PAUSE = 0.05  # seconds until a room that was locked is tried again
_LOOK = 1.0  # seconds between two looks at how far the rooms are
_AGAIN = 1.0  # seconds after which something is asked again
_STARTING = 5.0  # seconds for which another thread is waited for that begins to listen, which takes no time
_MOST = 10_000  # letters that may wait to be sent

_calls = itertools.count(1)


class Rooms(Protocol):
    """The node and the manager, as seen from here. Called without any lock."""

    def revive(self, record: bytes, read: Callable[[str, int], Sequence[bytes]]) -> SharedRoom:
        """The room of a record; ``read(epoch, after)`` gives its events. Raises InvalidRecord."""

    def take_over(self, room: SharedRoom) -> None:
        """Let it be found. Raises ShuttingDown."""

    def lose(self, room: SharedRoom) -> None:
        """It cannot be found here any more."""


class Following:
    """See the module. One per node.

    Monitor: ``_lock`` guards ``_out``, ``_behind`` and ``_calls``. No backend call or room runs under it.

    Thread safety: :meth:`post`, :meth:`behind`, ``hear_*``, :meth:`follow`, :meth:`call` by any thread; the rest by the
    thread that stores.
    """

    def __init__(
        self,
        backend: Backend,
        name: str,
        rooms: Rooms,
        tally: Tally,
        clock: Callable[[], float],
        wake: Callable[[], None],
        take: Callable[[mail.Any_], None],
        owned: Callable[[str], SharedRoom | None],
        claim: Callable[[str], None],
    ) -> None:
        self.name = name
        self.patience = backend.lease_ttl + backend.timeout + 1.0
        self.rooms: dict[str, SharedRoom] = {}  # changed in single steps
        self.lag = 0  # events by which the room that was furthest behind was so, when it was last looked
        self._backend = backend
        self._rooms = rooms
        self._tally = tally
        self._clock = clock
        self._wake = wake
        self._take = take  # what others ask
        self._owned = owned
        self._claim = claim  # a room that nobody owns
        self._ear: Ear | None = None
        self._numbers = itertools.count(1)
        self._starting = Turns()
        self._closed = False  # changed in its turn
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._out: dict[str, list[mail.Any_]] = {}
        self._waiting = 0  # letters in it
        self._behind: dict[str, None] = {}
        self._calls: dict[str, Outcome] = {}
        # The thread's own:
        self.stuck: dict[str, None] = {}  # rooms that were locked, to be tried again
        self._stuck_until = 0.0
        self._look_at = 0.0
        self._present_at = 0.0
        self._hurry_at = float("inf")  # a look that somebody wants sooner; set by any, in single steps

    # Post, for the rooms.

    def now(self) -> float:
        """See Post."""
        return self._clock()

    def next_number(self) -> int:
        """See Post."""
        return next(self._numbers)

    def post(self, to: str, letter: mail.Any_) -> None:
        """See Post."""
        if isinstance(letter, mail.Ask):
            self._tally.add("forwards")
        with self._lock:
            waiting = self._waiting
            if waiting < _MOST:
                self._waiting += 1
                self._out.setdefault(to, []).append(letter)
        if waiting >= _MOST:  # it is asked or told again
            self._tally.add("letters_left_out")
        elif not waiting:  # else the thread was woken, and has not looked yet
            self._wake()

    def behind(self, room_id: str) -> None:
        """See Post."""
        with self._lock:
            self._behind[room_id] = None
        self._wake()

    def look_in(self, seconds: float) -> None:
        """See Post."""
        self._hurry_at = min(self._hurry_at, self._clock() + seconds)
        self._wake()

    @property
    def pressing(self) -> bool:
        """Whether there is something to send or to catch up with."""
        return bool(self._out or self._behind)

    # Listener, for the backend.

    def hear_events(self, room_id: str, epoch: str, events: Events) -> None:
        """See Listener."""
        room = self.rooms.get(room_id)
        if room is not None:
            room.hear(Heard(epoch, events))

    def hear_letter(self, body: bytes) -> None:
        """See Listener."""
        try:
            letters = mail.decode(body)
        except ValueError as error:
            log.error("a letter makes no sense: %.200r", str(error))  # whose words it repeats nobody knows
            self._tally.add("letters_left_out")
            return
        for letter in letters:
            self._sort(letter)

    def _sort(self, letter: mail.Any_) -> None:
        if not isinstance(letter, mail.Done | mail.Refused | mail.Replaced):
            self._take(letter)
            return
        if isinstance(letter, mail.Done | mail.Refused):
            with self._lock:
                outcome = self._calls.pop(letter.id, None)
            if outcome is not None:
                if isinstance(letter, mail.Done):
                    outcome.settle(letter.data)
                else:
                    outcome.refuse(error_for(letter.code, letter.message))
                return
        room = self.rooms.get(letter.room) or self._owned(letter.room)
        if room is not None and room.copy is not None:
            room.hear(letter)

    def hear_again(self) -> None:
        """See Listener."""
        rooms = list(self.rooms.values())
        for room in rooms:  # first: the thread looks once
            room.copy_of.hole = True
        with self._lock:
            self._behind.update(dict.fromkeys(room.id for room in rooms))
        self._wake()

    # Beginning and end.

    def start(self) -> None:
        """Listen. Whoever calls this second does not come back before the first one listens.

        Raises:
            RoomBusy: that has not happened yet.
        """
        if self._ear is not None:
            return
        with self._starting.take("", _STARTING) as mine:
            if not mine:
                raise RoomBusy("the instance has not begun to listen yet; try again")
            if self._ear is None and not self._closed:
                self._ear = self._backend.listen(self.name, self)

    def close(self, timeout: float) -> bool:
        """Hear nothing more; whether the threads ended in so many seconds."""
        with self._starting.take("", timeout):
            self._closed = True
        return self._ear is None or self._ear.close(timeout)

    def follow(self, room_id: str, owner: str) -> SharedRoom:
        """Go after a room that ``owner`` has. The caller is alone with it.

        Blocks for some four of the store's answers.

        Raises:
            RoomNotFound, InvalidRecord, BackendUnavailable, ShuttingDown: it is not followed.
        """
        if self._ear is None:
            raise ShuttingDown("the instance is shutting down")
        try:
            self._ear.follow([room_id])
            stored = self._backend.look(room_id)
            if stored is None:
                raise RoomNotFound(f"there is no room {room_id!r}")
            room = self._rooms.revive(
                stored.record, lambda epoch, after: self._history(room_id, stored.position, after)
            )
            room.follow(Copy(self, owner, room.get_state()))
            self.rooms[room_id] = room
            self._rooms.take_over(room)
        except BaseException:
            self.rooms.pop(room_id, None)
            self._ear.unfollow([room_id])
            raise
        if self.rooms.get(room_id) is not room:  # let go of before it could be found
            self._rooms.lose(room)
            raise BackendUnavailable(f"room {room_id!r} went on elsewhere while it was looked for")
        self._tally.add("rooms_followed")
        room.copy_of.hole = True  # what came between the record and now
        self.behind(room_id)
        return room

    def _history(self, room_id: str, upto: Position, after: int) -> Sequence[bytes]:
        found = self._backend.read(room_id, upto.epoch, after, max(1, upto.seq - after))
        return () if found is None else found.events[: max(0, upto.seq - after)]

    def let_go(self, room: Room) -> None:
        """It is not followed any more."""
        if self.rooms.get(room.id) is room:
            del self.rooms[room.id]
            assert self._ear is not None
            self._ear.unfollow([room.id])

    def reset(self, room: SharedRoom, why: str) -> None:
        """What is known of it cannot be gone on with: who is connected comes back, and begins anew. Raises RoomBusy."""
        room.abandon(_LOCK, "come back")
        if not room.glance().closed:  # else its people know, and have gone
            log.warning("room %s is not followed any more: %s", room.id, why)
            self._tally.add("follows_broken_off")
        self.let_go(room)
        self._rooms.lose(room)

    # Calls.

    def call(self, names: Sequence[str], what: str, data: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Ask other instances for something that is about no room; what each answered, without those that did not
        within ``timeout`` seconds, or refused.
        """
        asked: dict[str, Outcome] = {}
        ids: list[str] = []
        for name in names:
            letter = mail.Call(self.name, "", f"{self.name}/call/{next(_calls)}", what, data)
            asked[name] = outcome = Outcome()
            ids.append(letter.id)
            with self._lock:
                self._calls[letter.id] = outcome
            self.post(name, letter)
        end = self._clock() + timeout
        answers: dict[str, Any] = {}
        for name, outcome in asked.items():
            try:
                answers[name] = outcome.wait("", max(0.0, end - self._clock()))
            except Exception as error:
                log.warning("instance %s did not answer: %.200r", name, str(error))
        with self._lock:
            for call_id in ids:
                self._calls.pop(call_id, None)
        return answers

    # The thread.

    def flush(self) -> bool:
        """Send what was posted; whether there was anything.

        Raises:
            BackendUnavailable: it may be lost; what of it is waited for is asked again with the next look, now.
        """
        with self._lock:
            out, self._out = self._out, {}
            self._waiting = 0
        bodies: list[tuple[str, bytes]] = []
        for to, letters in out.items():
            if to == self.name:
                for letter in letters:
                    self._sort(letter)
            else:
                bodies.append((to, mail.encode(letters)))
        if bodies:
            self._tally.add("letters_sent", count=len(bodies))
            try:
                heard = self._backend.send(bodies)
            except BackendUnavailable:  # a connection that broke unnoticed, say: nobody's pause is a second for that
                self._ask_again(letter for letters in out.values() for letter in letters)
                raise
            if not all(heard):
                self._look_at = 0.0  # somebody is gone
        return bool(bodies)

    def _ask_again(self, letters: Iterable[mail.Any_]) -> None:
        for letter in letters:
            room = self.rooms.get(letter.room)
            if room is not None and isinstance(letter, mail.Ask | mail.Call):
                waiting = room.copy_of.waiting.get(letter.id)
                if waiting is not None:
                    waiting.sent_at = float("-inf")
        self.look_in(0.0)

    def catch_up(self) -> bool:
        """Read what was not heard; whether the store was asked.

        Raises:
            BackendUnavailable: it is tried again.
        """
        if self.stuck and time.monotonic() >= self._stuck_until:
            stuck, self.stuck = self.stuck, {}
        else:
            stuck = {}
        with self._lock:
            behind, self._behind = {**stuck, **self._behind}, {}
        asked = False
        todo = list(behind)
        try:
            while todo:
                room = self.rooms.get(todo[-1]) or self._owned(todo[-1])
                if room is not None and room.copy is not None:
                    try:
                        asked = self._catch_up(room, room.copy) or asked
                    except RoomBusy:  # a reader is in it: the others do not wait
                        self.stuck[room.id] = None
                        self._stuck_until = time.monotonic() + _PAUSE
                todo.pop()
        except BackendUnavailable:
            with self._lock:
                self._behind.update(dict.fromkeys(todo))
            raise
        return asked

    def _catch_up(self, room: SharedRoom, copy: Copy) -> bool:
        """Whether the store was asked. Raises RoomBusy, BackendUnavailable."""
        room.catch_up(_LOCK)
        if not room.followed:
            return False
        if copy.broken:
            self.reset(room, "what was heard makes no sense")
        elif copy.hole:
            copy.hole = False
            self.fill(room)
            return True
        return False

    def fill(self, room: SharedRoom) -> None:
        """Read what is in the log after what was heard. Raises RoomBusy, BackendUnavailable."""
        copy = room.copy_of
        filled = 0
        try:
            while True:
                state = copy.state
                found = self._backend.read(room.id, state.epoch, state.seq)
                if found is None:
                    self.reset(room, "the log does not reach back so far")
                    return
                if not found.events:
                    return
                copy.heard.append(Heard(state.epoch, found))
                room.catch_up(_LOCK)
                if copy.broken or copy.state is state:
                    raise RoomBusy("not now")
                filled += len(found.events)
        except InvalidRecord as error:
            self.reset(room, str(error))
        except (RoomBusy, BackendUnavailable):
            copy.hole = True
            raise
        finally:
            if filled:
                self._tally.add("gap_fills")
                self._tally.add("events_filled", count=filled)

    def next_look(self) -> float:
        """When :meth:`look_after` has something to do."""
        return min(self._look_at, self._hurry_at) if self.rooms else float("inf")

    def look_after(self) -> bool:
        """How far the rooms are, who owns them, what has to be asked again; whether the store was asked."""
        now = self._clock()
        rooms = list(self.rooms.values())
        if not rooms or now < min(self._look_at, self._hurry_at):
            return False
        self._hurry_at = float("inf")
        present = now >= self._present_at
        lag = 0
        for begin in range(0, len(rooms), _BATCH):
            some = rooms[begin : begin + _BATCH]
            ids = [room.id for room in some]
            positions = self._backend.positions(ids)
            holders = self._backend.holders(ids)
            for room, position, holder in zip(some, positions, holders, strict=True):
                if position is not None:
                    lag = max(lag, position.seq - room.copy_of.state.seq)
                try:
                    self._look(room, room.copy_of, position, holder, now, present)
                except RoomBusy:
                    pass  # the next time
        self.lag = lag
        self._look_at = now + min(_LOOK, self._backend.lease_ttl / 3)
        if present:
            self._present_at = now + self._backend.lease_ttl / 3
        return True

    def give_up(self) -> None:
        """Refuse what no owner has answered in time; :meth:`look_after` does so only while the store answers."""
        now = self._clock()
        for room in list(self.rooms.values()):
            try:
                self._give_up(room, room.copy_of, now)
            except RoomBusy:
                pass  # the next time

    def _give_up(self, room: SharedRoom, copy: Copy, now: float) -> None:
        for waiting in list(copy.waiting.values()):
            if now >= waiting.deadline:
                why = "no owner of the room has answered; it may have been carried out or not"
                room.give_up_waiting(waiting.letter.id, BackendUnavailable(why), _LOCK)

    def _look(
        self, room: SharedRoom, copy: Copy, position: Position | None, holder: Held | None, now: float, present: bool
    ) -> None:
        if not room.followed:
            return
        if position is None:
            self.reset(room, "it is gone")
            return
        if position.epoch != copy.state.epoch:
            self.reset(room, "it was made anew")
            return
        if copy.state.seq < copy.late:  # for as long as from one look to the next
            copy.hole = True
            self.behind(room.id)
        copy.late = position.seq
        moved = holder is not None and holder.instance != copy.owner
        if holder is not None:
            copy.owner = holder.instance
        if copy.owner != self.name and (moved or present):
            self.post(copy.owner, room.present(_LOCK))
        self._give_up(room, copy, now)
        for waiting in list(copy.waiting.values()):
            if waiting.to != copy.owner or now >= waiting.sent_at + _AGAIN:
                self._tally.add("forwards_sent_again")
                copy.send(waiting)
        if holder is None and copy.waiting:
            self._claim(room.id)
        if moved or not copy.waiting:
            copy.turned_away = 0.0
        elif copy.turned_away:  # it is being handed over: soon, and then less and less often
            copy.turned_away = min(_LOOK, 2 * copy.turned_away)
            self.look_in(copy.turned_away)
