"""A notice board inside a Django site of one file: everybody who looks at it sees a new notice at once.

    python examples/django_app.py --port 8000
    gunicorn --workers 1 -k gthread --threads 4 --chdir examples django_app:application

A form posts to a Django view, which tells the room; readers hear of it over a WebSocket that the same process serves.
Here rooms are wrapped around the whole site, in what a larger one has in its wsgi.py; a view of one's own that makes
WebSockets returns ``application.django(request, player_id=...)`` (docs/embedding.md).
"""

from __future__ import annotations

import argparse
import secrets
import signal
import sys

import django
from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.middleware.csrf import get_token
from django.urls import path
from django.utils.html import format_html, format_html_join
from django.views.decorators.http import require_POST

from roomkit import RoomConfig, RoomManager
from roomkit.embed import RoomsApp

if not settings.configured:
    settings.configure(
        ROOT_URLCONF=__name__,
        WSGI_APPLICATION=f"{__name__}.application",
        ALLOWED_HOSTS=["127.0.0.1", "localhost"],
        SECRET_KEY=secrets.token_urlsafe(),
        MIDDLEWARE=["django.middleware.common.CommonMiddleware", "django.middleware.csrf.CsrfViewMiddleware"],
    )
    django.setup()

PAGE = """<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Notices</title>
<style>body {{ font: 1rem/1.5 sans-serif; max-width: 40rem; margin: 2rem auto; padding: 0 1rem }}
input, button {{ font: inherit; padding: .4rem .6rem }} input[name=text] {{ width: 70% }}</style>
<h1>Notices</h1>
<form method="post" action="/notices"><input type="hidden" name="csrfmiddlewaretoken" value="{}">
<input name="text" aria-label="Notice" maxlength="200" required autofocus> <button>Post</button></form>
<ul id="board" aria-live="polite">{}</ul>
<script type="module">
  import {{ RoomClient }} from '/client/roomkit.js';
  const playerId = `reader-${{crypto.getRandomValues(new Uint32Array(2)).join('-')}}`;
  const room = new RoomClient({{ roomId: 'board', playerId }});
  room.onMessage = ({{ player_id, data }}) => {{
    if (player_id !== null) return;  // only what the site itself says is a notice
    const item = document.createElement('li');
    item.textContent = data.text;
    document.querySelector('#board').prepend(item);
  }};
  document.querySelector('form').addEventListener('submit', async (event) => {{
    event.preventDefault();
    const body = new FormData(event.target);
    event.target.reset();
    await fetch('/notices', {{ method: 'POST', body }});
  }});
  await room.connect();
</script>"""

rooms = RoomManager(RoomConfig(max_players=1000, max_lifetime=0, empty_ttl=0, reconnect_grace=10))
board = rooms.create_room("board")


def page(request: HttpRequest) -> HttpResponse:
    """The board with the notices so far, the newest first."""
    past = [event.data["data"]["text"] for event in board.get_recent_events(100) if is_notice(event.type, event.data)]
    items = format_html_join("", "<li>{}</li>", ([text] for text in reversed(past)))
    return HttpResponse(format_html(PAGE, get_token(request), items))


def is_notice(kind: str, data: dict[str, object]) -> bool:
    """Whether the site itself said it, and not a reader."""
    return kind == "message" and data["player_id"] is None


@require_POST
def post(request: HttpRequest) -> HttpResponse:
    """A new notice."""
    text = request.POST.get("text", "").strip()[:200]
    if text:
        board.send_message(None, {"text": text})
    return HttpResponseRedirect("/")


urlpatterns = [path("", page), path("notices", post)]
application = RoomsApp(rooms, get_wsgi_application())


def main() -> None:
    """Serve with Django's development server until a signal comes."""
    parser = argparse.ArgumentParser(description="A notice board inside a Django site.")
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default: a free one)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # by default Python dies of it without a word to the clients
    execute_from_command_line(["django_app", "runserver", "--noreload", f"127.0.0.1:{arguments.port}"])


if __name__ == "__main__":
    main()
