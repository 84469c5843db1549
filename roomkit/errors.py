"""Every exception that roomkit raises on purpose, and the WebSocket close codes.

::

    RoomkitError
    ├── InvalidTransition      the room's status does not allow the operation
    ├── OperationRefused       a lifecycle's own check said no
    ├── RoomFull               every seat is taken
    ├── RoomLocked             the host closed the door to new players
    ├── RoomBusy               the room's queue or lock had no place in time; try again
    ├── RoomExists             the id is in use
    ├── RoomNotFound           no room has this id
    ├── PlayerExists           the seat is held by somebody else
    ├── PlayerNotFound         nobody with this id is seated
    ├── PlayerBanned           this player was banned from the room
    ├── NotHost                only the host may do this
    ├── BadToken               the seat's token is missing or wrong
    ├── BadPassword            the room's password is missing or wrong
    ├── Unauthorized           the server's authenticate hook refused
    ├── LimitExceeded          a configured limit (rooms, rooms per owner, connections, rate)
    ├── ShuttingDown           the manager admits nothing more
    ├── InvalidId              (also ValueError) an id that does not fit the pattern
    ├── InvalidMessage         (also ValueError) input that does not fit its declared type
    ├── InvalidConfig          (also ValueError) a bound that makes no sense
    ├── InvalidLifecycle       (also ValueError) a transition table with a fault
    └── LockUpgradeError       (also RuntimeError) the write lock was asked for by a thread that reads

Whatever is raised, nothing was changed. ``code`` is the name in snake case: stable, sent to clients, never translated.
"""

from __future__ import annotations

import re
from typing import ClassVar, NamedTuple


class RoomkitError(Exception):
    """The base of all of them. ``code`` is stable; the text is for people."""

    code: ClassVar[str] = "roomkit_error"

    def __init_subclass__(cls) -> None:
        cls.code = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


class InvalidTransition(RoomkitError):
    """The room's status does not allow the operation; the room is as it was."""

    def __init__(self, room_id: str, status: str, operation: str) -> None:
        super().__init__(f"room {room_id!r} is {status}: {operation} is not allowed")
        self.room_id = room_id
        self.status = status
        self.operation = operation


class OperationRefused(RoomkitError):
    """A lifecycle's own check refused the operation. Raise it from an ``Operation``'s ``check``."""


class RoomFull(RoomkitError):
    """Every seat is taken."""


class RoomLocked(RoomkitError):
    """The room takes no new player; those who are seated may come back."""


class RoomBusy(RoomkitError):
    """The room could not take the operation within ``busy_timeout`` seconds; trying again is safe."""


class RoomExists(RoomkitError):
    """The id is in use."""


class RoomNotFound(RoomkitError):
    """No room has this id (any more)."""


class PlayerExists(RoomkitError):
    """The seat is held, and the caller did not show its token."""


class PlayerNotFound(RoomkitError):
    """Nobody with this id is seated in the room."""


class PlayerBanned(RoomkitError):
    """This player was banned from the room."""


class NotHost(RoomkitError):
    """Only the host (or server code, which passes no player) may do this."""


class BadToken(RoomkitError):
    """The seat is held and the token is missing or wrong."""


class BadPassword(RoomkitError):
    """The room has a password, and it is missing or wrong."""


class Unauthorized(RoomkitError):
    """The server's ``authenticate`` hook refused. Raise it from there with a sentence for the client."""


class LimitExceeded(RoomkitError):
    """A configured limit was reached."""


class ShuttingDown(RoomkitError):
    """The manager is shutting down and admits nothing more."""


class InvalidId(RoomkitError, ValueError):
    """An identifier that is not 1 to 64 of ``A-Za-z0-9_.:-``."""


class InvalidMessage(RoomkitError, ValueError):
    """Input that is not what its declared type says. ``message_id``: of the client's message, where it had one."""

    message_id: str | None = None


class InvalidConfig(RoomkitError, ValueError):
    """A configuration value that makes no sense."""


class InvalidLifecycle(RoomkitError, ValueError):
    """A transition table with a fault, which the text names."""


class LockUpgradeError(RoomkitError, RuntimeError):
    """A thread that holds the room's lock asked for it in a way that could never be granted (the upgrade trap)."""


class CloseCode(NamedTuple):
    """A WebSocket close code: its name, and whether a client should come back and resume."""

    code: int
    name: str
    come_back: bool


_CODES = (
    CloseCode(1000, "normal", False),
    CloseCode(1001, "going_away", True),
    CloseCode(1002, "protocol_error", False),
    CloseCode(1003, "unsupported_data", False),
    CloseCode(1007, "invalid_payload", False),
    CloseCode(1008, "policy_violation", False),
    CloseCode(1009, "too_big", False),
    CloseCode(1011, "internal_error", True),
    CloseCode(1012, "service_restart", True),
    CloseCode(4001, "heartbeat_lost", True),
    CloseCode(4008, "too_slow", True),
    CloseCode(4013, "busy", True),
    CloseCode(4500, "refused", False),
    CloseCode(4501, "bad_token", False),
    CloseCode(4502, "bad_password", False),
    CloseCode(4503, "kicked", False),
    CloseCode(4504, "room_not_found", False),
    CloseCode(4505, "room_full", False),
    CloseCode(4506, "room_locked", False),
    CloseCode(4507, "invalid_request", False),
    CloseCode(4508, "unauthorized", False),
    CloseCode(4509, "replaced", False),
    CloseCode(4510, "room_closed", False),
    CloseCode(4529, "over_limit", False),
)

#: Code to :class:`CloseCode`. 4000 to 4499 say *come back*, 4500 to 4999 say *stay away*; the RFC's where they fit
#: (RFC 6455, section 7.4). The JavaScript client has the same table; a test compares them.
CLOSE_CODES: dict[int, CloseCode] = {entry.code: entry for entry in _CODES}

#: Name to number: ``CLOSE["too_slow"] == 4008``.
CLOSE: dict[str, int] = {entry.name: entry.code for entry in _CODES}

_CLOSE_FOR: dict[type[RoomkitError], int] = {
    BadToken: 4501,
    PlayerExists: 4501,
    BadPassword: 4502,
    PlayerBanned: 4503,
    RoomNotFound: 4504,
    RoomFull: 4505,
    RoomLocked: 4506,
    InvalidId: 4507,
    InvalidMessage: 4507,
    Unauthorized: 4508,
    LimitExceeded: 4529,
    RoomBusy: 4013,
    ShuttingDown: 1012,
    InvalidTransition: 4500,
    OperationRefused: 4500,
}


def close_code_for(error: RoomkitError) -> int:
    """The close code that tells a client that could not join why."""
    return _CLOSE_FOR.get(type(error), 4500)
