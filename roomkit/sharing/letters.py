"""What instances tell each other, as JSON: commands for a room's owner, its answers, and whose connection holds a seat.

A letter may get lost, with the connection that it was on; none comes twice by itself. So a command is sent again under
the same id until its answer is there, and what holds for longer is told again and again (:class:`Present`).

Everything is checked like a client's input before it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from roomkit.core import commands as c
from roomkit.core.events import MAX_DEPTH, too_deep
from roomkit.core.ids import check_id, check_name
from roomkit.core.state import check_song_id

# What a room holds may nest MAX_DEPTH deep, and stands deeper in here: an event's data in an event, in a list of them,
# in an answer's data, in a letter, in a list of letters.
_MAX_DEPTH = MAX_DEPTH + 10
_REASONS = frozenset({"left", "kicked", "banned", "expired"})

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Number = Annotated[int, msgspec.Meta(ge=0)]


class Letter(msgspec.Struct, frozen=True, omit_defaults=True):
    """What all have: whose it is, and which room it is about (none: about the instance)."""

    sender: Id
    room: str


class Ask(Letter, frozen=True, tag="ask"):
    """To the owner: carry this out, once for this ``id``, in the room of this ``epoch`` and not in one that was made
    anew under its name. ``number``: of the connection that comes with a Join or a Connect.
    """

    id: Id
    command: c.Command
    number: Number = 0
    epoch: str = ""


class Call(Letter, frozen=True, tag="call"):
    """To an instance, or a room's owner: something that is no command of a room (``what``), with its arguments."""

    id: Id
    what: Id
    data: dict[str, Any] = {}


class Done(Letter, frozen=True, tag="done"):
    """What was asked for is stored; its events are those from ``first`` to ``last``, or there are none and the room is
    at ``last``.
    """

    id: Id
    first: Number = 0
    last: Number = 0
    data: Any = None


class Refused(Letter, frozen=True, tag="refused"):
    """It was not carried out. ``elsewhere``: the room is not this instance's; ask its owner."""

    id: Id
    code: str = ""
    message: str = ""
    elsewhere: bool = False


class Gone(Letter, frozen=True, tag="gone"):
    """To the owner: a player's connection is lost."""

    player: Id
    number: Number


class Replaced(Letter, frozen=True, tag="replaced"):
    """To whom a connection is: a newer one has its seat."""

    player: Id
    number: Number


class Present(Letter, frozen=True, tag="present"):
    """To the owner, every now and then: whose connections are here. ``coming``: of those who are about to join;
    ``upto``: no connection has a higher number yet.
    """

    upto: Number
    players: dict[str, int] = {}
    coming: tuple[int, ...] = ()


Any_ = Ask | Call | Done | Refused | Gone | Replaced | Present

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[Any_]).decode


def encode(letters: Sequence[Any_]) -> bytes:
    """As one body."""
    return _encode(letters)


def decode(body: bytes) -> list[Any_]:
    """The letters of a body.

    Raises:
        ValueError: it is none that an instance wrote.
    """
    if too_deep(body.decode(), _MAX_DEPTH):
        raise ValueError("it nests too deep")
    letters = _decode(body)
    for letter in letters:
        _check(letter)
    return letters


def _check(letter: Any_) -> None:
    if letter.room or not isinstance(letter, Call | Done | Refused):
        check_id(letter.room, "a room id")
    if isinstance(letter, Gone | Replaced):
        check_id(letter.player, "a player id")
    elif isinstance(letter, Present):
        for player_id in letter.players:
            check_id(player_id, "a player id")
    elif isinstance(letter, Ask):
        command = letter.command
        who = getattr(command, "player_id", None)
        if who is not None:
            check_id(who, "a player id")
        if isinstance(command, c.Join | c.AddPlayer):
            check_name(command.name, command.player_id)
            if not 1 <= len(command.new_token) <= 256:
                raise ValueError("a seat's token is text of 1 to 256 characters")
        elif isinstance(command, c.RemovePlayer):
            if command.reason not in _REASONS:
                raise ValueError("nobody leaves for that reason")
        elif isinstance(command, c.UpdateSettings) and command.song:
            check_song_id(command.settings.get("song_id"))
        elif isinstance(command, c.Kick):
            check_id(command.target_id, "a player id")
        elif isinstance(command, c.Transfer):
            check_id(command.room_id, "a room id")
