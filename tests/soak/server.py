"""The server under test, in a process of its own, which looks at itself when it is asked to.

Speaks by lines: prints its port; on ``look`` an :class:`Inventory` as JSON; on ``quick`` the same without collecting
garbage and without what takes long; ends at the end of its standard input.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import threading
import tracemalloc
from collections import Counter
from typing import Any

from roomkit.server import Server
from roomkit.server.garbage import ShortCollections
from roomkit.settings import Settings

from .churn import GRACE

#: Short times, so that what should go is gone soon.
SETTINGS = Settings(
    port=0,
    max_connections=0,
    max_connections_per_address=0,
    max_rooms=0,
    reconnect_grace=GRACE,
    empty_ttl=2,
    closed_ttl=1,
    finished_ttl=10,
    max_lifetime=60,
    write_timeout=1,
    handshake_timeout=5,
    ping_interval=4,
    pong_timeout=8,
    queue_size=20,
    history_size=64,
    outbox_messages=64,
    message_rate=200,
    message_burst=400,
    log_level="error",
)

#: What is shown of the server's own counters.
COUNTERS = (
    "connections_accepted",
    "websockets_opened",
    "refused_joins",
    "refused_operations",
    "dropped_events",
    "slow_connections",
    "heartbeats_lost",
    "limited",
    "protocol_errors",
    "session_errors",
    "http_errors",
    "hook_errors",
    "delivery_errors",
    "connection_errors",
    "rooms_created",
    "rooms_expired",
)


def look(server: Server, *, thoroughly: bool) -> dict[str, Any]:
    """What there is in this process."""
    rooms, listener = server.rooms, server.listener
    found: dict[str, Any] = {
        "rooms": len(rooms),
        "room timers": len(rooms._heap),
        "connections": listener._connections,
        "websockets": listener._websockets,
        "addresses": len(listener._per_address),
        "connection timers": sum(len(reactor._deadlines) + len(reactor._round_of) for reactor in listener.reactors),
        "handlers": sum(len(reactor._handlers) for reactor in listener.reactors),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "files": len(os.listdir("/proc/self/fd")),
    }
    if thoroughly:
        gc.unfreeze()
        gc.set_debug(gc.DEBUG_SAVEALL)
        found["garbage in cycles"] = gc.collect()
        gc.set_debug(0)
        found["kinds in cycles"] = Counter(type(thing).__qualname__ for thing in gc.garbage)
        gc.garbage.clear()
        gc.collect()
        gc.unfreeze()  # what this collection has set aside: get_objects() would leave it out
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if malloc_trim is not None:
            malloc_trim(0)  # what the C library keeps for later is not ours
        found["objects"] = Counter(type(thing).__qualname__ for thing in gc.get_objects())
        found["traced bytes"] = tracemalloc.get_traced_memory()[0]
        found["blocks"] = sys.getallocatedblocks()
        with open("/proc/self/statm") as statm:
            found["resident bytes"] = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        found["counters"] = {name: sum(server.tally.by_label(name).values()) for name in COUNTERS}
    return found


def main() -> None:
    """Serve until standard input ends."""
    tracemalloc.start()
    with ShortCollections(), Server(settings=SETTINGS) as server:
        print(server.listener.address[1], flush=True)
        for line in sys.stdin:
            print(json.dumps(look(server, thoroughly=line.strip() == "look")), flush=True)


if __name__ == "__main__":
    main()
