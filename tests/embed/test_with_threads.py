"""Where a worker thread cannot be freed, or is not to be: one of the server's threads a client, and none of ours."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.fakes import eventually
from support.rest import request
from support.ws import TEXT, WsClient, frame
from support.wsgi import WsgiProcess, start

CLIENTS = 200
MANY_THREADS = ["--threads", str(CLIENTS + 10), "--worker-connections", str(CLIENTS + 20)]


@pytest.mark.parametrize(
    ("site", "server"), [("flask", "werkzeug"), ("flask", "gthread"), ("django", "gthread"), ("django", "runserver")]
)
def test_at_most_one_thread_for_a_client(
    run: Callable[..., WsgiProcess], site: str, server: str, tell: Callable[[str], None]
) -> None:
    """handover=False, 200 clients: a thread each, everything works, and afterwards neither thread nor file is left."""
    process = run(site, server, *(MANY_THREADS if server == "gthread" else []), handover=False)
    with WsClient(process.address, room_id="room", player_id="first") as first:
        first.expect("welcome")
    eventually(lambda: not request(process.address, "GET", "/api/rooms/room").json["players"][0]["connected"])
    threads, files = process.threads(), process.open_files()
    with ExitStack() as stack:
        clients = []
        for n in range(CLIENTS):
            clients.append(stack.enter_context(WsClient(process.address, room_id="room", player_id=f"p{n}")))
            clients[-1].expect("welcome")
        used = process.threads()
        tell(f"embedded in {process.name}, handover=False: {CLIENTS} clients, {used} threads in all")
        assert CLIENTS < used <= CLIENTS + 10
        assert request(process.address, "GET", "/hello").body == b"hello"
        clients[0].do("message", {"to": "all"})
        for client in clients[1:]:
            assert client.until("message")["data"]["data"] == {"to": "all"}
        for client in clients:
            client.send("leave")
            assert client.wait_closed() == 1000
            client.wait_eof()
            assert not client._buffer  # nothing of the server's behind the close frame
    eventually(lambda: process.open_files() <= files + 2)
    if not process.gunicorn:  # its pool keeps threads for later
        eventually(lambda: process.threads() <= threads + 1)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a self-signed certificate for localhost, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost "
        f"-addext subjectAltName=DNS:localhost -keyout {folder}/key.pem -out {folder}/cert.pem".split(),
        check=True,
        capture_output=True,
        timeout=60,
    )
    return folder


@pytest.fixture(params=["werkzeug", "gthread"])
def secure(request: pytest.FixtureRequest, certificate: Path) -> Iterator[WsgiProcess]:
    """The Flask site behind TLS."""
    cert, key = str(certificate / "cert.pem"), str(certificate / "key.pem")
    flags = ["--certfile", cert, "--keyfile", key] if request.param == "gthread" else []
    process = start("flask", request.param, *flags, tls=certificate)
    yield process
    process.kill()
    assert "Traceback" not in process.output, process.output


def test_tls(secure: WsgiProcess, certificate: Path) -> None:
    """The server's own TLS: the thread stays. Pipelined, large and many messages, both ends close, pages go on."""
    trust = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    address = ("localhost", secure.port)
    assert request(address, "GET", "/hello", tls=trust).body == b"hello"
    first = frame(TEXT, b'{"type":"message","data":{"n":-1}}')
    with WsClient(address, tls=trust, room_id="room", player_id="amy", behind=first) as amy:
        amy.expect("welcome")
        pad = "x" * 60_000
        for n in range(20):
            amy.do("message", {"n": n, "pad": pad})
        assert [event["data"]["data"]["n"] for event in amy.events if event["type"] == "message"] == list(range(-1, 20))
        threads = secure.threads()
        with WsClient(address, tls=trust, room_id="room", player_id="bob") as bob:
            bob.expect("welcome")
            assert secure.threads() <= threads + 1
            assert request(address, "GET", "/hello", tls=trust).body == b"hello"
        amy.until("player_dropped")
        amy.send("leave")
        assert amy.wait_closed() == 1000
        amy.wait_eof()
        assert not amy._buffer  # nothing of the server's behind the close frame


def test_tls_ends_with_the_server(secure: WsgiProcess, certificate: Path) -> None:
    """1012 here too."""
    trust = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    with WsClient(("localhost", secure.port), tls=trust, room_id="room", player_id="eve") as eve:
        eve.expect("welcome")
        secure.terminate()
        assert eve.wait_closed(5) == 1012
    assert secure.wait() == 0
