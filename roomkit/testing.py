"""Tools for testing rooms without threads, sleeps or sockets: a clock driven by hand, a connection that records, a
broadcaster that drains in the calling thread, a client's copy of the state, a state machine for lifecycles, and the
contract that every backend keeps.

A room that runs wholly in the calling thread::

    clock, inline = ManualClock(), InlineBroadcaster()
    room = Room("r", runtime=Runtime(clock, clock.wall), broadcaster=inline)
    room.join("amy", amy := RecordingConnection())
    room.send_message("amy", {"text": "hi"})
    assert amy.types[-1] == "message"

or, with a manager, ``RoomManager(clock=clock, wall_clock=clock.wall)`` and ``manager.use_broadcaster(inline)``.
"""

from __future__ import annotations

import copy
import json
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from roomkit.backends.contract import BackendContract
from roomkit.broadcaster import Broadcaster
from roomkit.core.config import RoomConfig
from roomkit.core.events import Event
from roomkit.core.follow import follow
from roomkit.core.lifecycle import BUILTIN_OPERATIONS, Lifecycle
from roomkit.core.snapshot import RoomState
from roomkit.delivery import Batch
from roomkit.errors import InvalidTransition, RoomkitError
from roomkit.room import Room
from roomkit.runtime import Runtime

if TYPE_CHECKING:
    from hypothesis.stateful import RuleBasedStateMachine
    from hypothesis.strategies import DataObject, SearchStrategy

__all__ = [
    "BackendContract",
    "CopyOfState",
    "InlineBroadcaster",
    "ManualClock",
    "RecordingConnection",
    "lifecycle_machine",
]

T = TypeVar("T")

#: 2024-03-27T20:00:00Z: where a ManualClock's wall clock starts.
WALL_START = 1711569600.0


class ManualClock:
    """A clock that moves only when told: ``clock()`` is monotonic seconds, ``clock.wall()`` Unix seconds.

    Thread safety: full.
    """

    def __init__(self, start: float = 1000.0, wall: float = WALL_START) -> None:
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._now = start
        self._offset = wall - start

    def __call__(self) -> float:
        """Monotonic seconds."""
        with self._lock:
            return self._now

    def wall(self) -> float:
        """Unix seconds; moves along."""
        with self._lock:
            return self._now + self._offset

    def advance(self, seconds: float) -> float:
        """Move on by ``seconds`` and return the new monotonic time.

        Raises:
            ValueError: ``seconds`` is negative; the clock stays where it was.
        """
        if not seconds >= 0:
            raise ValueError(f"a monotonic clock does not go back (got {seconds!r})")
        with self._lock:
            self._now += seconds
            return self._now


class RecordingConnection:
    """A :class:`roomkit.delivery.Connection` that keeps what it is given.

    Attributes:
        messages: every delivered message, decoded, in order.
        late_messages: what was delivered after the first close (there should be nothing).
        batches: how many messages each ``deliver`` brought.
        closes: ``(code, reason)`` of every close.
        error: an exception that ``deliver`` raises from now on, as a lost network would; None: none.

    Monitor: ``_condition`` guards all of them; :meth:`wait_for` waits on it, ``deliver`` and ``close`` notify.

    Thread safety: full.
    """

    def __init__(self, error: Exception | None = None) -> None:
        self._condition = threading.Condition()
        # Guarded by _condition:
        self.error = error
        self.messages: list[dict[str, Any]] = []
        self.late_messages: list[dict[str, Any]] = []
        self.batches: list[int] = []
        self.closes: list[tuple[int, str]] = []

    def deliver(self, batch: Batch) -> None:
        """Record the messages, or raise :attr:`error`."""
        decoded = [json.loads(message) for message in batch.messages]
        with self._condition:
            if self.error is not None:
                raise self.error
            (self.late_messages if self.closes else self.messages).extend(decoded)
            self.batches.append(len(decoded))
            self._condition.notify_all()

    def close(self, code: int, reason: str) -> None:
        """Record the close."""
        with self._condition:
            self.closes.append((code, reason))
            self._condition.notify_all()

    @property
    def closed(self) -> tuple[int, str] | None:
        """``(code, reason)`` of the first close, or None."""
        with self._condition:
            return self.closes[0] if self.closes else None

    @property
    def welcome(self) -> dict[str, Any]:
        """The data of the first message, which is the welcome."""
        with self._condition:
            first = self.messages[0]
        assert first["type"] == "welcome", first
        data: dict[str, Any] = first["data"]
        return data

    @property
    def events(self) -> list[dict[str, Any]]:
        """The messages that have a seq, in order: replayed and live events, no welcome and no gap notices."""
        with self._condition:
            return [message for message in self.messages if "seq" in message]

    @property
    def types(self) -> list[str]:
        """The type of each message, in order."""
        with self._condition:
            return [message["type"] for message in self.messages]

    def of_type(self, message_type: str) -> list[dict[str, Any]]:
        """The messages of one type, in order."""
        with self._condition:
            return [message for message in self.messages if message["type"] == message_type]

    def wait_for(self, predicate: Callable[[RecordingConnection], T], timeout: float = 5.0) -> T:
        """Wait until ``predicate(self)`` is true, asking again after each ``deliver`` and ``close``; return its value.

        Raises:
            TimeoutError: it did not become true within ``timeout`` seconds; the text says what had come.
        """
        with self._condition:
            if not self._condition.wait_for(lambda: predicate(self), timeout):
                raise TimeoutError(f"not within {timeout} s; came: {self.types}, closed: {self.closes}")
            return predicate(self)


