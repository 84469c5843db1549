"""What clients say begins no line of its own in the log, breaks no JSON line, and reaches no terminal as a command."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from support.bench import Bench
from support.program import roomkit
from support.rest import exchange, request
from support.serve import ServeProcess
from support.ws import HandshakeFailed, WsClient
from witness import address_of

from roomkit.log import configure_logging
from roomkit.server import UpgradeRequest

FORGED = "2024-03-27T20:00:00.123Z CRITICAL roomkit.server: FORGED"
#: Every way to end a line or to speak to a terminal, and a line of the log behind each.
EVIL = "".join(f"{end}{FORGED}" for end in ("\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"))
EVIL += '\x1b[2J\x1b]0;owned\x07\x9b31m\u202e"}\n{"level":"critical","message":"FORGED"}\x00'
RECORD = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) roomkit[\w.]*( \[worker \d\])?: "
)


def be_evil(address: tuple[str, int]) -> None:
    """Say it everywhere: ids, names, headers, addresses, metadata, messages, settings, reasons, methods."""
    request(address, "POST", "/api/rooms", {"id": "room", "metadata": {EVIL: EVIL}, "password": EVIL[:200]})
    for body in ({"id": EVIL}, {"lifecycle": EVIL}, {EVIL: 1}, {"max_players": EVIL}):
        assert request(address, "POST", "/api/rooms", body).status == 400
    request(address, "POST", "/api/rooms", {"id": "open"})
    for query in (
        {"room_id": EVIL, "player_id": "amy"},
        {"room_id": "open", "player_id": EVIL},
        {"room_id": "open", "player_id": "amy", "name": EVIL[:60]},
        {"room_id": "open", "player_id": "amy", "token": EVIL[:200]},
        {"room_id": "open", "player_id": "amy", EVIL[:60]: "x"},
        {"room_id": "room", "player_id": "amy", "password": EVIL[:100]},
    ):
        with WsClient(address, **query) as client:  # type: ignore[arg-type]
            if "token" in query:  # one that is no secret is not taken for one
                client.expect("welcome")
            else:
                assert client.wait_closed() in (4502, 4507)
    request(address, "POST", "/api/rooms", {"id": "bobs"})
    with WsClient(address, room_id="bobs", player_id="bob") as bob:
        bob.expect("welcome")
        bob.send_text(EVIL)
        for kind, data in (
            (EVIL, {}),
            ("message", {"text": EVIL}),
            ("update_settings", {"settings": {EVIL: EVIL}}),
            ("select_song", {"song_id": EVIL[:256]}),
            ("perform", {"operation": EVIL[:64], "data": {}}),
            ("kick", {"player_id": EVIL}),
            ("state", {"after": EVIL}),
            ("close", {"reason": EVIL[:256]}),
        ):
            bob.send(kind, data, id=EVIL[:64])
        assert bob.wait_closed() == 4510
    for path in (
        f"/{quote(EVIL)}",
        f"/api/rooms/{quote(EVIL)}",
        f"/api/rooms?status={quote(EVIL)}",
        f"/demo/{quote(EVIL)}",
    ):
        answer = request(address, "GET", path, None, {"User-Agent": "\x1b[31m", "Referer": quote(EVIL)})
        assert answer.status in (200, 400, 404)
    exchange(address, b"GET /\r\n" + EVIL.encode() + b"\r\n\r\n")
    exchange(address, b"\x1b[2J" + FORGED.encode() + b"\r\n\r\n")
    request(address, "POST", "/api/rooms", {"id": "third"})
    request(address, "POST", "/api/admin/rooms/third/close", {"reason": EVIL[:100]})


@pytest.mark.parametrize("flags", [(), ("--log-json",)])
def test_a_server_s_log_has_only_its_own_lines(serve: Callable[..., ServeProcess], flags: tuple[str, ...]) -> None:
    """A real process at level debug, to which all of it is said: each line of its log is one of its own records."""
    process = serve("--log-level", "debug", "--close-timeout", "0.2", *flags)
    be_evil(address_of(process))
    assert process.stop() == 0
    log = process.output.partition("Ctrl-C\n")[2]  # before that is what it prints for a person, on standard output
    records = [line for line in re.split("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]", log) if line]
    assert len(records) >= 2, process.output
    for line in records:
        if flags:
            assert {"timestamp", "level", "logger", "message"} <= set(json.loads(line)), line
        else:
            assert RECORD.match(line) or line.startswith("    | "), line
        assert line.isprintable()
        assert not line.startswith(FORGED)


@pytest.mark.parametrize("as_json", [False, True])
def test_what_does_get_into_the_log_is_escaped(
    bench: Bench,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    roomkit_logger: logging.Logger,
    as_json: bool,
) -> None:
    """Where code of the server's owner fails with a client's text in the exception, or a page fails whose address was
    the client's: one record each; the traceback stands behind bars, or in its field."""

    def authenticate(upgrade: UpgradeRequest) -> None:
        raise ValueError(upgrade.query["name"])

    server = bench.serve(hooks={"authenticate": authenticate})
    room = server.rooms.create_room("room")
    monkeypatch.setattr(type(server.rooms), "find_room", lambda self, room_id: 1 / 0)
    monkeypatch.setattr(type(server.rooms), "get_room", lambda self, room_id: 1 / 0)
    configure_logging("debug", as_json)
    with WsClient(server.listener.address, room_id="room", player_id="amy", name=EVIL) as amy:
        assert amy.wait_closed() == 1011
    assert request(server.listener.address, "GET", f"/api/rooms/{quote(EVIL)}").status == 500
    monkeypatch.undo()

    def fail(event: Any) -> None:
        raise RuntimeError(str(event.data))

    room.subscribe(fail)
    room.send_message(None, {"text": EVIL})
    assert server.stop()
    logged = capsys.readouterr().err
    lines = logged.splitlines()
    assert logged.count("FORGED") > 10
    assert [line for line in lines if not line.isprintable()] == []
    for line in lines:
        if as_json:
            assert json.loads(line)["logger"].startswith("roomkit")
        else:
            assert RECORD.match(line) or line.startswith("    | "), line
            assert not line.startswith(FORGED)


