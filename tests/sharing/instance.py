"""An instance as a process: a server whose rooms are shared. ``python instance.py --port 0 URL PREFIX TTL``.

``--via HOST:PORT=PORT``: reach that node of the store through this port of 127.0.0.1, where a proxy of the test's is.
``--mutant NAME``: with code that is wrong on purpose (``mutants.py``).
"""

from __future__ import annotations

import argparse
import sys
from typing import Any


def main() -> int:
    """Serve until a signal comes; 0 when all was handed over in time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("prefix")
    parser.add_argument("ttl", type=float)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--via", action="append", default=[])
    parser.add_argument("--mutant")
    options = parser.parse_args()
    if options.mutant:
        from tests.sharing.mutants import infect

        infect(options.mutant)
    if options.via:
        detour(dict(via.split("=") for via in options.via))
    return serve(options)


def detour(ways: dict[str, str]) -> None:
    """Have the driver go to a node of the store by another port."""
    from redis.connection import Connection

    connect = Connection._connect

    def by_proxy(self: Any) -> Any:
        host, port = self.host, self.port
        way = ways.get(f"{host}:{port}")
        if way is not None:
            self.host, self.port = "127.0.0.1", int(way)
        try:
            return connect(self)
        finally:
            self.host, self.port = host, port

    Connection._connect = by_proxy  # type: ignore[method-assign]


def serve(options: argparse.Namespace) -> int:
    """After the code was made wrong, if it is to be: nothing of roomkit is imported before."""
    from roomkit import RoomConfig, RoomManager
    from roomkit.backends.redis import RedisBackend
    from roomkit.log import configure_logging
    from roomkit.server import Server
    from roomkit.server.process import Signals
    from roomkit.settings import Settings

    configure_logging("info", False)
    backend = RedisBackend(options.url, prefix=options.prefix, lease_ttl=options.ttl, log_size=1_000_000)
    config = RoomConfig(
        max_players=8, history_size=100_000, queue_size=10_000, reconnect_grace=60.0, reservation_ttl=2.0
    )
    settings = Settings(port=options.port, drain_timeout=5.0, close_timeout=0.3)
    server = Server(RoomManager(config, backend=backend), settings)
    with Signals() as signals:
        server.start()
        print(server.url, flush=True)
        signals.wait()
        ended = server.stop()
    backend.close()
    return 0 if ended else 1


if __name__ == "__main__":
    sys.exit(main())
