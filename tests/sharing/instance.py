"""An instance as a process: a server whose rooms are shared. ``python instance.py --port 0 URL PREFIX TTL``."""

from __future__ import annotations

import sys

from roomkit import RoomConfig, RoomManager
from roomkit.backends.redis import RedisBackend
from roomkit.log import configure_logging
from roomkit.server import Server
from roomkit.server.process import Signals
from roomkit.settings import Settings


def main() -> int:
    """Serve until a signal comes; 0 when all was handed over in time."""
    url, prefix, ttl = sys.argv[3:]
    configure_logging("info", False)
    backend = RedisBackend(url, prefix=prefix, lease_ttl=float(ttl), log_size=1_000_000)
    config = RoomConfig(max_players=8, history_size=100_000, reconnect_grace=60.0)
    server = Server(RoomManager(config, backend=backend), Settings(port=0, drain_timeout=5.0, close_timeout=0.3))
    with Signals() as signals:
        server.start()
        print(server.url, flush=True)
        signals.wait()
        ended = server.stop()
    backend.close()
    return 0 if ended else 1


if __name__ == "__main__":
    sys.exit(main())
