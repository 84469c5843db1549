"""What the client tells: its errors, and the records that its callbacks and methods give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from roomkit.core.snapshot import RoomState
from roomkit.errors import RoomkitError


class ClientError(RoomkitError):
    """An operation without an answer: the base of the client's own errors.

    Attributes:
        maybe_done: it was sent, so the server may have done it; the state will show. False: it certainly was not done.
    """

    def __init__(self, message: str, maybe_done: bool = False) -> None:
        super().__init__(message)
        self.maybe_done = maybe_done


class Timeout(ClientError, TimeoutError):
    """No answer came in time. The connection stays as it is."""


class ConnectionClosed(ClientError, ConnectionError):
    """The connection was lost before the answer, or the client has ended (or was never started)."""


class BufferFull(ClientError):
    """Too many operations wait to be sent; this one was not taken."""


class WouldDeadlock(ClientError, RuntimeError):
    """A blocking call on the thread that reads the answers: in a done-callback of a future."""


class Welcome(msgspec.Struct, frozen=True):
    """What the server said first; see docs/protocol.md. ``time``: its clock, RFC 3339. Heartbeat times in seconds."""

    player_id: str
    token: str
    epoch: str
    seq: int
    recovered: bool | None
    state: RoomState
    time: str
    ping_interval: float = 0
    pong_timeout: float = 0

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Welcome:
        """From the message's data. KeyError, TypeError, ValueError: it is no welcome."""
        return cls(
            player_id=data["player_id"],
            token=data["token"],
            epoch=data["epoch"],
            seq=data["seq"],
            recovered=data["recovered"],
            state=RoomState.from_dict(data["state"]),
            time=data["time"],
            ping_interval=data.get("ping_interval", 0),
            pong_timeout=data.get("pong_timeout", 0),
        )

    def __repr__(self) -> str:  # the token is a secret and must not reach a log
        return (
            f"Welcome(player_id={self.player_id!r}, room={self.state.id!r}, seq={self.seq}, recovered={self.recovered})"
        )


class ConnectionChange(NamedTuple):
    """A change of ``client.connection``.

    ``idle``: before the start; ``connecting``: the first attempt or a retry is under way; ``open``: the welcome came;
    ``waiting``: lost, the next attempt (number ``attempt`` in a row) follows after ``delay`` seconds; ``closed``: ended
    for good. ``code`` and ``reason``: why it was lost or ended.
    """

    state: str
    code: int | None = None
    reason: str = ""
    attempt: int = 0
    delay: float = 0.0


class Closed(NamedTuple):
    """Why a client ended: the close code, its name (``connection_lost`` for 1005 and 1006) and the reason."""

    code: int
    name: str
    reason: str


class Notice(NamedTuple):
    """What is told to a ``'*'`` callback beside the room's events: ``type`` as for ``on``, and what that one gets."""

    type: str
    data: Any
