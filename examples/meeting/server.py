"""A meeting room: the browsers see and hear each other directly, roomkit carries what they need to find each other.

    python examples/meeting/server.py
    python examples/meeting/server.py --ice-server stun:stun.example.org

Offers, answers and candidates (WebRTC signalling) are room messages with a ``to``; the server looks into none of them.
Pictures and sound never pass through it. Cameras need https, or this machine's own address. Between networks the
browsers need a STUN server, behind strict firewalls a TURN server as well: name yours, none is built in.
"""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

from werkzeug.utils import send_from_directory
from werkzeug.wrappers import Request, Response

from roomkit import Lifecycle, RoomConfig, RoomManager
from roomkit.server import Server
from roomkit.settings import Settings

MEETING = Lifecycle("meeting", {"open": {"add_player": "open", "remove_player": "open", "close": "closed"}})

# Everybody sends to everybody: more than six are too much for a home's upload. A lost network is no reason to leave,
# but nobody looks at an empty chair for five minutes.
ROOM = RoomConfig(max_players=6, min_players=1, reconnect_grace=60, max_lifetime=0)

HERE = Path(__file__).resolve().parent


def pages(ice_servers: list[str]) -> Callable[..., Iterable[bytes]]:
    """The page, what it loads, and ``GET /ice``: which STUN and TURN servers the browsers may use."""

    @Request.application
    def answer(request: Request) -> Response:
        if request.path == "/ice":
            return Response(json.dumps([{"urls": url} for url in ice_servers]), content_type="application/json")
        path = request.path.lstrip("/") or "index.html"
        folder = HERE.parent / "shared" if path.startswith("shared/") else HERE / "page"
        response = send_from_directory(folder, path.removeprefix("shared/"), request.environ)
        response.headers["Content-Security-Policy"] = "default-src 'self'; img-src data:"
        return response

    return answer


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description="A meeting room.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=8000, help="port to listen on; 0: a free one (default: %(default)s)"
    )
    parser.add_argument("--ice-server", action="append", default=[], metavar="URL", help="stun: or turn:; repeatable")
    given = parser.parse_args()
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # before there is any thread; this one waits for them, below
    rooms = RoomManager(ROOM, lifecycle=MEETING, max_rooms=1000)
    settings = Settings(host=given.host, port=given.port)
    with Server(rooms, settings, application=pages(given.ice_server)) as server:
        print(f"meeting on {server.url}", flush=True)
        signal.sigwait(ends)


if __name__ == "__main__":
    main()
