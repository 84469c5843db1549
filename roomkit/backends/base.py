"""The backend interface: what instances that share rooms need of a store, and the guarantees they build on.

An *instance* is a process that serves rooms. A *scope* is what is owned as a whole: a room (Redis), or a shard of rooms
(a partition of a log). Every backend keeps these promises, and the contract suite
(``roomkit.testing.BackendContract``) shows them of each:

1. **One owner.** A lease is had by one instance at a time, for ``lease_ttl`` seconds unless it is renewed. Each lease
   has a fencing token higher than any before it of its scope, also after the store has lost data.
2. **A fence.** What is committed under a lease that another one has followed is refused and changes nothing, however
   late it comes. An owner therefore cannot write after another took over, even if it was frozen in between.
3. **A commit is one step.** State and events are stored together or not at all, and what was answered as committed is
   there for whoever opens the room next. Each commit of a room follows the one before it (``revision``); a commit
   that is repeated, since its answer was lost, acts once.
4. **No room twice.** Making a room is a commit that only succeeds where there is none. That nobody answers never is a
   reason to make one.
5. **Cursors.** Events are kept in the order of their seq. ``read(room, epoch, after)`` gives all that follow ``after``,
   or says that some of them are gone; never a part of them as if it were all.
6. **Hearing.** Who follows a room hears each of its commits that has events, once and in their order, as long as its
   connection to the store lasts; where something may have been missed, it is told so (``hear_again``). Letters reach
   whoever listens under the name then, those of one sender in their order, each at most once. Nothing is built on
   hearing but speed: what was missed is in the log, and a letter that got no answer is known by that.

An instance stops by itself to act as owner at ``Lease.until``, by its own monotonic clock, which it began to count
before it asked: so the store never ends a lease before its owner has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

#: committed: it is stored. fenced: the lease was followed by another's. conflict: the store has another revision than
#: the one that the commit follows (for a new room: there is one already, or for any: there is none any more).
Outcome = Literal["committed", "fenced", "conflict"]

#: Seconds for which a store knows that a room was taken away: it cannot be restored, by an owner that slept, say.
REMEMBERED = 600.0


class Instance(NamedTuple):
    """A process that serves rooms. ``address``: where it is reached by people and load balancers, for pages to show."""

    name: str
    address: str


class Lease(NamedTuple):
    """The right to change what is in a scope. ``until``: monotonic seconds of this process."""

    scope: str
    instance: str
    token: int
    until: float


class Held(NamedTuple):
    """Somebody else's lease, which has ``seconds`` left at least unless it is given up."""

    scope: str
    instance: str
    seconds: float


class Position(NamedTuple):
    """How far a room's events go."""

    epoch: str
    seq: int


class Stored(NamedTuple):
    """A room as it is kept. ``record``: what was committed last, byte for byte; ``token``: of the lease under which."""

    record: bytes
    position: Position
    revision: int
    token: int


class Acted(NamedTuple):
    """A command of another instance that was carried out in a commit.

    Attributes:
        id: the command's, 1 to 200 characters.
        first, last: the seqs of the events that it caused, from the first to the last.
    """

    id: str
    first: int
    last: int


class Commit(NamedTuple):
    """One step of a room: everything that it did since its last one.

    Attributes:
        lease: of the room's scope.
        position: the epoch, and the seq of the last event, these ones included.
        revision: 1 for a new room, afterwards one more than the last commit's.
        record: its whole state; None: the room is taken away, with its events.
        events: each as JSON, the last has the position's seq and the others those before it. A commit may have none.
        acted: the commands of other instances that caused some of the events; kept with them for as long as they are.
    """

    lease: Lease
    room_id: str
    position: Position
    revision: int
    record: bytes | None
    events: Sequence[bytes] = ()
    acted: Sequence[Acted] = ()


class Events(NamedTuple):
    """Events of a room in the order of their seq, which begin with ``first``: each as JSON. ``acted``: the commands
    all of whose events are among them.
    """

    first: int
    events: tuple[bytes, ...]
    acted: tuple[Acted, ...] = ()


class Listener(Protocol):
    """Who hears. It is called by the backend's own threads (in memory: by a thread that commits or sends), under no
    lock, one call at a time for each connection to the store; it must be quick and never block. What it raises is
    logged, and hearing goes on.
    """

    def hear_events(self, room_id: str, epoch: str, events: Events) -> None:
        """A commit of a room that is followed, in the order of commits. One that restores a room may tell events again
        that were heard before.
        """

    def hear_letter(self, body: bytes) -> None:
        """Somebody sent this to the name that is listened to: whoever can reach the store can send anything."""

    def hear_again(self) -> None:
        """The connection to the store, or to one of its nodes, was lost and is there again, or something was heard that
        made no sense: what was said in between was missed. Also when it is there for the first time.
        """


