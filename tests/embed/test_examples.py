"""The two example sites do what they say, on their development server and on gunicorn."""

from __future__ import annotations

import http.cookiejar
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator

import pytest
from support.needs import need_package
from support.ws import HandshakeFailed, WsClient
from support.wsgi import ROOT, WsgiProcess


@pytest.fixture
def example() -> Iterator[Callable[[str, str], WsgiProcess]]:
    """Starts an example, which ends well after the test."""
    made: list[WsgiProcess] = []

    def run(name: str, server: str) -> WsgiProcess:
        need_package(name.partition("_")[0], *(["gunicorn"] if server == "gunicorn" else []))
        command = [f"{name}.py"]
        if server == "gunicorn":
            callable_name = "app" if name.startswith("flask") else "application"
            command = [
                "-m",
                "gunicorn",
                "-k",
                "gthread",
                "--threads",
                "4",
                "-b",
                "127.0.0.1:0",
                f"{name}:{callable_name}",
            ]
        made.append(WsgiProcess.of(command, ROOT / "examples"))
        return made[-1]

    yield run
    for process in made:
        try:
            assert process.stop() == 0
        finally:
            process.kill()
        assert "Traceback" not in process.output, process.output


class Browser:
    """Keeps cookies and follows redirects."""

    def __init__(self, process: WsgiProcess) -> None:
        self._base = f"http://127.0.0.1:{process.port}"
        self.cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(self.cookies)
        )

    def get(self, path: str, form: dict[str, str] | None = None) -> str:
        """A page; with a form it is posted."""
        data = None if form is None else urllib.parse.urlencode(form).encode()
        with self._opener.open(self._base + path, data, timeout=20) as answer:
            text: str = answer.read().decode()
            return text

    @property
    def cookie(self) -> tuple[str, str]:
        """The header."""
        return ("Cookie", "; ".join(f"{cookie.name}={cookie.value}" for cookie in self.cookies))


@pytest.mark.parametrize("server", ["its own", "gunicorn"])
def test_flask_chat(example: Callable[[str, str], WsgiProcess], server: str) -> None:
    """Nobody is in without a login, and the login's name counts, whatever the address says."""
    process = example("flask_app", server)
    browser = Browser(process)
    with pytest.raises(HandshakeFailed) as refused:
        WsClient(process.address, room_id="lobby", player_id="me")
    assert refused.value.status == 401
    assert "Your name" in browser.get("/")
    assert "Lobby" in browser.get("/login", {"name": "amy"})
    assert "class RoomClient" in browser.get("/client/roomkit.js")
    with WsClient(process.address, headers=[browser.cookie], room_id="lobby", player_id="me") as amy:
        assert amy.expect("welcome")["data"]["player_id"] == "amy"
        amy.do("message", {"text": "hi"})
        assert amy.events[-1]["data"] == {"player_id": "amy", "data": {"text": "hi"}}


@pytest.mark.parametrize("server", ["its own", "gunicorn"])
def test_django_board(example: Callable[[str, str], WsgiProcess], server: str) -> None:
    """A posted notice reaches who is there over the WebSocket, and who comes later on the page, escaped."""
    process = example("django_app", server)
    browser = Browser(process)
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', browser.get("/"))
    assert token is not None
    with WsClient(process.address, room_id="board", player_id="reader-1") as reader:
        reader.expect("welcome")
        page = browser.get("/notices", {"text": "<b>tea</b> at five", "csrfmiddlewaretoken": token[1]})
        assert reader.until("message")["data"] == {"player_id": None, "data": {"text": "<b>tea</b> at five"}}
    assert "<li>&lt;b&gt;tea&lt;/b&gt; at five</li>" in page
    with pytest.raises(urllib.error.HTTPError, match="403"):
        browser.get("/notices", {"text": "without the token"})
