"""Events: what happened in a room, as it is stored, delivered and encoded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from itertools import accumulate
from typing import Any

import msgspec

from roomkit.errors import InvalidMessage

#: Never dropped: an operation waits for a place in the queue before it causes one of these.
CRITICAL_TYPES = frozenset(
    {
        "player_joined",
        "player_left",
        "room_status",
        "host_changed",
        "game_started",
        "game_finished",
        "room_updated",
        "room_transferred",
        "room_closed",
        "operation_performed",
    }
)

#: May be dropped when the queue is full; the drop is counted and announced by a gap notice.
DROPPABLE_TYPES = frozenset(
    {"player_ready", "song_selected", "settings_changed", "message", "player_dropped", "player_resumed"}
)

EVENT_TYPES = CRITICAL_TYPES | DROPPABLE_TYPES


class Event(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One thing that happened in a room.

    Attributes:
        type: one of ``EVENT_TYPES``; ``gap`` for a notice that events were not delivered (then ``seq`` is 0).
        seq: counts from 1 in the room's epoch, in the order in which the state changed.
        timestamp: RFC 3339 with milliseconds, UTC.
        data: what a client needs to apply it to its copy of the state.
        conflated: how many older events of the same key this one replaced before they were delivered.
    """

    type: str
    seq: int
    timestamp: str
    data: dict[str, Any]
    conflated: int = 0

    @classmethod
    def from_dict(cls, message: Mapping[str, Any]) -> Event:
        """From a message as it came over the wire; what it has besides is ignored. KeyError: something is missing."""
        timestamp, conflated = message.get("timestamp", ""), message.get("conflated", 0)
        return cls(message["type"], message["seq"], timestamp, message["data"], conflated)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def encode_json(value: object) -> bytes:
    """JSON, UTF-8. Numbers that JSON does not have (NaN, infinities) become null."""
    return _encode(value)


#: How deep JSON may nest. Every decoder and encoder gives up at a depth of its own, Python's at about a thousand less
#: the stack in use: what one thread could read, another could not write, nor a client read.
MAX_DEPTH = 100

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_NO_BRACKETS = re.compile(r"[^\[\]{}]+")
_STEP = {"[": 1, "{": 1, "]": -1, "}": -1}


def too_deep(text: str, limit: int = MAX_DEPTH) -> bool:
    """Whether JSON (which is well-formed) nests more than ``limit`` deep."""
    if len(text) <= 2 * limit or text.count("[") + text.count("{") <= limit:
        return False
    brackets = _NO_BRACKETS.sub("", _STRING.sub("", text))
    return max(accumulate(map(_STEP.__getitem__, brackets))) > limit


def clean_data(data: object, what: str = "data") -> dict[str, Any]:
    """A deep copy of ``data`` made of plain JSON values only, so that it can be sent later and changed by nobody.

    As with ``json.dumps``, keys that are numbers become text.

    Raises:
        InvalidMessage: not a dict, something inside has no JSON form (a lone surrogate, a cycle), or it nests too deep.
    """
    if not isinstance(data, dict):
        raise InvalidMessage(f"{what} must be a dict (got {type(data).__name__})")
    try:
        encoded = _encode(data)
        copy = _decode(encoded)
    except (TypeError, ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise InvalidMessage(f"{what} has no JSON form: {error}") from None
    if too_deep(encoded.decode()):
        raise InvalidMessage(f"{what} nests more than {MAX_DEPTH} deep")
    return copy  # type: ignore[no-any-return]


_FRACTIONS = [f".{millisecond:03d}Z" for millisecond in range(1000)]
_last: tuple[int, str, str] = (-1, "", "")


def rfc3339(at: float) -> str:
    """``at`` (Unix seconds) as RFC 3339, UTC, milliseconds: ``2024-03-27T20:00:00.123Z``."""
    global _last  # a cache of the last answer and its second; a race between threads only costs formatting again
    milliseconds = int(at * 1000 + 0.01)  # the float nearest to a whole one may lie just below it
    known, text, start = _last
    if known != milliseconds:
        second = milliseconds // 1000
        if known // 1000 != second:
            start = datetime.fromtimestamp(second, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
        text = start + _FRACTIONS[milliseconds - second * 1000]
        _last = (milliseconds, text, start)
    return text


_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def parse_rfc3339(text: str) -> float:
    """Unix seconds of what :func:`rfc3339` wrote; writing them again gives the same text.

    Raises:
        TypeError, ValueError: it is something else.
    """
    if not isinstance(text, str):  # it comes from outside
        raise TypeError(f"a time is text (got {type(text).__name__})")
    milliseconds = (datetime.fromisoformat(text.replace("Z", "+00:00")) - _EPOCH) // timedelta(milliseconds=1)
    return milliseconds / 1000
