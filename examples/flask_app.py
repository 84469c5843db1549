"""A chat inside a Flask site: its login says who a player is, its port and its server serve the rooms.

    python examples/flask_app.py --port 5000
    gunicorn --workers 1 -k gthread --threads 4 --chdir examples flask_app:app

A WebSocket costs no thread of either server: after the handshake it is on roomkit's I/O thread (docs/embedding.md).
"""

from __future__ import annotations

import argparse
import secrets
import signal
import sys

from flask import Flask, redirect, request, session
from werkzeug.serving import make_server
from werkzeug.wrappers import Response

from roomkit import RoomConfig, RoomManager
from roomkit.embed import RoomsApp

PAGE = """<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Chat</title>
<style>body { font: 1rem/1.5 sans-serif; max-width: 40rem; margin: 2rem auto; padding: 0 1rem }
input, button { font: inherit; padding: .4rem .6rem } input { width: 70% }</style>
<h1>Lobby</h1><p id="who" role="status">connecting</p><ol id="log"></ol>
<form><input id="text" aria-label="Message" autocomplete="off" autofocus> <button>Send</button></form>
<script type="module">
  import { RoomClient } from '/client/roomkit.js';
  // Who I am, the server knows; my seat's token is kept, so that I can reload the page.
  const room = new RoomClient({ roomId: 'lobby', playerId: 'me', storage: localStorage });
  const show = () => { document.querySelector('#who').textContent =
    'here: ' + room.state.players.filter((p) => p.connected).map((p) => p.id).join(', '); };
  for (const type of ['player_joined', 'player_left', 'player_dropped', 'player_resumed']) room.on(type, show);
  room.onMessage = ({ player_id, data }) => { const line = document.createElement('li');
    line.textContent = `${player_id}: ${data.text}`; document.querySelector('#log').append(line); };
  document.querySelector('form').addEventListener('submit', (event) => { event.preventDefault();
    const input = document.querySelector('#text');
    if (input.value) room.sendMessage({ text: input.value });
    input.value = ''; });
  await room.connect();
  show();
</script>"""

LOGIN = """<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Chat</title>
<form method="post" action="/login"><label>Your name, a word: <input name="name" pattern="[A-Za-z0-9]{1,20}" required
autofocus></label> <button>Come in</button></form>"""

rooms = RoomManager(RoomConfig(max_players=50, max_lifetime=0, empty_ttl=0, reconnect_grace=10))
rooms.create_room("lobby")

app = Flask(__name__)
app.secret_key = secrets.token_bytes()
live = RoomsApp(
    rooms, app.wsgi_app, path=None
)  # the REST API and /client/roomkit.js; the WebSocket is the view's below
app.wsgi_app = live  # type: ignore[method-assign]


@app.get("/")
def page() -> str:
    """The chat, for those who have said who they are."""
    return PAGE if "name" in session else LOGIN


@app.post("/login")
def login() -> Response:
    """A real site asks for more than a name."""
    session["name"] = request.form["name"]
    return redirect("/")


@app.route("/ws", websocket=True)
def ws() -> object:
    """The WebSocket, in the name of whoever is logged in."""
    return live.websocket(session["name"]) if "name" in session else ("log in first", 401)


def main() -> None:
    """Serve with Werkzeug's development server until a signal comes."""
    parser = argparse.ArgumentParser(description="A chat inside a Flask site.")
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default: a free one)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # by default Python dies of it without a word to the clients
    server = make_server("127.0.0.1", arguments.port, app, threaded=True)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
