"""Listings: filter, sort, and pages that stay right while rooms come and go."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from time import perf_counter, sleep
from typing import Any, TypeVar

import msgspec

from roomkit.core.snapshot import RoomState
from roomkit.errors import InvalidMessage

_SORTS: dict[str, Callable[[RoomState], Any]] = {
    "created_at": lambda state: state.created_at,
    "players": lambda state: len(state.players),
    "id": lambda state: state.id,
}


#: A thread that reads all rooms holds Python's one lock against those that serve; so it rests after so many seconds.
_TURN = 0.001
_REST = 0.0005

T = TypeVar("T")


def unhurried(rooms: Sequence[T]) -> Iterator[T]:
    """``rooms`` one after the other, with rests in which the threads that serve players get their turn."""
    rested = perf_counter()
    for number, room in enumerate(rooms):
        if not number & 15 and perf_counter() - rested > _TURN:
            sleep(_REST)
            rested = perf_counter()
        yield room


class RoomPage(tuple[RoomState, ...]):
    """A page of a listing: the rooms' states, and the cursor of the next page (None: there is none)."""

    next_cursor: str | None = None


class Wanted(msgspec.Struct, frozen=True):
    """What ``RoomManager.list_rooms`` is asked for; ``status``: any of these."""

    status: tuple[str, ...] | None = None
    has_space: bool | None = None
    metadata: dict[str, Any] | None = None
    include_private: bool = False
    sort: str = "created_at"
    limit: int | None = None
    cursor: str | None = None

    def page_of(self, states: Sequence[RoomState]) -> RoomPage:
        """See make_page."""
        return make_page(states, self.status, self.metadata, self.sort, self.limit, self.cursor)

    def with_one_more(self) -> Wanted:
        """So that whoever puts several pages together knows whether there is another."""
        return self if self.limit is None else msgspec.structs.replace(self, limit=self.limit + 1)


class Wish(msgspec.Struct, frozen=True):
    """What ``RoomManager.join_or_create`` is asked for."""

    player_id: str
    metadata: dict[str, Any] | None = None
    options: dict[str, Any] = {}
    name: str | None = None
    reserve: bool = False


def make_page(
    states: Sequence[RoomState],
    status: str | Iterable[str] | None,
    metadata: Mapping[str, Any] | None,
    sort: str,
    limit: int | None,
    cursor: str | None,
) -> RoomPage:
    """Of ``states``, the page that was asked for (see ``RoomManager.list_rooms``).

    Raises:
        InvalidMessage: an unknown sort, a negative limit, or a cursor that a listing with this sort did not give.
    """
    if limit is not None and limit < 0:
        raise InvalidMessage(f"limit is not negative (got {limit})")
    descending = sort.startswith("-")
    key = _SORTS.get(sort.removeprefix("-"))
    if key is None:
        raise InvalidMessage(f"sort is one of {', '.join(_SORTS)}, with - in front for descending (got {sort!r})")
    wanted = None if status is None else {str(status)} if isinstance(status, str) else {str(s) for s in status}
    found = [
        (key(state), state.id, state)
        for state in states
        if (wanted is None or str(state.status) in wanted) and fits(state.metadata, metadata)
    ]
    found.sort(key=lambda row: row[:2], reverse=descending)
    if cursor is not None:
        after = read_cursor(cursor, sort)
        found = [row for row in found if (row[:2] < after if descending else row[:2] > after)]
    page = RoomPage(row[2] for row in (found if limit is None else found[:limit]))
    if limit is not None and len(found) > limit > 0:
        page.next_cursor = write_cursor(sort, found[limit - 1][:2])
    return page


def position(state: RoomState, sort: str) -> tuple[Any, str]:
    """Where a room stands in a listing: what pages of several listings are merged by."""
    return _SORTS[sort.removeprefix("-")](state), state.id


def fits(metadata: Mapping[str, Any], wanted: Mapping[str, Any] | None) -> bool:
    """Whether every wanted pair is there."""
    return not wanted or all(key in metadata and metadata[key] == value for key, value in wanted.items())


def write_cursor(sort: str, position: Sequence[Any]) -> str:
    """The cursor of the page behind a position."""
    return base64.urlsafe_b64encode(msgspec.json.encode((sort, *position))).decode()


def read_cursor(cursor: str, sort: str) -> tuple[Any, str]:
    """The position in a cursor. Raises InvalidMessage: a listing with this sort did not give it."""
    try:
        made_for, value, room_id = msgspec.json.decode(base64.urlsafe_b64decode(cursor.encode()))
        kind = str if sort.removeprefix("-") == "id" else (int, float)
        if made_for == sort and isinstance(value, kind) and isinstance(room_id, str):
            return value, room_id
    except (AttributeError, TypeError, ValueError):  # UnicodeError and msgspec's are ValueErrors
        pass
    raise InvalidMessage("the cursor is not one that this listing gave")
