"""Node: an instance's part in sharing rooms. It owns rooms by leases, stores what they do, and goes on with the rooms
of instances that are gone. Rooms that others own it follows (``sharing.following``).

How an operation on a shared room goes::

    caller           write lock: machine.apply, history, queue, Journal.note_locked     (as in any room)
                     Journal.mark -> the thread below
    roomkit-store    each marked room: write lock: its record, its new events, its queue   (Room.take_step)
                     one Backend.commit for all of them
                     committed: Fanout.release, and the room's broadcaster delivers and answers

While one commit is under way the next operations gather, so the busier, the more of them one script stores. That thread
also renews the leases, every third of their time, and takes over what an instance left behind that is not alive any
more. A room is opened or made by the thread that asks for it.
"""

from __future__ import annotations

import logging
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any, Literal, Protocol

from roomkit.backends.base import REMEMBERED, Acted, Backend, Commit, Held, Instance, Lease, Position, Stored
from roomkit.core.events import encode_json
from roomkit.core.record import load_elsewhere
from roomkit.core.state import RoomMachine
from roomkit.errors import BackendUnavailable, InvalidRecord, RoomBusy, RoomExists, RoomNotFound, ShuttingDown
from roomkit.metrics import Tally
from roomkit.room import Room
from roomkit.sharing.desk import Desk, Handlers
from roomkit.sharing.elsewhere import Elsewhere
from roomkit.sharing.following import Following
from roomkit.sharing.journal import Journal, Step, Waits
from roomkit.sharing.letters import Any_, Present
from roomkit.sharing.owned import Past
from roomkit.sharing.room import SharedRoom

log = logging.getLogger("roomkit.sharing")

_BATCH = 500  # rooms in one commit, leases in one renewal
_ADOPT = 50  # rooms taken over before the others' steps are looked at again
_SCAN = 0.5  # seconds between two looks for rooms that instances left behind
_PAUSE = 0.05  # seconds until a store that did not answer, or a room that was locked, is tried again
_LONGEST = 60.0  # seconds of sleep
_LOCK = 0.002  # seconds for which one room's lock may hold up all the others
_LAST = 1000  # events whose commands are not carried out again
_GIVE_UP = 5.0  # seconds for which somebody else's opening of the same room is waited for


#: What is counted, by its name in the tally.
COUNTERS = {
    "commits": "Steps of shared rooms that were stored or refused",
    "commit_batches": "Times that steps were sent to the store; the more there are at once, the less each costs",
    "store_errors": "Times that the store of shared rooms did not answer",
    "rooms_taken_over": "Shared rooms that were another instance's",
    "rooms_lost": "Shared rooms that went on at another instance",
    "rooms_restored": "Shared rooms that the store had lost and was given again",
    "unreadable_rooms": "Shared rooms whose record could not be read",
    "forwards": "Operations that were asked of a room's owner",
    "rooms_followed": "Rooms of other instances that connections here were for",
    "follows_broken_off": "Rooms that could not be followed further; their connections were told to come back",
    "forwards_served": "Operations that other instances' players asked for",
    "forwards_sent_again": "Operations that were asked of a room's owner again, since no answer came",
    "gap_fills": "Times that events which were not heard were read from the log",
    "events_filled": "Events that were not heard and were read from the log",
    "letters_sent": "Bodies of letters that were sent to other instances",
    "letters_left_out": "Letters that made no sense, or for which there was no place",
}


class Rooms(Protocol):
    """The manager, as the node sees it. Called without any lock."""

    def revive(self, record: bytes, read: Callable[[str, int], Sequence[bytes]]) -> SharedRoom:
        """The room of a record; ``read(epoch, after)`` gives its events. Raises InvalidRecord."""

    def machine_of(self, record: bytes) -> RoomMachine:
        """The machine of a record. Raises InvalidRecord."""

    def take_over(self, room: SharedRoom) -> None:
        """A room is this instance's, or followed by it: let it be found. Raises ShuttingDown."""

    def lose(self, room: SharedRoom) -> None:
        """A room went on elsewhere: it cannot be found here any more."""


