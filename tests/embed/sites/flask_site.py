"""A Flask site with rooms: python flask_site.py werkzeug, or gunicorn flask_site:site."""

from __future__ import annotations

import common
from flask import Flask, request
from werkzeug.serving import make_server

site = Flask(__name__)
site.wsgi_app = rooms = common.rooms_app(site.wsgi_app)  # type: ignore[method-assign]


@site.get("/hello")
def hello() -> str:
    """A page of the site's own."""
    return "hello"


@site.get("/insight")
def insight() -> dict[str, object]:
    """What a test wants to know."""
    return common.insight()


@site.route("/live", websocket=True)
def live() -> object:
    """A WebSocket behind a view, which knows who it is."""
    player_id = request.headers.get("X-View")
    return rooms.websocket(player_id) if player_id else ("who are you?", 401)


if __name__ == "__main__":
    common.end_on_sigterm()
    tls = (f"{common.TLS}/cert.pem", f"{common.TLS}/key.pem") if common.TLS else None
    server = make_server("127.0.0.1", 0, site, threaded=True, ssl_context=tls)
    print(f"http://127.0.0.1:{server.server_port}")
    server.serve_forever()
