"""Statuses, operations and the one declared table of transitions.

A lifecycle is a total table: status x operation -> what follows. A missing cell *is* the refusal. What follows is a
status, or a list of ``(guard, status)`` pairs tried in order after the operation's effect, ended by a plain status::

    "add_player": [("enough_players", "preparing"), "waiting"]

The room's code, the property tests, the docs' table and the drawn diagram all come from this table and nothing else:
the seed's first disaster (six flags, 64 combinations, 23 % of rooms contradictory) cannot be written down here.

A user's own lifecycle is another such table (:class:`Lifecycle`); its faults are named when it is declared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple, Protocol

from roomkit.errors import InvalidLifecycle


class RoomStatus(str, Enum):
    """The statuses of the default lifecycle (seed, first disaster). A member is also its wire string."""

    WAITING = "waiting"
    PREPARING = "preparing"
    READY = "ready"
    PLAYING = "playing"
    FINISHED = "finished"
    CLOSED = "closed"

    def __str__(self) -> str:
        return self.value


class Facts(Protocol):
    """What a guard may look at: the room after the operation's effect and before its status changes."""

    @property
    def player_count(self) -> int: ...
    @property
    def min_players(self) -> int: ...
    @property
    def max_players(self) -> int: ...
    @property
    def all_ready(self) -> bool: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...


Guard = Callable[[Facts], bool]

#: The guards that every table may name.
GUARDS: Mapping[str, Guard] = {
    "enough_players": lambda facts: facts.player_count >= facts.min_players,
    "too_few_players": lambda facts: facts.player_count < facts.min_players,
    "full": lambda facts: facts.player_count >= facts.max_players,
    "empty": lambda facts: facts.player_count == 0,
    "all_ready": lambda facts: facts.all_ready,
}

#: Operations whose effect the room knows itself; a table may use any of them. Others are the lifecycle's own.
BUILTIN_OPERATIONS = (
    "add_player",
    "remove_player",
    "set_player_ready",
    "select_song",
    "start_game",
    "finish_game",
    "close",
)


class Operation(NamedTuple):
    """An operation of a user's own lifecycle, performed by ``room.perform(name, player_id, data)``.

    Attributes:
        host_only: only the host (or server code) may perform it.
        check: called as ``check(state, player_id, data)`` before anything changes, under the room's lock: it must be
            pure and quick. It may raise ``OperationRefused``; what it returns (a dict, or None) is merged into the
            room's settings, where the guards and everybody else see it.
    """

    host_only: bool = False
    check: Callable[[Any, str | None, dict[str, Any]], dict[str, Any] | None] | None = None


class Rule(NamedTuple):
    """One way out of a cell: go to ``status`` when ``guard`` (its name; None: always) holds."""

    guard: str | None
    status: str


Cell = str | Sequence[str | tuple[str, str]]


