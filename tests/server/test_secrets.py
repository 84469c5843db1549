"""What is secret stays with those whose it is: no log line, page, metric, listing or message to others has it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.rest import exchange, request
from support.serve import ServeProcess
from support.ws import TEXT, WsClient, frame, upgrade_request

ADMIN = "admin-secret-0123456789abcdef"
PASSWORD = "sesame-secret-password"
COOKIE = "cookie-secret-value"
OWN_SEAT = "own-seat-secret-0123456789ab"
PAGES = (
    "/metrics",
    "/debug/rooms",
    "/api/rooms",
    "/api/rooms/vault",
    "/api/admin/stats",
    "/api/admin/rooms",
    "/api/admin/rooms/vault",
    "/api/admin/rooms?search=vault",
    "/healthz",
)
GUESS = "guessed-secret-0123456789ab"


@pytest.mark.parametrize("form", ["--no-log-json", "--log-json"])
def test_no_secret_leaves_the_server(form: str, tmp_path: Path) -> None:
    """A server that logs everything is given every secret there is, rightly and wrongly, in every way there is."""
    config = tmp_path / "roomkit.toml"
    config.write_text(f'admin_token = "{ADMIN}"\nlog_level = "debug"\n')
    server = ServeProcess("--config", str(config), form)
    pages = b""
    told_to_others = ""
    try:
        here = ("127.0.0.1", server.port)
        ours = {"Authorization": f"Bearer {ADMIN}", "X-Forwarded-For": "192.0.2.1", "Cookie": f"session={COOKIE}"}
        body = {"id": "vault", "password": PASSWORD, "private": True}
        assert request(here, "POST", "/api/rooms", body).status == 201
        cookie = [("Cookie", f"session={COOKIE}"), ("Authorization", f"Bearer {ADMIN}")]
        with (
            WsClient(here, room_id="vault", player_id="amy", password=PASSWORD, headers=cookie) as amy,
            WsClient(here, room_id="vault", player_id="bob", password=PASSWORD, token=OWN_SEAT) as bob,
        ):
            amys = amy.expect("welcome")["data"]["token"]
            bob.expect("welcome")
            for wrong, code in (({"password": GUESS}, 4502), ({}, 4502)):
                with WsClient(here, room_id="vault", player_id="cat", **wrong) as cat:
                    assert cat.wait_closed() == code
            for wrong in (GUESS, amys):
                with WsClient(here, room_id="vault", player_id="bob", token=wrong, password=PASSWORD) as thief:
                    assert thief.wait_closed() == 4501
            # Broken in every layer: the head, the frame, the JSON, the types, a body that is none.
            target = f"/ws?room_id=vault&player_id=dan&password={PASSWORD}&token={OWN_SEAT}"
            exchange(here, upgrade_request(target, [("Sec-WebSocket-Version", "7")]))
            exchange(here, upgrade_request(target, [("Sec-WebSocket-Key", GUESS)]))
            exchange(here, f"GET {target} HTTP/9.9\r\nCookie: {COOKIE}\r\n\r\n".encode())
            exchange(here, upgrade_request(f"/ws?room_id=none&password={PASSWORD}&token={GUESS}") + frame(TEXT, b"{"))
            for text in (f'{{"type":"message","password":"{PASSWORD}"', json.dumps({"type": PASSWORD, "data": amys})):
                amy.send_text(text)
                amy.until("error")
            for wrong_body in (b'{"password": "' + PASSWORD.encode(), {"id": "x", "password": [PASSWORD]}):
                assert request(here, "POST", "/api/rooms", wrong_body).status == 400
            amy.do("message", {"text": "hello"})
            told_to_others = json.dumps([bob.until("message"), bob.events, amy.events])
            for path in PAGES:
                answer = request(here, "GET", path, headers=ours)
                assert answer.status == 200, path
                pages += answer.body
                denied = request(here, "GET", path, headers={**ours, "Authorization": f"Bearer {GUESS}"})
                pages += denied.body
        assert request(here, "DELETE", "/api/rooms/vault", headers=ours).status == 204
    finally:
        status = server.stop()
    assert status == 0
    assert "draining" in server.output, "it does log"
    everything = f"{server.output}{pages.decode()}{told_to_others}"
    for secret in (ADMIN, PASSWORD, COOKIE, OWN_SEAT, GUESS, amys):
        assert secret not in everything, secret