def test_no_command_shows_a_terminal_what_it_obeys(bench: Bench) -> None:
    """`roomkit rooms` and its --json, with hostile text in metadata, settings, names and reasons: printable, line by
    line. (`roomkit watch`: tests/tools/test_commands.py.)"""
    server = bench.serve()
    room = server.rooms.create_room("room", metadata={EVIL: EVIL})
    room.add_player("amy", "".join(char for char in EVIL if char.isprintable())[:64])
    room.update_settings("amy", {EVIL: EVIL})
    for flags in ((), ("--json",)):
        done = roomkit("rooms", "--url", server.url, *flags)
        assert done.returncode == 0
        assert [char for char in done.stdout + done.stderr if not char.isprintable() and char != "\n"] == []
        assert not [line for line in done.stdout.splitlines() if line.startswith(FORGED)]


def test_a_header_cannot_be_made_of_what_a_client_says(bench: Bench) -> None:
    """A room's id goes into Location, and a path into a redirect: neither takes a line end. The hook's sentence, with a
    client's text in it, is in the body alone."""
    server = bench.serve()
    address = server.listener.address
    for path in ("/api/rooms/%0d%0aSet-Cookie:%20x=1", "/demo/%0d%0aX:%20y", "/dashboard%0d%0aX:%20y/"):
        answer = request(address, "GET", path)
        assert "Set-Cookie" not in answer.headers
        assert "X" not in answer.headers
    with pytest.raises(HandshakeFailed) as refused:
        WsClient(address, "/ws%0d%0aX:%20y")
    assert refused.value.status == 404
    assert "x" not in refused.value.headers