class InlineBroadcaster:
    """A broadcaster factory that needs no thread: each room is drained by the thread whose operation woke it, at once.

    Pass it as ``Room(..., broadcaster=inline)`` or ``manager.use_broadcaster(inline)``. While a room is being drained,
    what a connection's own calls add is drained after it, never within it.

    Args:
        by_hand: drain only when :meth:`drain` is called, so that a queue can be made to fill up. An operation that
            waits for a place in a full queue then waits in vain: set the room's ``busy_timeout`` to 0.

    Thread safety: full. What ``drain`` raises is raised to whoever drains.
    """

    def __init__(self, *, by_hand: bool = False) -> None:
        self.by_hand = by_hand
        self._made: weakref.WeakSet[_Inline] = weakref.WeakSet()

    def __call__(self, room_id: str, drain: Callable[[], None]) -> Broadcaster:
        """A room's broadcaster."""
        made = _Inline(self, room_id, drain)
        self._made.add(made)
        return made

    def drain(self, room_id: str | None = None) -> int:
        """Drain the rooms that were woken since they were last drained, or that one; return how many there were."""
        return sum(made.run() for made in list(self._made) if room_id is None or made.room_id == room_id)


class _Inline:
    """One room's part of an :class:`InlineBroadcaster`."""

    def __init__(self, factory: InlineBroadcaster, room_id: str, drain: Callable[[], None]) -> None:
        self.room_id = room_id
        self._factory = factory
        self._drain = drain
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._wanted = False
        self._stopped = False
        self._drainer: int | None = None  # the thread that drains

    def wake(self) -> None:
        with self._lock:
            if self._stopped:
                return
            self._wanted = True
        if not self._factory.by_hand:
            self.run()

    def run(self) -> bool:
        with self._lock:
            if self._drainer is not None or not self._wanted:  # whoever drains sees _wanted before it ends
                return False
            self._drainer = threading.get_ident()
        while True:
            with self._lock:
                if not self._wanted:
                    self._drainer = None
                    return True
                self._wanted = False
            try:
                self._drain()
            except BaseException:
                with self._lock:
                    self._drainer = None
                raise

    def is_current(self) -> bool:
        return self._drainer == threading.get_ident()

    def retire(self) -> None:
        pass  # there is no thread to spare

    def request_stop(self) -> None:
        with self._lock:
            self._stopped = True

    def stop(self, timeout: float) -> bool:
        self.request_stop()
        self.run()  # what was asked for
        return True


