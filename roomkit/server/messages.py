"""The messages a client may send, as types: what does not fit them is refused here, once, for everybody."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from roomkit.core.events import MAX_DEPTH, too_deep
from roomkit.core.state import MAX_SONG_ID_LENGTH
from roomkit.errors import InvalidMessage

MessageId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
PlayerId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.:-]{1,64}\Z")]
Key = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
ShortText = Annotated[str, msgspec.Meta(max_length=256)]


class _Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Nothing(_Data, frozen=True):
    pass


class ReadyData(_Data, frozen=True):
    ready: bool = True


class SongData(_Data, frozen=True):
    song_id: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_SONG_ID_LENGTH)]


class SettingsData(_Data, frozen=True):
    settings: dict[str, Any]


class FinishData(_Data, frozen=True):
    results: dict[str, Any] | None = None


class PerformData(_Data, frozen=True):
    operation: Key
    data: dict[str, Any] = {}


class KickData(_Data, frozen=True):
    player_id: PlayerId
    ban: bool = False


class LockData(_Data, frozen=True):
    locked: bool = True


class CloseData(_Data, frozen=True):
    reason: ShortText = "closed by the host"


class StateData(_Data, frozen=True):
    after: Annotated[int, msgspec.Meta(ge=0)] | None = None


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", kw_only=True):
    id: MessageId | None = None


class Ready(_Message, frozen=True, tag="ready"):
    """Set or clear the sender's ready flag."""

    data: ReadyData = ReadyData()


class SelectSong(_Message, frozen=True, tag="select_song"):
    """Choose the song; any seated player may."""

    data: SongData


class UpdateSettings(_Message, frozen=True, tag="update_settings"):
    """Merge into the shared settings, a null removes; any seated player may."""

    data: SettingsData


class StartGame(_Message, frozen=True, tag="start_game"):
    """Start; the host may."""

    data: Nothing = Nothing()


class FinishGame(_Message, frozen=True, tag="finish_game"):
    """End the game with its results; the host may."""

    data: FinishData = FinishData()


class Rematch(_Message, frozen=True, tag="rematch"):
    """Seat everybody in a new room, when finished; the host may."""

    data: Nothing = Nothing()


class Relay(_Message, frozen=True, tag="message"):
    """Relay `data` to all, the sender too. With `key` it may replace an older one of that key that still waits."""

    data: dict[str, Any]
    key: Key | None = None


class Perform(_Message, frozen=True, tag="perform"):
    """An operation of the room's own lifecycle."""

    data: PerformData


class Kick(_Message, frozen=True, tag="kick"):
    """Free somebody else's seat, with `ban` for good; the host may."""

    data: KickData


class Lock(_Message, frozen=True, tag="lock"):
    """Take no new player, or take them again; the host may."""

    data: LockData = LockData()


class Close(_Message, frozen=True, tag="close"):
    """Close the room; the host may."""

    data: CloseData = CloseData()


class Leave(_Message, frozen=True, tag="leave"):
    """Give up the seat; the server then closes with 1000."""

    data: Nothing = Nothing()


class State(_Message, frozen=True, tag="state"):
    """Ask for the state, or for the events after a number."""

    data: StateData = StateData()


class Ping(_Message, frozen=True, tag="ping"):
    """Ask for the server's time."""

    data: Nothing = Nothing()


ClientMessage = (
    Ready
    | SelectSong
    | UpdateSettings
    | StartGame
    | FinishGame
    | Rematch
    | Relay
    | Perform
    | Kick
    | Lock
    | Close
    | Leave
    | State
    | Ping
)

_decoder: msgspec.json.Decoder[ClientMessage] = msgspec.json.Decoder(ClientMessage)
_decode = _decoder.decode


TOO_DEEP = f"it nests more than {MAX_DEPTH} deep"


class _OnlyId(msgspec.Struct):
    id: MessageId | None = None


_decode_id = msgspec.json.Decoder(_OnlyId).decode


def decode_message(text: str) -> ClientMessage:
    """Read one message.

    Raises:
        InvalidMessage: not JSON, or not one of the declared types; with ``message_id`` set where one could be read.
    """
    try:
        message = _decode(text)
        if len(text) <= 2 * MAX_DEPTH or not too_deep(text):  # most are short
            return message
        sentence = TOO_DEEP
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        sentence = why_not(error)
    raise _refusal(text, sentence)  # not kept in a variable here: it would be in a cycle with this frame


def _refusal(text: str, sentence: str) -> InvalidMessage:
    refusal = InvalidMessage(sentence)
    try:
        refusal.message_id = _decode_id(text).id
    except (msgspec.DecodeError, RecursionError, ValueError):
        pass
    return refusal


def why_not(error: Exception) -> str:
    """What was wrong with JSON from outside, as a sentence; not the whole of it again."""
    return TOO_DEEP if isinstance(error, RecursionError) else str(error)[:200]