class Ear(Protocol):
    """What an instance hears with; made by :meth:`Backend.listen`.

    Thread safety: full.
    """

    def follow(self, room_ids: Sequence[str]) -> None:
        """Hear these rooms as well. When this returns, every later commit of theirs that has events is heard, until the
        connection is lost. A room that is followed already stays so.

        Blocks for at most ``timeout`` seconds. Not to be called by a listener.

        Raises:
            BackendUnavailable: it is not confirmed; they are heard as soon as the connection is there again, after
                ``hear_again``. Or this, or the backend, is closed.
        """

    def unfollow(self, room_ids: Sequence[str]) -> None:
        """Hear them no more, after what is under way. Never waits for the store."""

    def close(self, timeout: float) -> bool:
        """Hear nothing more. Waits at most so many seconds for its threads; whether they have ended. A second call
        waits again.
        """


class Backend(Protocol):
    """See the module.

    Every method blocks for at most ``timeout`` seconds for each of the store's nodes that it needs, and raises
    ``BackendUnavailable`` when there is no answer until then. What was asked for may or may not have happened; all of
    it can be asked for again and acts once.

    Thread safety: full.
    """

    lease_ttl: float
    timeout: float

    def scope_of(self, room_id: str) -> str:
        """What must be owned to change this room."""

    # Instances.

    def announce(self, instance: Instance) -> None:
        """This instance is alive, for another ``lease_ttl`` seconds."""

    def withdraw(self, name: str) -> None:
        """This instance has ended, and holds no lease any more."""

    def instances(self) -> list[Instance]:
        """Those that are alive, in the order of their names."""

    def orphans(self, limit: int = 1000) -> list[str]:
        """Scopes of instances that are not alive any more, at most ``limit``: to be acquired by somebody."""

    # Leases.

    def acquire(self, instance: str, scopes: Sequence[str]) -> list[Lease | Held]:
        """For each scope, in their order: the lease, if nobody else has it. One that the instance has already is
        followed by a new one.
        """

    def renew(self, leases: Sequence[Lease]) -> list[Lease | None]:
        """For each lease, in their order: the same with a later ``until``, or None where it was followed by another's.

        A lease that ended, and that nobody has taken since, is renewed as well.
        """

    def release(self, leases: Sequence[Lease], *, orphan: bool = False) -> None:
        """Give leases up: others may have them at once. What was followed by another's already stays as it is.

        ``orphan``: :meth:`orphans` tells of the scopes once this instance is not alive any more, so that somebody goes
        on with them without being asked for.
        """

    def holders(self, scopes: Sequence[str]) -> list[Held | None]:
        """For each scope, in their order: who has it now."""

    # Rooms.

    def open(self, lease: Lease, room_id: str) -> Stored | None:
        """The room as it was committed last, or None when there is none. From here on what an earlier owner still
        commits is refused.
        """

    def commit(self, commits: Sequence[Commit]) -> list[Outcome]:
        """Store steps of rooms; one outcome for each, in their order. Of one room there is at most one among them.

        A commit is whole, each by itself: of several some may be stored and others not.
        """

    def restore(self, commits: Sequence[Commit]) -> list[Outcome]:
        """Like :meth:`commit`, after the store has lost what was committed: whatever older revision it has, or none,
        is replaced by this one. ``events`` may begin with any that the store still has. A room that was taken away,
        not lost, is a conflict for ``REMEMBERED`` seconds.
        """

    # Events.

    def positions(self, room_ids: Sequence[str]) -> list[Position | None]:
        """For each room, in their order: how far it is, or None when there is none."""

    def read(self, room_id: str, epoch: str, after: int, limit: int = 1000) -> Events | None:
        """The events after seq ``after``, the first ``limit`` of them or somewhat more; none when there are none yet.

        Returns:
            None: there is no such room in this epoch, ``after`` is ahead of it, or not all of them are there any more.
        """

    # Hearing.

    def listen(self, name: str, listener: Listener) -> Ear:
        """Hear the letters to this instance, and the rooms that the ear is then told to follow.

        Never fails and never waits: where the store is absent it is tried again and again, by threads named
        ``roomkit-feed-N``, which end with the ear or the backend. Several may listen under one name: all of them hear.
        """

    def send(self, letters: Sequence[tuple[str, bytes]]) -> list[bool]:
        """Letters, each to the name of an instance, in this order for each. For each: whether somebody listens under
        that name now. A letter may be lost with a connection on either side, and is never heard twice.
        """

    def look(self, room_id: str) -> Stored | None:
        """The room as it was committed last, or None: for one who does not own it."""

    def close(self) -> None:
        """Let go of the connections and end what listens. The leases stay until they end."""