class CopyOfState:
    """A client's copy of a room's state: it starts from ``state.to_dict()`` and follows the events as the table of
    ``docs/protocol.md`` says (``roomkit.core.follow``, as ``roomkit.client`` does), ignoring those that it has.

    Args:
        state: as in a welcome; it is copied.

    Thread safety: none.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        self._state = RoomState.from_dict(copy.deepcopy(dict(state)))

    @property
    def seq(self) -> int:
        """The number of the last event in it."""
        return self._state.seq

    @property
    def state(self) -> dict[str, Any]:
        """:meth:`to_dict`."""
        return self.to_dict()

    def to_dict(self) -> dict[str, Any]:
        """To be compared with ``room.get_state().to_dict()``."""
        return copy.deepcopy(self._state.to_dict())

    def apply(self, event: Event | Mapping[str, Any]) -> bool:
        """Follow one event (an :class:`Event`, or a message as decoded from the wire).

        Returns:
            Whether it was new; welcomes, gap notices and events up to :attr:`seq` change nothing.
        """
        if not isinstance(event, Event):
            if "seq" not in event:
                return False
            event = Event.from_dict(event)
        before = self._state
        self._state = follow(before, event)
        return self._state is not before

    def apply_all(self, events: Iterable[Event | Mapping[str, Any]]) -> int:
        """:meth:`apply` each; returns how many were new."""
        return sum(self.apply(event) for event in events)


def lifecycle_machine(
    lifecycle: Lifecycle,
    *,
    config: RoomConfig | None = None,
    player_ids: Sequence[str] = ("amy", "bob", "cat", "dan"),
    data: Mapping[str, SearchStrategy[dict[str, Any]]] | None = None,
) -> type[RuleBasedStateMachine]:
    """A Hypothesis state machine that drives a room through ``lifecycle`` and checks what must always hold.

    Random players try every operation of the table, and the builtin ones that are not in it, in every status, and
    connect, drop, kick, lock and send messages in between. After each step:

    * a pair of status and operation that the table refuses raised ``InvalidTransition`` naming room, status and
      operation; and whatever was refused changed nothing: not the state, the history nor what is delivered;
    * the status is a declared one, and one that the table's cell names;
    * never more players than seats, and the host is one of them;
    * seqs count without a hole, and a copy of the state that follows the events is equal to the state, for a reader of
      the history and for every connection.

    An exception from a guard or an operation's check that is no ``RoomkitError`` fails the test. Run it as it is::

        TestAuction = lifecycle_machine(AUCTION, data={"bid": st.fixed_dictionaries({"price": st.integers()})}).TestCase

    or subclass it to add rules and invariants of your own; ``self.room`` is the room, ``self.clock`` its clock, and
    ``self.attempt(operation, call)`` tries an operation with all of the checks above.

    Args:
        lifecycle: the table.
        config: bounds of the rooms (default: 3 seats, 2 to begin). Its history is made long enough for the test.
        player_ids: who tries; have more of them than seats, so that full rooms are met.
        data: for the lifecycle's own operations, what their data is drawn from (default: empty).

    Returns:
        A ``RuleBasedStateMachine``. Its class attribute ``reached`` gathers the pairs of status and operation tried.

    Raises:
        ImportError: hypothesis is not installed.
    """
    try:
        from hypothesis import strategies as st
        from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
    except ImportError as error:
        raise ImportError(
            "roomkit.testing.lifecycle_machine needs hypothesis: pip install 'roomkit-server[test]'"
        ) from error

    base = config if config is not None else RoomConfig(max_players=3, min_players=2)
    settled = base.replace(history_size=1_000_000, busy_timeout=0)
    operations = [op for op in dict.fromkeys((*lifecycle.all_operations, *BUILTIN_OPERATIONS)) if op != "close"]
    payloads = dict(data or {})
    players = st.sampled_from(list(player_ids))
    askers = st.one_of(players, st.none())
    nothing: SearchStrategy[dict[str, Any]] = st.just({})

    class LifecycleMachine(RuleBasedStateMachine):
        reached: ClassVar[set[tuple[str, str]]] = set()

        def __init__(self) -> None:
            super().__init__()
            tokens = count(1)
            self.clock = ManualClock()
            runtime = Runtime(
                self.clock, self.clock.wall, new_token=lambda: f"token-{next(tokens)}", new_epoch=lambda: "epoch-1"
            )
            self.room = Room("machine", settled, lifecycle=lifecycle, runtime=runtime, broadcaster=InlineBroadcaster())
            self.copy = CopyOfState(self.room.get_state().to_dict())
            self.tokens: dict[str, str] = {}
            self.connections: dict[str, RecordingConnection] = {}
            self.followers: dict[str, tuple[int, CopyOfState]] = {}  # messages seen, and the copy that they made

        # The operations of the table.

        @rule(operation=st.sampled_from(operations), player=players, asker=askers, drawn=st.data())
        def operate(self, operation: str, player: str, asker: str | None, drawn: DataObject) -> None:
            self.attempt(operation, self._call(operation, player, asker, drawn))

        @initialize(steps=st.integers(0, 15), drawn=st.data())
        def begin(self, steps: int, drawn: DataObject) -> None:
            self._go_on(steps, drawn)

        @rule(steps=st.integers(1, 5), drawn=st.data())
        def go_on(self, steps: int, drawn: DataObject) -> None:
            self._go_on(steps, drawn)

        def _go_on(self, steps: int, drawn: DataObject) -> None:
            """What the status allows, by those who may and leaving out what leads back: to reach late statuses."""
            for _ in range(steps):
                fitting = [op for op in operations if self._fits(op)]
                if not fitting:
                    return
                operation = drawn.draw(st.sampled_from(fitting), "operation")
                there = self.room.get_players()
                if operation == "add_player":
                    able = [player for player in player_ids if player not in {seat.id for seat in there}]
                else:
                    able = [seat.id for seat in there if operation != "set_player_ready" or not seat.ready]
                player = drawn.draw(st.sampled_from(able or list(player_ids)), "player")
                if operation == "set_player_ready":
                    self.attempt(operation, lambda player=player: self.room.set_player_ready(player))  # type: ignore[misc]
                else:
                    asker = None
                    if operation in lifecycle.operations and there:  # a check may want to know who asks
                        may = self.room.get_state().host if lifecycle.operations[operation].host_only else player
                        asker = drawn.draw(st.sampled_from([may, None]), "asker")
                    self.attempt(operation, self._call(operation, player, asker, drawn))

        def _fits(self, operation: str) -> bool:
            status = str(self.room.status)
            if operation == "remove_player" or not lifecycle.allows(status, operation):
                return False
            state = self.room.get_state()
            return not (operation == "add_player" and not state.has_space) and not (
                operation == "set_player_ready" and all(player.ready for player in state.players)
            )

        @rule(asker=askers, really=st.sampled_from([False] * 7 + [True]))
        def close(self, asker: str | None, really: bool) -> None:
            if really or str(self.room.status) == lifecycle.closed:
                self.attempt("close", lambda: self.room.close(player_id=asker))

        def _call(self, operation: str, player: str, asker: str | None, drawn: DataObject) -> Callable[[], object]:
            room = self.room
            if operation == "add_player":
                token = drawn.draw(st.sampled_from([None, self.tokens.get(player), "forged"]), "token")
                return lambda: self._seated(player, room.add_player(player, token=token).token)
            if operation == "remove_player":
                return lambda: room.remove_player(player)
            if operation == "set_player_ready":
                ready = drawn.draw(st.sampled_from([True, True, False]), "ready")
                return lambda: room.set_player_ready(player, ready)
            if operation == "select_song":
                song = drawn.draw(st.sampled_from(["song-1", "song-2"]), "song")
                return lambda: room.select_song(asker, song)
            if operation == "start_game":
                return lambda: room.start_game(asker)
            if operation == "finish_game":
                return lambda: room.finish_game(asker, {player: 1})
            payload = drawn.draw(payloads.get(operation, nothing), "data")
            return lambda: room.perform(operation, asker, payload)

        def _seated(self, player: str, token: str | None) -> None:
            assert token is not None
            self.tokens[player] = token

        # What belongs to no status, or follows another operation's row.

        @rule(player=players, token_known=st.booleans())
        def connect(self, player: str, token_known: bool) -> None:
            connection = RecordingConnection()
            token = self.tokens.get(player) if token_known else None
            seated = self.room.get_state().get_player(player) is not None

            def join() -> None:
                self._seated(player, self.room.join(player, connection, token=token).player.token)
                older = self.connections.get(player)
                self.connections[player] = connection
                self.followers[player] = 1, CopyOfState(connection.welcome["state"])
                assert older is None or older.closed is not None, "a replaced connection was not closed"

            done = self.attempt("join", join, allowed=True) if seated else self.attempt("add_player", join)
            if not done:
                assert not connection.messages, "a refused connection was touched"
                assert not connection.closes, "a refused connection was touched"

        @rule(player=players)
        def drop(self, player: str) -> None:
            connection = self.connections.pop(player, None)
            if connection is not None:
                self.room.remove_connection(player, connection)
                self._follow()

        @rule(asker=askers, player=players, ban=st.sampled_from([False] * 11 + [True]))
        def kick(self, asker: str | None, player: str, ban: bool) -> None:
            self.attempt("remove_player", lambda: self.room.kick(asker, player, ban=ban))

        @rule(asker=askers)
        def message(self, asker: str | None) -> None:
            allowed = str(self.room.status) != lifecycle.closed
            self.attempt("message", lambda: self.room.send_message(asker, {"text": "hi"}), allowed=allowed)

        @rule(asker=askers, locked=st.sampled_from([False, False, False, True]))
        def lock(self, asker: str | None, locked: bool) -> None:
            change = self.room.lock if locked else self.room.unlock
            allowed = str(self.room.status) != lifecycle.closed
            self.attempt("update_room", lambda: change(asker), allowed=allowed)

        # The checks.

        def attempt(self, operation: str, call: Callable[[], object], *, allowed: bool | None = None) -> bool:
            """Try ``call``, which is ``operation`` in the table; returns whether it was carried out.

            Args:
                allowed: whether the status allows it; None: as the table says.
            """
            status = str(self.room.status)
            cell = lifecycle.row(status).get(operation)
            if allowed is None:
                allowed = cell is not None
                type(self).reached.add((status, operation))
            self.clock.advance(1.25)
            before = self._everything()
            refusal: RoomkitError | None = None
            try:
                call()
            except RoomkitError as error:
                refusal = error
            if refusal is not None:
                assert self._everything() == before, f"{operation} was refused ({refusal!r}) and changed something"
                if isinstance(refusal, InvalidTransition):
                    assert not allowed, f"{operation} in {status} is in the table and was refused: {refusal}"
                    named = (refusal.room_id, refusal.status, refusal.operation)
                    assert named == (self.room.id, status, operation), f"the refusal names {named}"
                else:
                    assert allowed, f"{operation} in {status} was refused by {refusal!r} and not by the table"
                return False
            assert allowed, f"{operation} in {status} is not in the table and was carried out"
            after = str(self.room.status)
            if after != status:
                assert cell is not None, f"{operation} led from {status} to {after}"
                assert after in {str(to) for _, to in cell}, f"{operation} in {status} led to {after}"
            self._follow()
            return True

        def _everything(self) -> tuple[Any, ...]:
            room = self.room
            with room.reading():
                tokens = [(player.id, player.token) for player in room.seats_locked()]
            delivered = {player: len(each.messages) for player, each in self.connections.items()}
            return room.get_state().to_dict(), tokens, room.get_events(), delivered, room.next_deadline()

        def _follow(self) -> None:
            state = self.room.get_state().to_dict()
            events = self.room.get_events(self.copy.seq)
            assert events is not None
            seqs = [event.seq for event in events]
            assert seqs == list(range(self.copy.seq + 1, state["seq"] + 1)), f"seqs {seqs} up to {state['seq']}"
            self.copy.apply_all(events)
            assert self.copy.to_dict() == state, "the events do not lead to the state"
            for player, connection in list(self.connections.items()):
                if connection.closed is not None:
                    del self.connections[player]
                    assert not connection.late_messages
                seen, theirs = self.followers[player]
                live = connection.messages[seen:]
                self.followers[player] = seen + len(live), theirs
                for message in live:
                    assert message["seq"] == theirs.seq + 1, f"{player} has {theirs.seq} and got {message}"
                    theirs.apply(message)
                if connection.closed is None:
                    assert theirs.to_dict() == state, f"what {player} was sent does not lead to the state"

        @invariant()
        def the_room_is_sound(self) -> None:
            state = self.room.get_state()
            assert str(state.status) in {str(status) for status in lifecycle.statuses}
            ids = [player.id for player in state.players]
            assert len(set(ids)) == len(ids) <= state.max_players
            assert state.host in ids if ids else state.host is None

    LifecycleMachine.__qualname__ = LifecycleMachine.__name__ = f"LifecycleMachine_{lifecycle.name}"
    return LifecycleMachine
