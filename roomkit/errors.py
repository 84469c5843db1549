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
    ├── BackendUnavailable     the store that instances share did not answer
    ├── InvalidId              (also ValueError) an id that does not fit the pattern
    ├── InvalidMessage         (also ValueError) input that does not fit its declared type
    ├── InvalidConfig          (also ValueError) a bound that makes no sense
    ├── InvalidLifecycle       (also ValueError) a transition table with a fault
    ├── InvalidRecord          (also ValueError) what a backend stores is not what roomkit wrote there
    ├── LockUpgradeError       (also RuntimeError) the write lock was asked for by a thread that reads
    └── UsedAfterFork          (also RuntimeError) the threads of this manager stayed behind in the parent process

Whatever is raised, nothing was changed (but see BackendUnavailable, which only backends raise). ``code`` is the name in
snake case: stable, sent to clients, never translated.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_BY_CODE: dict[str, type[RoomkitError]] = {}


class RoomkitError(Exception):
    """The base of all of them. ``code`` is stable; the text is for people."""

    code: str = "roomkit_error"

    def __init_subclass__(cls) -> None:
        cls.code = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        _BY_CODE.setdefault(cls.code, cls)


class InvalidTransition(RoomkitError):
    """The room's status does not allow the operation; the room is as it was.

    The attributes are empty where the error came over the wire, which carries the code and the sentence only.
    """

    room_id = status = operation = ""

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


class BackendUnavailable(RoomkitError):
    """The store that instances share did not answer in time. What was asked of it may have happened or not; asking for
    the same again acts once.
    """


class InvalidId(RoomkitError, ValueError):
    """An identifier that is not 1 to 64 of ``A-Za-z0-9_.:-``."""


class InvalidMessage(RoomkitError, ValueError):
    """Input that is not what its declared type says. ``message_id``: of the client's message, where it had one."""

    message_id: str | None = None


class InvalidConfig(RoomkitError, ValueError):
    """A configuration value that makes no sense."""


class InvalidLifecycle(RoomkitError, ValueError):
    """A transition table with a fault, which the text names."""


class InvalidRecord(RoomkitError, ValueError):
    """What a backend stores is not what roomkit wrote there; the text says what is wrong with it."""


class LockUpgradeError(RoomkitError, RuntimeError):
    """A thread that holds the room's lock asked for it in a way that could never be granted (the upgrade trap)."""


class UsedAfterFork(RoomkitError, RuntimeError):
    """The manager had threads when the process forked; they exist in the parent only, and its locks may be held."""


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

#: The first of a code is what :func:`error_for_close` makes of it.
_CLOSE_FOR: dict[type[RoomkitError], int] = {
    BadToken: 4501,
    PlayerExists: 4501,
    BadPassword: 4502,
    PlayerBanned: 4503,
    RoomNotFound: 4504,
    RoomFull: 4505,
    RoomLocked: 4506,
    InvalidMessage: 4507,
    InvalidId: 4507,
    Unauthorized: 4508,
    LimitExceeded: 4529,
    RoomBusy: 4013,
    BackendUnavailable: 4013,
    ShuttingDown: 1012,
    InvalidTransition: 4500,
    OperationRefused: 4500,
}


def close_code_for(error: RoomkitError) -> int:
    """The close code that tells a client that could not join why."""
    return _CLOSE_FOR.get(type(error), 4500)


# The way back: what a client makes of codes.

_FOR_CLOSE = {code: kind for kind, code in reversed(_CLOSE_FOR.items())}


def error_for(code: str, message: str) -> RoomkitError:
    """The exception that a server told of: of the class with this ``code``, or a plain RoomkitError that has it."""
    kind = _BY_CODE.get(code, RoomkitError)
    error = kind.__new__(kind, message)  # without __init__, which may ask for what only the server knows
    error.args = (message,)
    error.code = code
    return error


def error_for_close(code: int, reason: str) -> RoomkitError | None:
    """Why a server did not let this client in, from its close code; None: the code tells of something else."""
    kind = _FOR_CLOSE.get(code)
    return None if kind is None else error_for(kind.code, reason)


#: What a WebSocket reports when no close frame came (RFC 6455, section 7.4.1).
NO_STATUS, LOST = 1005, 1006


def should_come_back(code: int) -> bool:
    """Whether a connection closed with this code is to be resumed; for unknown codes their range decides."""
    known = CLOSE_CODES.get(code)
    return known.come_back if known is not None else code in (NO_STATUS, LOST) or 4000 <= code < 4500


def close_name(code: int) -> str:
    """The code's name; ``connection_lost`` or ``unknown`` for one that is not in the table."""
    known = CLOSE_CODES.get(code)
    return known.name if known is not None else "connection_lost" if should_come_back(code) else "unknown"
