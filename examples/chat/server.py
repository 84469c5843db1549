"""A chat: rooms by address, the last messages for whoever comes later, "is typing", nothing lost with the network.

    python examples/chat/server.py

The whole chat is one row of a table. The messages are the room's own relay; what a newcomer is shown comes from the
room's history (the page asks for it with ``eventsAfter``), and who lost the network gets what it missed by itself.
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from werkzeug.utils import send_from_directory
from werkzeug.wrappers import Request, Response

from roomkit import Lifecycle, RoomConfig, RoomManager
from roomkit.server import Server
from roomkit.settings import Settings

CHAT = Lifecycle("chat", {"open": {"add_player": "open", "remove_player": "open", "close": "closed"}})

# "Is typing" is a message too, and stands in the history: it is long enough for both.
ROOM = RoomConfig(max_players=200, min_players=1, history_size=2000, max_lifetime=0, empty_ttl=3600)

HERE = Path(__file__).resolve().parent


@Request.application
def pages(request: Request) -> Response:
    """The page, and what it loads."""
    path = request.path.lstrip("/") or "index.html"
    folder = HERE.parent / "shared" if path.startswith("shared/") else HERE / "page"
    response = send_from_directory(folder, path.removeprefix("shared/"), request.environ)
    response.headers["Content-Security-Policy"] = "default-src 'self'; img-src data:"
    return response


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description="A chat.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=8000, help="port to listen on; 0: a free one (default: %(default)s)"
    )
    given = parser.parse_args()
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # before there is any thread; this one waits for them, below
    rooms = RoomManager(ROOM, lifecycle=CHAT, max_rooms=1000)
    # 4 KiB is a long message; a newcomer is sent up to 200 of them, which must fit into an outbox of 1 MiB.
    settings = Settings(host=given.host, port=given.port, max_message_size=4096)
    with Server(rooms, settings, application=pages) as server:
        print(f"chat on {server.url}", flush=True)
        signal.sigwait(ends)


if __name__ == "__main__":
    main()
