"""Journal: what of a shared room is not stored yet, and the lease under which it will be.

A shared room works in memory like any other, but nothing leaves it before it is stored: no event, welcome, answer or
close. So what anybody was told is in the store, and an instance that dies takes with it only what nobody heard of.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from roomkit.backends.base import Acted, Lease, Position
from roomkit.concurrency.eventqueue import Entry, Gap
from roomkit.core.events import Event
from roomkit.errors import BackendUnavailable, RoomBusy, RoomkitError

if TYPE_CHECKING:
    from roomkit.sharing.room import SharedRoom

_REMEMBERED = 5000  # commands of other instances; one is asked again only until its answer is there


class Waits(Protocol):
    """Whoever is to be told what became of an operation, by the thread that stores, under no lock."""

    def settle(self, stored: bool) -> None:
        """It is stored; or nobody will ever know. Must be quick."""


class Waiter:
    """A thread that waits until its operation is stored."""

    __slots__ = ("_settled", "_stored")

    def __init__(self) -> None:
        self._settled = threading.Event()
        self._stored = False

    def settle(self, stored: bool) -> None:
        """It is, or nobody will ever know."""
        self._stored = stored
        self._settled.set()

    def wait(self, room_id: str, timeout: float) -> None:
        """Block until it is stored, at most ``timeout`` seconds.

        Raises:
            BackendUnavailable: it is not, as far as anybody knows; it may be all the same.
        """
        if not self._settled.wait(timeout):
            raise BackendUnavailable(f"the change of room {room_id!r} was not confirmed within {timeout} s")
        if not self._stored:
            raise BackendUnavailable(f"room {room_id!r} went on elsewhere before its change was confirmed")


class Told:
    """What is to be told once a step is stored. See Waits."""

    __slots__ = ("_lost", "_tell")

    def __init__(self, tell: Callable[[], None], lost: Callable[[], None]) -> None:
        self._tell = tell
        self._lost = lost

    def settle(self, stored: bool) -> None:
        """It is, or nobody will ever know."""
        (self._tell if stored else self._lost)()


class Pledge:
    """An answer that comes once what it is about is stored; when that takes too long, a refusal instead: nobody knows.

    Both by the thread that delivers the room's events, so one of them only. ``due``: when it takes too long.
    """

    __slots__ = ("_refuse", "_tell", "due", "settled")

    def __init__(self, tell: Callable[[], None], refuse: Callable[[RoomkitError], None], due: float) -> None:
        self.due = due
        self.settled = False
        self._tell = tell
        self._refuse = refuse

    def keep(self) -> None:
        """It is stored."""
        if not self.settled:
            self.settled = True
            self._tell()

    def give_up(self) -> None:
        """It is not yet, and may be stored all the same."""
        if not self.settled:
            self.settled = True
            self._refuse(BackendUnavailable("the store did not answer in time; it may have been carried out or not"))


class Form(NamedTuple):
    """What of a room's record (``core.record.dump_form``) stays as it is while these stay the same.

    ``links``: of the room's fanout, which replaces them as a whole. ``shift``: from monotonic to Unix seconds.
    """

    number: int
    links: object
    shift: float
    text: bytes


class Step(NamedTuple):
    """What a room did since its last step, taken out of it to be stored, and then delivered.

    ``record``: None when there is nothing to store, only something to deliver.
    """

    record: bytes | None
    position: Position
    events: Sequence[Event]
    acted: Sequence[Acted]
    entries: list[Entry]
    trailing: Gap | None
    waiters: Sequence[Waits]


class Journal:
    """See the module.

    Attributes:
        acted: what was carried out for other instances, by the command's id: the last ones, oldest first. Guarded by
            the room's write lock.
        room: None once it is not this instance's any more.
        lease: replaced as a whole by the thread that stores; read by any.
        revision: of the last step that is stored. step: the one under way. doubted: whether the store may have lost
            the lease. lost: it is another instance's. These belong to the thread that stores.
        removing: the room is to be taken away once its last step is stored. Only ever set.
        unsettled: it was another instance's, and seats may be taken for connected that are not; set until that is put
            right, by whoever does it.
        changed: whether there is something to store; guarded by the room's write lock.
        form: what of the room's record was written already; likewise.

    Thread safety: ``*_locked`` under the room's write lock; :meth:`check` and :meth:`mark` by any thread.
    """

    __slots__ = (
        "_acted",
        "_clock",
        "_events",
        "_mark",
        "_waiters",
        "acted",
        "changed",
        "doubted",
        "form",
        "lease",
        "lost",
        "patience",
        "pledges",
        "refusal",
        "removing",
        "revision",
        "room",
        "step",
        "unsettled",
    )

    def __init__(
        self,
        room: SharedRoom,
        lease: Lease,
        revision: int,
        mark: Callable[[Journal], None],
        patience: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.room: SharedRoom | None = room
        self.lease = lease
        self.revision = revision
        self.patience = patience  # seconds for which an operation waits to be stored
        self.step: Step | None = None
        self.doubted = False
        self.lost = False
        self.removing = False
        self.unsettled = False
        self.refusal: Callable[[], RoomkitError] | None = None  # set once: why nothing is begun any more
        self._mark = mark
        self._clock = clock
        # Guarded by the room's write lock:
        self.changed = False
        self.form: Form | None = None
        self.acted: dict[str, Acted] = {}
        self.pledges: deque[Pledge] = deque()  # in the order in which they are due
        self._acted: list[Acted] = []  # since the last step
        self._events: list[Event] = []
        self._waiters: list[Waits] = []

    def check(self) -> None:
        """Before an operation begins.

        Raises:
            RoomBusy: the lease may have ended: what is done now may never be stored.
            ShuttingDown: the room is being handed over.
        """
        if self.refusal is not None:
            raise self.refusal()
        if self._clock() >= self.lease.until:
            raise RoomBusy("the store of the rooms does not answer; try again")

    def mark(self) -> None:
        """The room has something to store, or to deliver. Never blocks; under no lock."""
        self._mark(self)

    def note_locked(self, events: Sequence[Event], waits: Waits | None = None, command_id: str = "") -> None:
        """The room may have changed; who is to be told when that is stored, and by which command of another instance it
        was.
        """
        self.changed = True
        try:
            self._events += events
            if waits is not None:
                self._waiters.append(waits)
            if command_id and events:
                acted = Acted(command_id, events[0].seq, events[-1].seq)
                self._acted.append(acted)
                self.remember_locked(acted)
        except MemoryError:  # the change stands. Rather none of the events than a hole; who follows begins anew
            self._events = []
            self._acted = []

    def remember_locked(self, acted: Acted) -> None:
        """A command that is not to be carried out again."""
        self.acted[acted.id] = acted
        if len(self.acted) > _REMEMBERED:
            del self.acted[next(iter(self.acted))]

    def pledge_locked(self, tell: Callable[[], None], refuse: Callable[[RoomkitError], None]) -> Callable[[], None]:
        """Have the sender of an operation answered in time; what tells it that it is stored."""
        pledge = Pledge(tell, refuse, self._clock() + self.patience)
        self.pledges.append(pledge)
        return pledge.keep

    def overdue_locked(self) -> list[Pledge]:
        """Those that are due, and not kept; they are forgotten here."""
        now, pledges, overdue = self._clock(), self.pledges, []
        while pledges and (pledges[0].settled or pledges[0].due <= now):
            overdue.append(pledges.popleft())
        return [pledge for pledge in overdue if not pledge.settled]

    def take_locked(self, seq: int) -> tuple[list[Event], list[Acted], list[Waits]]:
        """What the next step is to hold, which ends with ``seq``."""
        events, acted, waiters = self._events, self._acted, self._waiters
        self.changed, self._events, self._acted, self._waiters = False, [], [], []
        pledges = self.pledges
        while pledges and pledges[0].settled:
            pledges.popleft()
        whole = not events or (events[-1].seq == seq and events[-1].seq - events[0].seq == len(events) - 1)
        return (events, acted, waiters) if whole else ([], [], waiters)
