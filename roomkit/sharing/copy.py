"""Copy: what an instance knows of a room that another one owns, and what it has asked of the owner.

What is heard for a room gathers here, events and letters alike, in the order in which it came; whoever has the room's
write lock works it off (``SharedRoom.catch_up``). So the thread that hears never waits for a reader of the room.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from roomkit.backends.base import Events
from roomkit.core.events import Event
from roomkit.core.snapshot import RoomState
from roomkit.delivery import Connection
from roomkit.errors import BackendUnavailable, RoomBusy, RoomkitError
from roomkit.sharing.letters import Any_, Ask, Call, Done, Gone, Refused, Replaced


class Heard(NamedTuple):
    """A commit's events, or several commits' that were missed."""

    epoch: str
    events: Events


class Coming(NamedTuple):
    """A connection whose player is being let in. ``lost``: tells whoever waits for that that it is lost."""

    player_id: str
    connection: Connection
    lost: Callable[[], None]


class Waiting:
    """Something that was asked of a room's owner.

    Attributes:
        done: called with the events that it caused, and the seq that the room has reached. refused: or with why not.
            One of them, once, under the room's write lock: they must not block.
        to, sent_at: whom it was sent to last, and when. deadline: when it is given up.
    """

    __slots__ = ("deadline", "done", "letter", "refused", "sent_at", "to")

    def __init__(
        self,
        letter: Ask | Call,
        done: Callable[[Sequence[Event], Done], None],
        refused: Callable[[RoomkitError], None],
        now: float,
        patience: float,
    ) -> None:
        self.letter = letter
        self.done = done
        self.refused = refused
        self.to = ""
        self.sent_at = now
        self.deadline = now + patience


class Outcome:
    """A thread that waits for the answer."""

    __slots__ = ("_settled", "error", "value")

    def __init__(self) -> None:
        self._settled = threading.Event()
        self.value: object = None
        self.error: RoomkitError | None = None

    def settle(self, value: object) -> None:
        """It was carried out."""
        self.value = value
        self._settled.set()

    def refuse(self, error: RoomkitError) -> None:
        """It was not."""
        self.error = error
        self._settled.set()

    def wait(self, room_id: str, timeout: float) -> object:
        """Block until there is an answer, at most ``timeout`` seconds.

        Raises:
            BackendUnavailable: there is none. RoomkitError: it was refused.
        """
        if not self._settled.wait(timeout):
            raise BackendUnavailable(f"the owner of room {room_id!r} did not answer within {timeout} s")
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # a cycle with this frame
        return self.value


class Post(Protocol):
    """The node, as a room that it follows sees it. Nothing blocks."""

    #: Seconds for which an operation waits for the owner, or for the next one.
    patience: float

    @property
    def name(self) -> str:
        """The instance's."""

    def post(self, to: str, letter: Any_) -> None:
        """Have it sent, after what was posted before."""

    def next_number(self) -> int:
        """For a connection: no other of this instance has it."""

    def now(self) -> float:
        """Monotonic seconds."""

    def behind(self, room_id: str) -> None:
        """Events of it are missing, or it could not be caught up with just now: see to it."""

    def look_in(self, seconds: float) -> None:
        """See who owns the rooms in so many seconds, if nobody would before that."""


_MOST = 1000  # commands of a room that may wait for its owner


class Copy:
    """See the module. One per room that is or was followed.

    Attributes:
        owner: the instance that has the room; replaced by the thread that looks after it, read by any.
        heard: what is to be worked off; added to by any thread, taken from under the room's write lock.
        state: what the room looked like after the last event; guarded by the room's write lock.
        hole: events are missing. broken: what was heard makes no sense: the room is to be looked at anew.
        late: how far the room was when it was last asked, for the thread that looks after it.
        turned_away: whoever was taken for the owner has said that it is not: seconds until it is looked who is, more
            each time; 0: nobody has.
        ended: why nothing is asked any more; set by the thread that abandons the room, or lets go of it.

    ``waiting`` and ``coming`` are only ever touched in single steps (put, pop, a copy of all).

    Thread safety: as said.
    """

    __slots__ = (
        "broken",
        "coming",
        "ended",
        "heard",
        "hole",
        "idle_since",
        "late",
        "later",
        "owner",
        "post",
        "state",
        "turned_away",
        "waiting",
    )

    def __init__(self, post: Post, owner: str, state: RoomState) -> None:
        self.post = post
        self.owner = owner
        self.state = state
        self.heard: deque[Heard | Done | Refused | Replaced] = deque()
        self.later: list[Done] = []  # answers whose events are not here yet
        self.waiting: dict[str, Waiting] = {}
        self.coming: dict[int, Coming] = {}
        self.hole = False
        self.broken = False
        self.late = 0
        self.turned_away = 0.0
        self.ended: Callable[[], RoomkitError] | None = None
        self.idle_since = post.now()

    def ask(
        self,
        letter: Ask | Call,
        done: Callable[[Sequence[Event], Done], None],
        refused: Callable[[RoomkitError], None],
    ) -> None:
        """Ask the owner; one of the two is called once there is an answer.

        Raises:
            RoomBusy: too much waits already, or the room goes on elsewhere: neither will be called.
        """
        if len(self.waiting) >= _MOST:
            raise RoomBusy(f"{_MOST} operations wait for the owner of room {letter.room!r}; try again")
        waiting = Waiting(letter, done, refused, self.post.now(), self.post.patience)
        self.waiting[letter.id] = waiting
        ended = self.ended  # once: whoever was about to let go of the room may change its mind
        if ended is not None and self.waiting.pop(letter.id, None) is not None:
            raise ended()
        self.send(waiting)

    def send(self, waiting: Waiting) -> None:
        """To whoever owns the room now."""
        waiting.to = self.owner
        waiting.sent_at = self.post.now()
        self.post.post(waiting.to, waiting.letter)

    def withdraw(self, number: int) -> None:
        """A connection is lost whose player is not let in yet: this is not asked for again. Carried out late, it would
        take the seat from the connection with which the player came back.
        """
        for letter_id, waiting in list(self.waiting.items()):
            if isinstance(waiting.letter, Ask) and waiting.letter.number == number:
                self.waiting.pop(letter_id, None)

    def give_up(self, connection_of: str, number: int, room_id: str) -> None:
        """A connection is lost: the owner begins its player's grace."""
        self.post.post(self.owner, Gone(self.post.name, room_id, connection_of, number))