class Node:
    """See the module. One per manager; its thread, ``roomkit-store``, begins with the first use and ends with
    :meth:`stop`.

    Monitor: ``_condition`` guards ``_marked``, ``_journals``, ``_busy`` and the thread's state; the thread waits on it,
    :meth:`mark` and :meth:`stop` notify. No backend call, room or callback runs under it.

    Thread safety: full.
    """

    def __init__(
        self,
        backend: Backend,
        instance: Instance,
        rooms: Rooms,
        tally: Tally,
        clock: Callable[[], float] = time.monotonic,
        handlers: Handlers = MappingProxyType({}),
    ) -> None:
        self.instance = instance
        self.reachable = True  # whether the store answered last
        self._backend = backend
        self._rooms = rooms
        self._tally = tally
        self._clock = clock
        self._condition = threading.Condition(threading.Lock())
        self.following = Following(
            backend, instance.name, rooms, tally, clock, self._wake, self._take, self._owned, self._claim_soon
        )
        self.elsewhere = Elsewhere(backend, self.following, self.start)
        self._desk = Desk(self.following, self._owned, handlers, tally)
        self._alive: frozenset[str] = frozenset()  # the other instances, when it was last looked
        # Guarded by _condition:
        self._thread: threading.Thread | None = None
        self._stop_by: float | None = None  # the moment by which to have ended
        self._journals: dict[str, Journal] = {}  # by room
        self._marked: dict[str, Journal] = {}
        self._busy: set[str] = set()  # rooms that a thread is making or opening
        self._undo: list[Commit] = []  # what takes rooms away whose making was not confirmed
        self._unopened: dict[str, None] = {}  # rooms whose lease may have been had, and which were not opened yet
        # The thread's own:
        self._locked: list[Journal] = []  # to be looked at again
        self._retry_at = 0.0
        self._leaving = False  # set once, by whoever ends the instance
        self._gave_up = False  # whether something was not stored in the end
        self._renew_at = 0.0
        self._scan_at = 0.0

    @property
    def running(self) -> bool:
        """Whether its threads are at work."""
        thread = self._thread
        return self._desk.running or (thread is not None and thread.is_alive())

    def _wake(self) -> None:
        with self._condition:
            self._condition.notify_all()

    def _take(self, letter: Any_) -> None:
        self._desk.take(letter)

    def _owned(self, room_id: str) -> SharedRoom | None:
        journal = self._journals.get(room_id)
        return None if journal is None else journal.room

    def has(self, room: SharedRoom) -> bool:
        """Whether it owns this very room."""
        return self._owned(room.id) is room

    def stats(self) -> dict[str, Any]:
        """How this instance is doing: at this moment, and counted since its start."""
        return {
            "instance": self.instance.name,
            "address": self.instance.address,
            "owned_rooms": len(self._journals),
            "followed_rooms": len(self.following.rooms),
            "store_answers": self.reachable,
            "shortest_lease": self._shortest_lease(),
            "waiting_for_owners": sum([len(room.copy_of.waiting) for room in list(self.following.rooms.values())]),
            "lag_events": self.following.lag,
            **{name: self._tally.get(name) for name in COUNTERS},
        }

    def _shortest_lease(self) -> float | None:
        """Seconds for which this instance may act as owner without hearing of the store; None: it owns nothing."""
        ends = [journal.lease.until for journal in list(self._journals.values())]
        return max(0.0, min(ends) - self._clock()) if ends else None

    # Rooms come and go, by the threads that want them.

    def start(self) -> None:
        """Be an instance: start the thread, unless it runs. Raises ShuttingDown."""
        with self._condition:
            if self._stop_by is not None:
                raise ShuttingDown("the instance is shutting down")
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="roomkit-store", daemon=True)
                thread.start()
                self._thread = thread
        self.following.start()  # by each: nobody goes after a room before this instance listens

    def create(self, room: SharedRoom) -> None:
        """Store a room that nobody knows yet, as this instance's. Blocks for some three of the store's answers.

        Raises:
            RoomExists: there is one with this id. BackendUnavailable: it is taken back as soon as the store answers.
            RoomBusy, ShuttingDown. Nothing was made.
        """
        self.start()
        with self._alone(room.id):
            if room.id in self._journals:
                raise RoomExists(f"there is already a room {room.id!r}")
            [lease] = self._backend.acquire(self.instance.name, [self._backend.scope_of(room.id)])
            if isinstance(lease, Held):
                raise RoomExists(f"there is already a room {room.id!r}")
            journal = self._journal(room, lease, 0)
            room.share(journal)
            step = journal.step
            assert step is not None
            try:
                [outcome] = self._backend.commit([_commit_of(journal, room, step)])
            except BaseException:
                with self._condition:
                    self._undo.append(Commit(lease, room.id, step.position, 2, None))
                raise
            self._tally.add("commits")
            if outcome != "committed":  # there is one that nobody looks after; from the next look on the thread does
                self._may_be_ours(room.id)
                raise RoomExists(f"there is already a room {room.id!r}")
            journal.revision, journal.step = 1, None
            try:
                self._know(journal, room)
            except ShuttingDown:
                self._backend.commit([Commit(lease, room.id, step.position, 2, None)])
                self._backend.release([lease])
                raise

    def open(self, room_id: str) -> SharedRoom:
        """A room that is stored: as this instance's from now on, if nobody owns it; else it is followed.

        Blocks for some six of the store's answers, or for another thread that opens the same room.

        Raises:
            RoomNotFound: there is none. InvalidRecord: what is stored is no room. RoomBusy: another thread has not done
            with it. BackendUnavailable, ShuttingDown. Nothing changed.
        """
        self.start()
        with self._alone(room_id):
            journal = self._journals.get(room_id)
            if journal is not None and journal.room is not None:
                return journal.room
            room = self.following.rooms.get(room_id)
            if room is not None:
                return room
            if self._backend.positions([room_id]) == [None]:  # a wrong id writes nothing
                raise RoomNotFound(f"there is no room {room_id!r}")
            self._may_be_ours(room_id)
            [lease] = self._backend.acquire(self.instance.name, [self._backend.scope_of(room_id)])
            if isinstance(lease, Held):
                self._opened(room_id)
                return self.following.follow(room_id, lease.instance)
            room = self._take_over(lease, room_id)
        with suppress(RoomBusy, ShuttingDown):  # by the desk, then, which is asked now and then
            room.put_right()
        return room

    def _take_over(self, lease: Lease, room_id: str) -> SharedRoom:
        """A lease was had: go on with its room. The caller is alone with it; one that is followed is the thread's.

        Raises:
            RoomBusy: a reader is in it; nothing changed. RoomNotFound, InvalidRecord: the lease was given back.
            BackendUnavailable, ShuttingDown.
        """
        self._may_be_ours(room_id)
        try:
            stored = self._backend.open(lease, room_id)
            if stored is None:
                raise RoomNotFound(f"there is no room {room_id!r}")
            past = self._past(stored)
            followed = self._gone_on_with(lease, stored, past)
            journal = followed or self._revived(lease, room_id, stored, past)
        except (RoomNotFound, InvalidRecord):
            self._opened(room_id)
            self._backend.release([lease])
            raise
        room = journal.room
        assert room is not None
        try:
            self._know(journal, room, last=followed is not None)
            self._rooms.take_over(room)
        except ShuttingDown:
            if followed is None:
                self._opened(room_id)
                self._forget(journal)
                self._backend.release([lease], orphan=True)
                raise
        if journal.room is None:  # lost before it could be found
            self._rooms.lose(room)
            raise BackendUnavailable(f"room {room_id!r} went on elsewhere while it was opened")
        self._tally.add("rooms_taken_over")
        journal.mark()
        copy = room.copy
        if copy is not None:  # what its own players have asked for meanwhile
            copy.owner = self.instance.name
            for waiting in list(copy.waiting.values()):
                copy.send(waiting)
        return room

    def _past(self, stored: Stored) -> Past:
        """Raises InvalidRecord."""
        alive = {instance.name for instance in self._backend.instances()} - {self.instance.name}
        there = load_elsewhere(stored.record).items()
        elsewhere = {player_id: (name, number) for player_id, (name, number) in there if name in alive}
        return Past([], elsewhere, self.following)

    def _revived(self, lease: Lease, room_id: str, stored: Stored, past: Past) -> Journal:
        room = self._rooms.revive(
            stored.record, lambda epoch, after: self._read(room_id, stored.position, epoch, after, past.acted)
        )
        journal = self._journal(room, lease, stored.revision, unsettled=True)
        room.share(journal, past)
        return journal

    def _gone_on_with(self, lease: Lease, stored: Stored, past: Past) -> Journal | None:
        """A room that is followed here becomes this instance's; None: it is not, or not all of it is known.

        Raises:
            RoomBusy: a reader is in it; nothing changed, or it is not followed any more once it can be told so.
        """
        room = self.following.rooms.get(lease.scope)
        if room is None:
            return None
        machine = self._rooms.machine_of(stored.record)
        journal = self._journal(room, lease, stored.revision, unsettled=True)
        try:
            self.following.fill(room)
            self._read(room.id, stored.position, machine.epoch, max(0, machine.seq - _LAST), past.acted)
            room.go_on_with(machine, journal, past, _LOCK)
        except InvalidRecord as error:
            past.acted.clear()
            self.following.reset(room, str(error))
            return None
        self.following.let_go(room)
        return journal

    def _may_be_ours(self, room_id: str) -> None:
        """Its lease was had or asked for: if so, nobody else looks after the room until it is opened."""
        with self._condition:
            self._unopened[room_id] = None

    def _claim_soon(self, room_id: str) -> None:
        """Nobody owns it, and somebody here waits. By the thread."""
        self._may_be_ours(room_id)
        self._scan_at = 0.0

    def _opened(self, room_id: str) -> None:
        """Or somebody else's, or there is none."""
        with self._condition:
            self._unopened.pop(room_id, None)

    def _read(self, room_id: str, upto: Position, epoch: str, after: int, acted: list[Acted]) -> Sequence[bytes]:
        """The events after ``after`` and ``upto`` where the record goes, or as many of the last ones as are there; and
        the commands that caused them.
        """
        events: list[bytes] = []
        while after < upto.seq:
            found = self._backend.read(room_id, epoch, after + len(events))
            if found is None and not events:
                after = (after + upto.seq + 1) // 2
                continue
            if found is None:
                return ()
            events += found.events
            acted += [one for one in found.acted if one.last <= upto.seq]
            if not found.events or after + len(events) >= upto.seq:
                break
        return events[: max(0, upto.seq - after)]  # what follows is of somebody who came after us

    def remove(self, room: Room, wait: bool = False) -> None:
        """A room that is not found here any more: once all that it did is stored it is taken out of the store. One that
        is only followed is let go of.

        ``wait``: until then, but for so long at most as the store is waited for.
        """
        if room.followed:
            self.following.let_go(room)
            return
        journal = room.journal if isinstance(room, SharedRoom) else None  # it may be just about to be known here
        if journal is not None and journal.room is room:
            journal.removing = True
            journal.mark()
            if wait:
                with self._condition:
                    self._condition.wait_for(lambda: journal.room is None, journal.patience)

    def _journal(self, room: SharedRoom, lease: Lease, revision: int, *, unsettled: bool = False) -> Journal:
        patience = self._backend.lease_ttl + self._backend.timeout
        journal = Journal(room, lease, revision, self.mark, patience, self._clock)
        journal.unsettled = unsettled
        return journal

    def _know(self, journal: Journal, room: SharedRoom, *, last: bool = False) -> None:
        """Raises ShuttingDown: the thread may have ended, and would never store it. ``last``: it is the thread that
        asks, which leaves this room too when it ends.
        """
        with self._condition:
            if self._stop_by is not None and not last:
                raise ShuttingDown("the instance is shutting down")
            self._journals[room.id] = journal
            self._unopened.pop(room.id, None)

    def _forget(self, journal: Journal) -> None:
        room, journal.room = journal.room, None
        if room is None:
            return
        with self._condition:
            if self._journals.get(room.id) is journal:
                del self._journals[room.id]
            if self._marked.get(room.id) is journal:
                del self._marked[room.id]
            self._condition.notify_all()  # somebody may wait to make it anew

    @contextmanager
    def _alone(self, room_id: str) -> Iterator[None]:
        """One thread at a time makes or opens a room, and none while it is being taken away. Raises RoomBusy."""

        def free() -> bool:
            journal = self._journals.get(room_id)
            return room_id not in self._busy and (journal is None or not journal.removing)

        with self._condition:
            if not self._condition.wait_for(free, _GIVE_UP):
                raise RoomBusy(f"room {room_id!r} is being opened or taken away; try again")
            self._busy.add(room_id)
        try:
            yield
        finally:
            self._not_busy([room_id])

    def _not_busy(self, room_ids: Iterable[str]) -> None:
        with self._condition:
            self._busy.difference_update(room_ids)
            self._condition.notify_all()

    # The thread.

    def mark(self, journal: Journal) -> None:
        """There is something to store, or to deliver. Never blocks."""
        with self._condition:
            room = journal.room  # None: not ours any more. It would stand in the way of who has its place
            if room is not None and room.id not in self._marked:
                if not self._marked:  # else the thread was woken, and has not looked yet
                    self._condition.notify_all()
                self._marked[room.id] = journal

    def leave(self) -> None:
        """Take nothing over any more: :meth:`stop` will follow, and others are to go on with what is left behind."""
        self._leaving = True

    def stop(self, timeout: float) -> bool:
        """Store all that is left, give every room to whoever wants it next, and end the thread.

        What is not stored within ``timeout`` seconds is given up: nobody was told of it. Waits somewhat longer than
        that at most, for the store's last answers.

        Returns:
            Whether all was stored and the thread has ended.
        """
        with self._condition:
            if self._stop_by is None:
                self._stop_by = time.monotonic() + timeout
            thread = self._thread
            self._condition.notify_all()
        if thread is None:
            return True
        thread.join(timeout + 4 * self._backend.timeout + 1.0)
        ended = self.following.close(timeout + 1.0)
        ended = self._desk.stop(timeout + 1.0) and ended
        return ended and not thread.is_alive() and not self._gave_up

    def _run(self) -> None:
        ended = False
        while not ended:
            try:
                ended = self._turn()
            except BaseException:  # no memory, say
                log.exception("the thread that stores rooms failed and goes on")
                time.sleep(_PAUSE)
                for journal in list(self._journals.values()):  # marks may have got lost
                    self.mark(journal)

    def _turn(self) -> bool:
        """Store what is marked, and do what is due; True: this was the last one."""
        following = self.following
        with self._condition:
            if not self._marked and not following.pressing and (self._locked or self._stop_by is None):
                due = min(self._renew_at, self._scan_at, following.next_look())
                pause = min(_LONGEST, max(0.0, due - self._clock()))
                self._condition.wait(min(pause, _PAUSE) if self._locked or following.stuck else pause)
            if self._locked and time.monotonic() >= self._retry_at:
                locked, self._locked = self._locked, []
                for journal in locked:
                    room = journal.room
                    if room is not None:
                        self._marked[room.id] = journal
            marked = [self._marked.pop(room_id) for room_id in list(self._marked)[:_BATCH]]
            stop_by = self._stop_by
        missed = not self._tried(lambda: self._store(marked))
        if missed:  # the same steps again: what is stored already is stored once
            for journal in marked:
                self.mark(journal)
        missed = not self._tried(following.flush) or missed
        missed = not self._tried(following.catch_up) or missed
        if stop_by is None:
            missed = not self._tried(self._keep) or missed
        if stop_by is not None and (time.monotonic() >= stop_by or not (self._marked or self._locked)):
            self._give_all_up()
            return True
        if missed:
            time.sleep(_PAUSE)
        return False

    def _tried(self, step: Callable[[], bool]) -> bool:
        """Do what asks the store for something, or had no need to and says False; whether it came to its end."""
        try:
            if step() and not self.reachable:
                self.reachable = True
                log.info("the store of the rooms answers again")
        except BackendUnavailable as error:
            self._tally.add("store_errors")
            if self.reachable:
                self.reachable = False
                log.warning("the store of the rooms does not answer; what they do waits: %s", error)
            self._give_up()
        except BaseException:  # SystemExit too: without this thread nothing would ever be told
            log.exception("the thread that stores rooms failed and goes on")
        else:
            return True
        return False

    def _give_up(self) -> None:
        """What people wait for waits no longer than it may, however long the store does not answer."""
        self.following.give_up()
        for journal in list(self._journals.values()):
            room = journal.room
            if room is not None:
                with suppress(RoomBusy):  # the next time
                    room.give_up_answers(_LOCK)

    # Steps.

    def _store(self, marked: Sequence[Journal]) -> bool:
        """One commit for all; whether there was anything.

        Raises:
            BackendUnavailable: the steps may be stored or not; storing them again does it once.
        """
        due: list[tuple[Journal, Commit]] = []
        for journal in marked:
            try:
                commit = self._next_commit(journal)
            except RoomBusy:
                self._try_later(journal)
            except Exception:  # no memory, say; the others go on
                log.exception("a room's step could not be taken; it is tried again")
                self._try_later(journal)
            else:
                if commit is not None:
                    due.append((journal, commit))
        if not due:
            return False
        outcomes = self._backend.commit([commit for _, commit in due])
        self._tally.add("commits", count=len(due))
        self._tally.add("commit_batches")
        for (journal, commit), outcome in zip(due, outcomes, strict=True):
            if commit.record is None:
                self._removed(journal)
            elif outcome == "committed":
                self._stored(journal)
            else:
                self._claim(journal)
        return True

    def _try_later(self, journal: Journal) -> None:
        """A reader is in the room: the others do not wait for it."""
        if not self._locked:
            self._retry_at = time.monotonic() + _PAUSE
        self._locked.append(journal)

    def _next_commit(self, journal: Journal) -> Commit | None:
        """What is to be stored next, if anything is. Raises RoomBusy."""
        room = journal.room
        if room is None:
            return None
        if journal.lost:
            self._lose(journal, room)
            return None
        if journal.step is None:
            journal.step = room.take_step(_LOCK, journal.doubted)
        else:  # one that was not stored; for what has come since then there is the next turn
            self.mark(journal)
        step = journal.step
        if step.record is not None:
            return _commit_of(journal, room, step)
        journal.step = None
        self._deliver(room, step)
        if not journal.removing:
            return None
        return Commit(journal.lease, room.id, step.position, journal.revision + 1, None)

    def _stored(self, journal: Journal) -> None:
        room, step = journal.room, journal.step
        assert step is not None
        if room is None:  # it was given back meanwhile
            _settle(step.waiters, False)
            return
        journal.step = None
        journal.doubted = False
        journal.revision += 1
        self._deliver(room, step)
        if journal.removing:
            self.mark(journal)

    @staticmethod
    def _deliver(room: SharedRoom, step: Step) -> None:
        room.release_step(step)
        _settle(step.waiters, True)

    def _removed(self, journal: Journal) -> None:
        """Whatever the outcome: who has it instead will take it away."""
        self._backend.release([journal.lease])
        room = journal.room
        if room is not None and room.copy is not None and room.copy.waiting:
            # Asked before it was this instance's, and not carried out before it ended: nobody else would tell them so.
            with suppress(RoomBusy):
                room.abandon(_PAUSE, "the room has ended")
        self._forget(journal)
        if room is not None:  # it may have been let be found just when it had ended
            self._rooms.lose(room)

    # When a commit is refused.

    def _claim(self, journal: Journal) -> None:
        """The lease was followed by another one, or the store has lost something.

        Raises:
            BackendUnavailable: nothing is decided.
        """
        room, step, old = journal.room, journal.step, journal.lease
        assert step is not None
        if room is None:  # it was given back meanwhile
            _settle(step.waiters, False)
            return
        [lease] = self._backend.acquire(old.instance, [old.scope])
        if isinstance(lease, Held):
            self._lose(journal, room)
            return
        stored = self._backend.open(lease, room.id)
        found = _verdict(old, journal.revision, stored, self._clock() < old.until + REMEMBERED / 2)
        if found == "lost":
            events = [*room.known_events(step.position.seq - len(step.events)), *step.events]
            commit = _commit_of(journal, room, step._replace(events=events))._replace(lease=lease)
            if self._backend.restore([commit]) == ["committed"]:
                log.warning("the store had lost room %s; it is there again", room.id)
                self._tally.add("rooms_restored")
                found = "ours"
            else:
                found = "theirs"
        if found == "theirs":
            self._lose(journal, room)
            self._may_be_ours(lease.scope)  # what we gave up may be stored: it is opened from there
            return
        journal.lease = lease
        if found == "ours":
            self._stored(journal)
        else:  # under the new lease
            self.mark(journal)

    def _lose(self, journal: Journal, room: SharedRoom) -> None:
        """The room is another instance's."""
        journal.lost = True
        try:
            waiters = room.abandon(_LOCK, "the room goes on at another instance; come back")
        except RoomBusy:
            self._try_later(journal)
            return
        log.warning("room %s went on at another instance", room.id)
        self._tally.add("rooms_lost")
        self._forget(journal)
        step = journal.step
        _settle((*(() if step is None else step.waiters), *waiters), False)
        self._rooms.lose(room)

    # What is due now and then.

    def _keep(self) -> bool:
        """Whether anything was due."""
        now = self._clock()
        due = now >= min(self._renew_at, self._scan_at)
        if now >= self._renew_at:
            self._backend.announce(self.instance)
            self._renew()
            self._take_back()
            self._look_around()
            self._renew_at = now + self._backend.lease_ttl / 3
        due = self.following.look_after() or due
        if now >= self._scan_at and (self._leaving or not self._adopt()):
            self._scan_at = now + min(_SCAN, self._backend.lease_ttl / 3)
        return due

    def _look_around(self) -> None:
        """Whoever was connected at an instance that is gone, or does not follow the room any more, begins its grace."""
        alive = frozenset(instance.name for instance in self._backend.instances())
        gone, self._alive = self._alive - alive, alive
        since = self._clock() - 2 * self._backend.lease_ttl
        for room_id, journal in list(self._journals.items()):
            room = journal.room
            if journal.unsettled:  # a reader was in the way
                self._desk.put_right(room_id)
            unheard = [] if room is None else room.unheard(since)
            for name in sorted({*gone, *unheard} - {self.instance.name}):
                self._desk.take(Present(name, room_id, sys.maxsize))

    def _renew(self) -> None:
        with self._condition:
            journals = [journal for journal in self._journals.values() if not journal.lost]
        for begin in range(0, len(journals), _BATCH):
            some = journals[begin : begin + _BATCH]
            renewed = self._backend.renew([journal.lease for journal in some])
            for journal, lease in zip(some, renewed, strict=True):
                if lease is not None:
                    journal.lease = lease
                else:  # a commit will tell whose it is
                    journal.doubted = True
                    self.mark(journal)

    def _take_back(self) -> None:
        """Rooms whose making was not confirmed: there are none."""
        while self._undo:
            self._backend.commit(self._undo[:1])
            self._backend.release([self._undo[0].lease])
            with self._condition:
                del self._undo[0]

    def _adopt(self) -> bool:
        """Go on with some of the rooms that instances left behind; whether there were any. A scope is a room."""
        scopes = self._backend.orphans(_ADOPT)
        random.shuffle(scopes)  # the other instances look at the same ones  # nosec B311
        with self._condition:
            wanted = dict.fromkeys((*scopes, *self._unopened))  # each once: two journals of a room would be two owners
            scopes = [scope for scope in wanted if scope not in self._busy and scope not in self._journals]
            self._busy.update(scopes)
            self._unopened.update(dict.fromkeys(scopes))  # also when the answer is lost
        if not scopes:
            return False
        adopted = 0
        try:
            leases = self._backend.acquire(self.instance.name, scopes)
            for lease in leases:
                if isinstance(lease, Lease):
                    adopted += self._adopt_one(lease)
                else:  # somebody else goes on with it
                    self._opened(lease.scope)
        finally:
            self._not_busy(scopes)
        if adopted:
            log.info("goes on with %d rooms of instances that are gone", adopted)
        return adopted > 0

    def _adopt_one(self, lease: Lease) -> bool:
        """Whether it is this instance's now; one that was busy is tried again. Raises BackendUnavailable: likewise."""
        try:
            self._take_over(lease, lease.scope)
            self._desk.put_right(lease.scope)
        except (RoomNotFound, ShuttingDown, RoomBusy):
            return False
        except BackendUnavailable:
            raise
        except Exception as error:  # a guard's of the lifecycle, say; the others go on
            log.error("room %s was left behind and cannot be read: %s", lease.scope, error)
            self._tally.add("unreadable_rooms")
            self._opened(lease.scope)
            return False
        return True

    # The end.

    def _give_all_up(self) -> None:
        """Give up every lease; rooms whose steps are not stored by now are given up with what nobody was told."""
        with self._condition:
            journals = list(self._journals.values())
            marked = set(self._marked.values())  # there may be nothing to store, and closes to be delivered
        for journal in journals:
            room = journal.room
            left = journal.step is not None or journal.changed or journal.lost or journal in marked
            if room is not None and left:
                self._gave_up = True
                self._lose(journal, room)
        for room in list(self.following.rooms.values()):
            with suppress(RoomBusy):  # its connections were told; so is who waits
                room.abandon(_LOCK, "come back")
            self.following.let_go(room)
        try:
            self.following.flush()
            leases = [journal.lease for journal in journals]
            for begin in range(0, len(leases), _BATCH):
                self._backend.release(leases[begin : begin + _BATCH], orphan=True)
            self._backend.withdraw(self.instance.name)
        except BackendUnavailable as error:
            self._gave_up = self._gave_up or bool(journals)
            log.warning("the store does not answer: the rooms go on elsewhere once their leases end: %s", error)
        for journal in journals:
            self._forget(journal)


Verdict = Literal["ours", "again", "lost", "theirs"]


def _verdict(lease: Lease, revision: int, stored: Stored | None, recent: bool) -> Verdict:
    """What became of a room whose step, which follows ``revision``, was refused under ``lease``.

    ours: the step is stored after all. again: all before it is. lost: the store forgot some of that, or everything
    (which is believed as long as it is ``recent``: a room that was taken away is remembered for longer). theirs:
    another instance has changed it since, or has ended it.
    """
    if stored is None:
        return "lost" if recent else "theirs"
    if stored.token > lease.token:  # tokens rise: this is of somebody who came after us
        return "theirs"
    if stored.revision == revision + 1:
        return "ours"
    if stored.revision == revision:
        return "again"
    return "lost" if stored.revision < revision else "theirs"


def _settle(waiters: Iterable[Waits], stored: bool) -> None:
    for waiter in waiters:
        waiter.settle(stored)


def _commit_of(journal: Journal, room: SharedRoom, step: Step) -> Commit:
    events = [encode_json(event) for event in step.events]
    return Commit(journal.lease, room.id, step.position, journal.revision + 1, step.record, events, step.acted)
