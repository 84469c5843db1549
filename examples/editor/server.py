"""A text editor for several: one document per room, edited at once, merged by Yjs (browsers) and pycrdt (here).

    pip install pycrdt && npm install --prefix examples/editor
    python examples/editor/server.py

Small changes travel as room messages. The server keeps a copy of each document and follows the room's events like
everybody else. Whoever comes in, lost messages, or has something large exchanges state vectors with that copy at
``POST /sync``: what either side lacks is sent, whatever the reason, and applying a change twice does no harm.
"""

from __future__ import annotations

import argparse
import base64
import json
import logging
import secrets
import signal
import threading
import weakref
from pathlib import Path
from typing import Any

from werkzeug.exceptions import BadRequest, Forbidden
from werkzeug.utils import send_from_directory
from werkzeug.wrappers import Request, Response

from roomkit import Event, Lifecycle, PlayerExists, Room, RoomConfig, RoomManager
from roomkit.server import Server
from roomkit.settings import Settings

try:
    import pycrdt
except ImportError:
    raise SystemExit("the editor needs pycrdt: pip install pycrdt") from None

log = logging.getLogger("editor")
HERE = Path(__file__).resolve().parent
EDITOR = Lifecycle("editor", {"open": {"add_player": "open", "remove_player": "open", "close": "closed"}})
ROOM = RoomConfig(max_players=50, min_players=1, history_size=500, max_lifetime=0, empty_ttl=86_400)


class Document:
    """The server's copy of a room's text. Lives as long as its room. Thread safety: full."""

    def __init__(self, room: Room) -> None:
        self._room = weakref.ref(room)
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._doc = pycrdt.Doc(allow_multithreading=True)
        self._doc.get("text", type=pycrdt.Text)
        self._seq = 0  # of the last event that the copy contains
        room.subscribe(self._on_event)

    def _on_event(self, event: Event) -> None:
        if event.type in ("message", "gap"):
            with self._lock:
                self._catch_up_locked()

    def _catch_up_locked(self) -> None:
        """Follow the room to this moment. From its history: a subscriber is told later, in its own time."""
        room = self._room()
        if room is None:
            return
        events = room.get_events(self._seq)
        if events is None:  # more happened than the history keeps: everybody brings what the copy lacks
            self._seq = room.get_state().seq
            room.send_message(None, {"sync": True}, key="sync")
            return
        for event in events:
            self._seq = event.seq
            if event.type == "message" and isinstance(event.data["data"].get("update"), str):
                self._apply_locked(event.data["data"]["update"], event.data["player_id"])

    def _apply_locked(self, update: str, player_id: str) -> bool:
        try:
            self._doc.apply_update(base64.b64decode(update, validate=True))
            return True
        except ValueError as error:  # the pages skip it as well, so all stay the same
            log.warning("left out a change by %s that is none: %.80s", player_id, error)
            return False

    def sync(self, room: Room, player_id: str, vector: str, update: str | None) -> dict[str, str]:
        """Take ``update``, and give what somebody with this state vector lacks, and the copy's own state vector.

        Raises:
            BadRequest: one of them is not what it should be; nothing changed.
        """
        with self._lock:
            self._catch_up_locked()  # the caller's welcome told of no event that is not in the copy now
            try:
                missing = self._doc.get_update(base64.b64decode(vector, validate=True))
            except ValueError:
                raise BadRequest("the state vector is none") from None
            if update is not None and not self._apply_locked(update, player_id):
                raise BadRequest("the update is none")
            answer = {"update": base64.b64encode(missing), "vector": base64.b64encode(self._doc.get_state())}
        if update is not None:
            room.send_message(None, {"sync": True}, key="sync")  # too large to relay: the others come and get it
        return {name: value.decode() for name, value in answer.items()}