class Lifecycle:
    """A declared table of transitions, checked when it is made. Immutable afterwards.

    Args:
        name: what clients see as ``state.lifecycle``.
        table: ``{status: {operation: cell}}``; see the module's docstring. Every status has a row.
        initial: the status of a new room (default: the first row).
        closed: the terminal status (default ``"closed"``). ``close`` on it is a no-op and need not be written.
        finished: statuses that close by themselves after ``finished_ttl``.
        guards: more guards by name.
        operations: what is special about the lifecycle's own operations; one that is only in the table gets
            ``Operation()``.

    Expiry and the manager's shutdown close a room from any status.

    Raises:
        InvalidLifecycle: an unknown status or guard, a cell without a last unguarded status, a status that cannot be
            reached, or one from which ``closed`` cannot be reached (a dead end). Nothing was made.

    Thread safety: immutable.
    """

    __slots__ = (
        "_rows",
        "closed",
        "finished",
        "guards",
        "initial",
        "name",
        "operations",
        "statuses",
        "table",
    )

    def __init__(
        self,
        name: str,
        table: Mapping[str, Mapping[str, Cell]],
        *,
        initial: str | None = None,
        closed: str = "closed",
        finished: Sequence[str] = (),
        guards: Mapping[str, Guard] | None = None,
        operations: Mapping[str, Operation] | None = None,
    ) -> None:
        self.name = name
        self.statuses: tuple[str, ...] = tuple(self._status(status) for status in table)
        if not self.statuses:
            raise InvalidLifecycle(f"lifecycle {name!r} has no status")
        self.initial: str = self._status(initial) if initial is not None else self.statuses[0]
        self.closed = closed = self._status(closed)
        self.finished = frozenset(self._status(status) for status in finished)
        self.guards: dict[str, Guard] = {**GUARDS, **(guards or {})}
        self.table: dict[str, dict[str, tuple[Rule, ...]]] = {
            self._status(status): self._row(self._status(status), row) for status, row in table.items()
        }
        self.table.setdefault(closed, {})
        self.table[closed].setdefault("close", (Rule(None, closed),))
        if closed not in self.statuses:
            self.statuses = (*self.statuses, closed)
        self.initial, self.closed = (self._member(status) for status in (self.initial, closed))
        names = dict.fromkeys(operation for row in self.table.values() for operation in row)
        self.operations: dict[str, Operation] = {
            operation: (operations or {}).get(operation, Operation())
            for operation in names
            if operation not in BUILTIN_OPERATIONS
        }
        self._check(operations or {})
        self._rows = {
            status: {
                operation: tuple((None if r.guard is None else self.guards[r.guard], r.status) for r in rules)
                for operation, rules in row.items()
            }
            for status, row in self.table.items()
        }

    def _status(self, value: object) -> str:
        """Plain text: the members of a user's own ``str`` enum would otherwise print as their names."""
        if isinstance(value, RoomStatus):
            return value
        if not isinstance(value, str) or not value:
            raise InvalidLifecycle(f"lifecycle {self.name!r}: status {value!r} is not text")
        return str.__str__(value)

    def _member(self, status: str) -> str:
        """As the table has it: where that is made of RoomStatus, a room closed by time is RoomStatus.CLOSED too."""
        return next((known for known in self.statuses if known == status), status)

    def _row(self, status: str, row: object) -> dict[str, tuple[Rule, ...]]:
        if not isinstance(row, Mapping):
            raise InvalidLifecycle(f"lifecycle {self.name!r}: the row of {status!r} must map operations to cells")
        return {operation: self._cell(status, operation, cell) for operation, cell in row.items()}

    def _cell(self, status: str, operation: str, cell: object) -> tuple[Rule, ...]:
        where = f"lifecycle {self.name!r}, {status} x {operation}"
        items = [cell] if isinstance(cell, str) else list(cell) if isinstance(cell, (list, tuple)) else [cell]
        rules: list[Rule] = []
        for item in items:
            if isinstance(item, str):
                rules.append(Rule(None, self._status(item)))
            elif isinstance(item, (list, tuple)) and len(item) == 2:
                rules.append(Rule(item[0], self._status(item[1])))
            else:
                raise InvalidLifecycle(f"{where}: a cell is made of statuses and (guard, status) pairs (got {item!r})")
        if not rules or rules[-1].guard is not None:
            raise InvalidLifecycle(f"{where}: the last entry must be a status without a guard")
        for rule in rules[:-1]:
            if rule.guard is None:
                raise InvalidLifecycle(f"{where}: {rule.status!r} has no guard, so what follows it is never reached")
        for rule in rules:
            if rule.guard is not None and rule.guard not in self.guards:
                raise InvalidLifecycle(f"{where}: unknown guard {rule.guard!r}")
        return tuple(rules)

    def _check(self, declared: Mapping[str, Operation]) -> None:
        known = set(self.statuses)
        if self.initial not in known:
            raise InvalidLifecycle(f"lifecycle {self.name!r}: unknown initial status {self.initial!r}")
        for status in self.finished - known:
            raise InvalidLifecycle(f"lifecycle {self.name!r}: unknown status {status!r} in finished")
        for operation in declared:
            if operation in BUILTIN_OPERATIONS:
                raise InvalidLifecycle(f"lifecycle {self.name!r}: operation {operation!r} is builtin, not its own")
            if operation not in self.operations:
                raise InvalidLifecycle(f"lifecycle {self.name!r}: operation {operation!r} is in no row of the table")
        for status, row in self.table.items():
            for operation, rules in row.items():
                for rule in rules:
                    if rule.status not in known:
                        raise InvalidLifecycle(
                            f"lifecycle {self.name!r}, {status} x {operation}: unknown status {rule.status!r}"
                        )
        for operation, rules in self.table[self.closed].items():
            if any(rule.status != self.closed for rule in rules):
                raise InvalidLifecycle(
                    f"lifecycle {self.name!r}: {operation} leaves the terminal status {self.closed!r}"
                )
        follows = {s: {r.status for rules in row.values() for r in rules} for s, row in self.table.items()}
        for status in self.statuses:
            if self.closed not in _reachable(follows, status):
                raise InvalidLifecycle(f"lifecycle {self.name!r}: {status!r} is a dead end, no way to {self.closed!r}")
        reached = _reachable(follows, self.initial)
        for status in self.statuses:
            if status not in reached:
                raise InvalidLifecycle(f"lifecycle {self.name!r}: no way from {self.initial!r} to {status!r}")

    def allows(self, status: str, operation: str) -> bool:
        """Whether the table has a cell for the pair."""
        return operation in self._rows.get(status, ())

    def row(self, status: str) -> Mapping[str, tuple[tuple[Guard | None, str], ...]]:
        """What may be done in a status: operation -> its cell with its guards as functions."""
        return self._rows[status]

    @property
    def all_operations(self) -> tuple[str, ...]:
        """Every operation of the table, the builtin ones first, in their order."""
        own = tuple(self.operations)
        return tuple(op for op in BUILTIN_OPERATIONS if any(op in row for row in self.table.values())) + own

    def __repr__(self) -> str:
        return f"Lifecycle({self.name!r}, {' -> '.join(map(str, self.statuses))})"


