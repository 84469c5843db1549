"""A client of the room server: blocking calls and callbacks, reconnecting, resuming, a copy of the room's state.

The same folder has ``roomkit.js``, which does the same in the browser. See docs/python-client.md.
"""

from roomkit.client._client import Events, RoomClient
from roomkit.client._operations import Operations
from roomkit.client._types import (
    BufferFull,
    ClientError,
    Closed,
    ConnectionChange,
    ConnectionClosed,
    Notice,
    Timeout,
    Welcome,
    WouldDeadlock,
)

__all__ = [
    "BufferFull",
    "ClientError",
    "Closed",
    "ConnectionChange",
    "ConnectionClosed",
    "Events",
    "Notice",
    "Operations",
    "RoomClient",
    "Timeout",
    "Welcome",
    "WouldDeadlock",
]
