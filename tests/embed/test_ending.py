"""How it ends: on SIGTERM clients are told to come back, whoever the server is, and whatever its threads do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest
from support.rest import request
from support.ws import WsClient
from support.wsgi import WsgiProcess

Run = Callable[..., WsgiProcess]


@pytest.mark.parametrize("handover", [True, False])
@pytest.mark.parametrize(
    ("site", "server"), [("flask", "werkzeug"), ("flask", "gthread"), ("django", "gthread"), ("django", "runserver")]
)
def test_sigterm_sends_clients_away_to_come_back(run: Run, site: str, server: str, handover: bool) -> None:
    """1012 with a time, at once and not when gunicorn's graceful timeout (10 s) has passed, and a clean end."""
    process = run(site, server, handover=handover)
    with ExitStack() as stack:
        clients = []
        for n in range(3):  # with a worker thread each, one is left for the site's pages
            clients.append(stack.enter_context(WsClient(process.address, room_id="room", player_id=f"p{n}")))
            clients[-1].expect("welcome")
        assert request(process.address, "GET", "/hello").body == b"hello"
        process.terminate()
        for client in clients:
            assert client.wait_closed(5) == 1012
            assert "come back in" in client.close_reason
            client.wait_eof()
    assert process.wait() == 0
    assert "Traceback" not in process.output, process.output


def test_gunicorn_ends_one_worker_and_starts_another(run: Run) -> None:
    """SIGHUP: the old worker's clients are told to come back, and the new one serves them."""
    process = run("flask", "gthread")
    old = process.serving
    with WsClient(process.address, room_id="room", player_id="amy") as amy:
        amy.expect("welcome")
        process.signal("HUP")
        assert amy.wait_closed() == 1012
    process.said(rf"Worker exiting \(pid: {old}\)")
    with WsClient(process.address, room_id="room", player_id="amy") as amy:
        amy.expect("welcome")
    assert process.stop() == 0
