"""An instance of roomkit as a process: ``python -m benchmarks.instance URL``; ``memory``: one that shares nothing.

As ``roomkit serve`` does, it prints its address, keeps the garbage collector's pauses short, has its threads wait for
each other, and serves until a signal comes. All limits on one client are off: the load is one client with hundreds of
players.
"""

from __future__ import annotations

import sys

from roomkit import RoomManager
from roomkit.backends.redis import RedisBackend
from roomkit.log import configure_logging
from roomkit.server import Server
from roomkit.server.garbage import ShortCollections
from roomkit.server.process import Signals
from roomkit.server.scheduling import PatientThreads
from roomkit.settings import Settings

MEMORY = "memory"


def main() -> int:
    """The command; 0 when all was handed over in time."""
    (url,) = sys.argv[1:]
    configure_logging("warning", False)
    backend = None if url == MEMORY else RedisBackend(url)
    settings = Settings(
        port=0,
        max_connections=0,
        max_connections_per_address=0,
        message_rate=0,
        drain_timeout=1.0,
        close_timeout=0.3,
    )
    server = Server(RoomManager(backend=backend), settings)
    with Signals() as signals, ShortCollections(), PatientThreads():
        server.start()
        print(server.url, flush=True)
        signals.wait()
        ended = server.stop()
    if backend is not None:
        backend.close()
    return 0 if ended else 1


if __name__ == "__main__":
    sys.exit(main())