class Documents:
    """Room -> document, and the web pages. Thread safety: full."""

    def __init__(self, rooms: RoomManager) -> None:
        self._rooms = rooms
        self._lock = threading.Lock()
        self._documents: weakref.WeakKeyDictionary[Room, Document] = weakref.WeakKeyDictionary()  # guarded by _lock

    def sync(self, request: Request) -> Response:
        """``{"room", "player_id", "token", "vector", "update"?}``, for those who have a seat in the room."""
        body: Any = request.get_json()
        names = ("room", "player_id", "token", "vector")
        if not isinstance(body, dict) or not all(isinstance(body.get(name), str) for name in names):
            raise BadRequest(f"the body must have {', '.join(names)}")
        update = body.get("update")
        if update is not None and not isinstance(update, str):
            raise BadRequest("the update must be text")
        room = self._rooms.find_room(body["room"])
        try:
            if room is None or room.get_state().get_player(body["player_id"]) is None:
                raise Forbidden("there is no such seat")
            room.add_player(body["player_id"], token=body["token"])  # changes nothing for who shows the seat's token
        except PlayerExists:
            raise Forbidden("the seat is somebody else's") from None
        with self._lock:
            document = self._documents.get(room)
            if document is None:
                document = self._documents[room] = Document(room)
        answer = document.sync(room, body["player_id"], body["vector"], update)
        return Response(json.dumps(answer), content_type="application/json")

    @Request.application
    def pages(self, request: Request) -> Response:
        """The page, what it loads (Yjs from node_modules), and ``POST /sync``."""
        path = request.path.lstrip("/")
        if path == "sync" and request.method == "POST":
            return self.sync(request)
        if not path:
            return self._index()
        top, _, rest = path.partition("/")
        folder = {"shared": HERE.parent / "shared", "modules": HERE / "node_modules"}.get(top)
        if folder is None:
            return send_from_directory(HERE / "page", path, request.environ)
        return send_from_directory(folder, rest, request.environ)

    def _index(self) -> Response:
        """The page with its import map, which must stand in the page itself: the nonce says that it is ours."""
        nonce = secrets.token_urlsafe(16)
        page = (HERE / "page" / "index.html").read_text(encoding="utf-8")
        page = page.replace("NONCE", nonce).replace("IMPORTS", json.dumps({"imports": import_map()}))
        policy = f"default-src 'self'; img-src data:; script-src 'self' 'nonce-{nonce}'"
        return Response(page, content_type="text/html; charset=utf-8", headers={"Content-Security-Policy": policy})


def import_map() -> dict[str, str]:
    """What `import ... from 'yjs'` means in the page: the browsers' files that each package in node_modules exports."""
    found = {}
    for package in ("yjs", "lib0", "isomorphic.js"):
        described = json.loads((HERE / "node_modules" / package / "package.json").read_text(encoding="utf-8"))
        for name, target in described["exports"].items():
            while isinstance(target, dict):
                target = next((target[key] for key in ("browser", "import", "default") if key in target), None)
            if target is not None and target.endswith((".js", ".mjs")):
                found[package + name[1:]] = f"/modules/{package}{target[1:]}"
    return found


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description="A text editor for several.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=8000, help="port to listen on; 0: a free one (default: %(default)s)"
    )
    given = parser.parse_args()
    if not (HERE / "node_modules" / "yjs").is_dir():
        raise SystemExit(f"the page needs Yjs: npm install --prefix {HERE}")
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # before there is any thread; this one waits for them, below
    rooms = RoomManager(ROOM, lifecycle=EDITOR, max_rooms=1000)
    # The largest message, and body of POST /sync: a long text at once. An outbox has to hold some of them.
    settings = Settings(host=given.host, port=given.port, max_message_size=1_000_000, outbox_bytes=4_000_000)
    with Server(rooms, settings, application=Documents(rooms).pages) as server:
        print(f"editor on {server.url}", flush=True)
        signal.sigwait(ends)


if __name__ == "__main__":
    main()
