"""roomkit: live rooms on threads. The public names; everything else may move."""

from roomkit._version import __version__
from roomkit.core.config import RoomConfig
from roomkit.core.events import Event
from roomkit.core.lifecycle import GAME, Lifecycle, Operation, RoomStatus
from roomkit.core.snapshot import Player, RoomState
from roomkit.delivery import Batch, Connection
from roomkit.errors import (
    CLOSE_CODES,
    BackendUnavailable,
    BadPassword,
    BadToken,
    InvalidConfig,
    InvalidId,
    InvalidLifecycle,
    InvalidMessage,
    InvalidRecord,
    InvalidTransition,
    LimitExceeded,
    LockUpgradeError,
    NotHost,
    OperationRefused,
    PlayerBanned,
    PlayerExists,
    PlayerNotFound,
    RoomBusy,
    RoomExists,
    RoomFull,
    RoomkitError,
    RoomLocked,
    RoomNotFound,
    ShuttingDown,
    Unauthorized,
    UsedAfterFork,
)
from roomkit.listing import RoomPage
from roomkit.manager import RoomManager
from roomkit.room import Joined, Room
from roomkit.runtime import Pressure

__all__ = [
    "CLOSE_CODES",
    "GAME",
    "BackendUnavailable",
    "BadPassword",
    "BadToken",
    "Batch",
    "Connection",
    "Event",
    "InvalidConfig",
    "InvalidId",
    "InvalidLifecycle",
    "InvalidMessage",
    "InvalidRecord",
    "InvalidTransition",
    "Joined",
    "Lifecycle",
    "LimitExceeded",
    "LockUpgradeError",
    "NotHost",
    "Operation",
    "OperationRefused",
    "Player",
    "PlayerBanned",
    "PlayerExists",
    "PlayerNotFound",
    "Pressure",
    "Room",
    "RoomBusy",
    "RoomConfig",
    "RoomExists",
    "RoomFull",
    "RoomLocked",
    "RoomManager",
    "RoomNotFound",
    "RoomPage",
    "RoomState",
    "RoomStatus",
    "RoomkitError",
    "ShuttingDown",
    "Unauthorized",
    "UsedAfterFork",
    "__version__",
]