def _reachable(follows: Mapping[str, set[str]], start: str) -> set[str]:
    seen, todo = {start}, [start]
    while todo:
        for status in follows[todo.pop()] - seen:
            seen.add(status)
            todo.append(status)
    return seen


_S = RoomStatus

#: The default lifecycle: the game of the seed. DESIGN's table, cell by cell.
GAME = Lifecycle(
    "game",
    {
        _S.WAITING: {
            "add_player": [("enough_players", _S.PREPARING), _S.WAITING],
            "remove_player": _S.WAITING,
            "select_song": _S.WAITING,
            "close": _S.CLOSED,
        },
        _S.PREPARING: {
            "add_player": _S.PREPARING,
            "remove_player": [("too_few_players", _S.WAITING), ("all_ready", _S.READY), _S.PREPARING],
            "set_player_ready": [("all_ready", _S.READY), _S.PREPARING],
            "select_song": _S.PREPARING,
            "close": _S.CLOSED,
        },
        _S.READY: {
            "remove_player": [("too_few_players", _S.WAITING), _S.READY],
            "set_player_ready": [("all_ready", _S.READY), _S.PREPARING],
            "select_song": _S.PREPARING,
            "start_game": _S.PLAYING,
            "close": _S.CLOSED,
        },
        _S.PLAYING: {
            "remove_player": _S.PLAYING,
            "finish_game": _S.FINISHED,
            "close": _S.CLOSED,
        },
        _S.FINISHED: {
            "remove_player": _S.FINISHED,
            "close": _S.CLOSED,
        },
        _S.CLOSED: {
            "close": _S.CLOSED,
        },
    },
    finished=[_S.FINISHED],
)
