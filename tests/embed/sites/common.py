"""What the Flask and the Django site have in common. Options come as SITE_* in the environment."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

from roomkit import RoomConfig, RoomManager, Unauthorized
from roomkit.embed import RoomsApp
from roomkit.server import UpgradeRequest
from roomkit.settings import Settings

HANDOVER = os.environ.get("SITE_HANDOVER") != "False"
TLS = os.environ.get("SITE_TLS")  # a directory with cert.pem and key.pem

rooms = RoomManager(RoomConfig(max_players=400))
rooms.create_room("room")  # when the module is imported: with gunicorn --preload, before the fork

if "SITE_REAPER" in os.environ:
    rooms.start_cleanup()


def who(request: UpgradeRequest) -> str | None:
    """The hook: a header says what it does."""
    if "x-refuse" in request.headers:
        raise Unauthorized(f"not you, at {request.path}")
    return request.headers.get("x-player")


def rooms_app(application: Any) -> RoomsApp:
    """The site's application with rooms."""
    settings = Settings(max_connections_per_address=0, close_timeout=0.3, drain_timeout=3, max_players=400)
    return RoomsApp(rooms, application, settings=settings, authenticate=who, handover=HANDOVER)


def insight() -> dict[str, Any]:
    """For the page /insight."""
    return {"pid": os.getpid(), "threads": sorted(thread.name for thread in threading.enumerate())}


def end_on_sigterm() -> None:
    """A development server just dies of SIGTERM; a program that wants to end well says so."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
