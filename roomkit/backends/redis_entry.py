"""An entry of a room's log in Redis, one for each commit: written, and read as what anybody may have written.

``{"epoch": ..., "first": ..., "events": [...]}``, and ``"acted": [["id", 5, 6], ...]`` where commands of other
instances caused some of the events.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec

from roomkit.backends.base import Acted, Commit, Events
from roomkit.errors import InvalidRecord

_Seq = Annotated[int, msgspec.Meta(ge=1)]
_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class _Entry(msgspec.Struct, frozen=True):
    epoch: str
    first: _Seq
    events: tuple[msgspec.Raw, ...]
    acted: tuple[tuple[_Id, _Seq, _Seq], ...] = ()


_decode = msgspec.json.Decoder(_Entry).decode


class Entry(NamedTuple):
    """A commit's epoch and its events."""

    epoch: str
    events: Events


def first_seq(step: Commit) -> int:
    """Of a commit's events; if it has none: that of the next ones."""
    return step.position.seq - len(step.events) + 1


def write_entry(step: Commit) -> bytes:
    """The entry of a commit."""
    acted = b',"acted":%b' % msgspec.json.encode(tuple(step.acted)) if step.acted else b""
    return b'{"epoch":"%b","first":%d,"events":[%b]%b}' % (
        step.position.epoch.encode(),
        first_seq(step),
        b",".join(step.events),
        acted,
    )


def read_entry(text: bytes) -> Entry:
    """What :func:`write_entry` wrote.

    Raises:
        InvalidRecord: it did not write this.
    """
    try:
        entry = _decode(text)
    except (msgspec.DecodeError, TypeError, RecursionError) as error:
        raise InvalidRecord(f"what is in the log is no commit: {error}") from None
    last = entry.first + len(entry.events) - 1
    if not all(entry.first <= one[1] <= one[2] <= last for one in entry.acted):
        raise InvalidRecord("what is in the log is no commit: a command caused events that are not in it")
    acted = tuple(Acted(*one) for one in entry.acted)
    return Entry(entry.epoch, Events(entry.first, tuple(map(bytes, entry.events)), acted))
