"""``roomkit rooms`` and ``roomkit watch`` as a user meets them: real processes, real servers."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.bench import Bench
from support.fakes import PATIENCE
from support.program import Running, roomkit, sentence
from support.serve import ServeProcess

from roomkit.server import Server
from roomkit.tools.rooms import table

ROOT = Path(__file__).parents[2]
#: What a terminal would obey, and what would turn a line around.
EVIL = "\x1b[2J\x9b31m\u202e\r\n\x07"


@pytest.fixture
def run() -> Iterator[Any]:
    """Starts commands, and sees to it that they end."""
    running: list[Running] = []

    def start(*words: str, **more: Any) -> Running:
        running.append(Running(*words, **more))
        return running[-1]

    yield start
    for command in running:
        command.close()


# rooms


def test_rooms_shows_all_rooms_over_many_pages(bench: Bench) -> None:
    """450 rooms, which are three pages: each once, private ones too, in the order that was asked for."""
    server = bench.serve()
    for n in range(450):
        server.rooms.create_room(f"room-{n:03}", private=n % 2 == 0, max_players=n + 1)
    done = roomkit("rooms", "--url", server.url)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["ID", "STATUS", "PLAYERS"]
    assert sorted(line.split()[0] for line in lines[1:-1]) == [f"room-{n:03}" for n in range(450)]
    assert lines[-1] == "450 rooms"
    assert max(map(len, lines)) <= 120


def test_rooms_finds_filters_and_speaks_json(bench: Bench) -> None:
    """Search, status and sort are the server's; --json gives its rows, one a line, for programs."""
    server = bench.serve()
    for n in range(4):
        server.rooms.create_room(f"room-{n}", min_players=4).add_player("amy", "Amy")
    server.rooms.get_room("room-2").add_player("bob", "Bob")
    server.rooms.get_room("room-3").close()
    address = {"ROOMKIT_URL": server.url}
    done = roomkit("rooms", "--json", "--status", "waiting", "--sort=-players", env=address)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["id"], row["player_count"]) for row in rows] == [("room-2", 2), ("room-1", 1), ("room-0", 1)]
    done = roomkit("rooms", "--json", "--search", "bob", env=address)
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["room-2"]
    assert roomkit("rooms", "--search", "nobody", env=address).stdout.splitlines()[-1] == "0 rooms"


def test_nothing_that_clients_named_reaches_the_terminal_raw(bench: Bench, run: Any) -> None:
    """Metadata, settings, messages and names with control characters come escaped, in both commands."""
    server = bench.serve()
    room = server.rooms.create_room("room", metadata={"m": EVIL})
    room.add_player("amy", "Amy")
    room.send_message("amy", {"text": EVIL})
    room.update_settings("amy", {EVIL: EVIL})
    done = roomkit("rooms", "--url", server.url)
    watching = run("watch", "room", "--url", server.url)
    seen = watching.until("settings_changed")
    room.close(EVIL)
    seen += watching.until("room_closed")
    server.rooms.remove_room("room")
    assert watching.end() == 0
    shown = done.stdout + done.stderr + "\n".join([*seen, *watching.out.queue, *watching.err.queue])
    assert "\\x9b" in shown
    assert [char for char in shown if not char.isprintable() and char != "\n"] == []


def test_a_table_fits_its_terminal() -> None:
    """Wide cells give way, with an ellipsis; then whole columns. Wide characters count twice."""
    row = [
        "room-" + "x" * 60,
        "waiting",
        "1/4",
        "1",
        "amy" * 20,
        "LP",
        "0",
        "0",
        "2026-01-01 00:00:00",
        '{"a":"' + "漢" * 40,
    ]
    for width in (200, 120, 100, 80, 60, 40, 20, 5):
        lines = table([row, row], width)
        assert len(lines) == 3
        for line in lines:
            assert sum(1 + (char == "漢") for char in line) <= max(width, 12), (width, line)
        assert lines[1].startswith("room-")
    assert "METADATA" in table([row], 100)[0]
    assert "…" in table([row], 100)[1]
    assert "CREATED" not in table([row], 80)[0]
    assert table([], 80)[0].startswith("ID")


@pytest.mark.parametrize("command", [["rooms"], ["watch", "room"]], ids=["rooms", "watch"])
def test_what_can_go_wrong_is_one_sentence(bench: Bench, command: list[str], tmp_path: Path) -> None:
    """Nobody there, no such address, a password in it, no admin pages, no roomkit, a token that is refused."""
    server = bench.serve()
    server.rooms.create_room("room")
    gone = ServeProcess()
    gone.stop()
    said = sentence(roomkit(*command, "--url", gone.url), 1)
    assert said == f"roomkit: cannot reach {gone.url}: Connection refused"
    said = sentence(roomkit(*command, "--url", "ftp://example"), 2)
    assert said == "roomkit: 'ftp://example' is no address of a server, like http://127.0.0.1:8080"
    said = sentence(roomkit(*command, "--url", "http://me:secret@127.0.0.1:1"), 2)
    assert "secret" not in said
    said = sentence(roomkit(*command, env={"ROOMKIT_URL": bench.serve(dashboard=False).url}), 1)
    assert "no admin pages" in said
    said = sentence(roomkit(*command, "--url", server.url + "/nothing"), 1)
    assert "is it a roomkit server?" in said or "no admin pages" in said
    said = sentence(roomkit(*command, "--url", server.url, "--token-file", str(tmp_path / "none")), 2)
    assert said == f"roomkit: cannot read {tmp_path / 'none'}: No such file or directory"
    assert sentence(roomkit(*command, "--ulr", server.url), 2).endswith(
        f"unknown flag --ulr; did you mean --url? (see roomkit {command[0]} --help)"
    )


def test_the_admin_token_comes_from_the_environment_or_a_file(bench: Bench, tmp_path: Path) -> None:
    """A server to which we are not local asks for it; it is in no error."""
    server = bench.serve(admin_token="right-one")
    server.rooms.create_room("room")
    server.listener.application = behind_a_proxy(server)
    said = sentence(roomkit("rooms", "--url", server.url), 1)
    assert said.endswith("needs the admin token (unauthorized); give it in ROOMKIT_ADMIN_TOKEN or with --token-file")
    said = sentence(roomkit("rooms", "--url", server.url, env={"ROOMKIT_ADMIN_TOKEN": "wrong-one"}), 1)
    assert "wrong-one" not in said
    assert roomkit("rooms", "--url", server.url, env={"ROOMKIT_ADMIN_TOKEN": "right-one"}).returncode == 0
    path = tmp_path / "token"
    path.write_text("right-one\n")
    assert roomkit("rooms", "--url", server.url, "--token-file", str(path)).returncode == 0


def behind_a_proxy(server: Server) -> Any:
    """The server's application, with every request as one that came through a proxy."""
    application = server.listener.application
    assert application is not None

    def passed_on(environ: dict[str, Any], start_response: Any) -> Any:
        return application({**environ, "HTTP_VIA": "1.1 proxy"}, start_response)

    return passed_on


def test_the_server_does_not_take_the_tools_address_for_a_setting() -> None:
    """ROOMKIT_URL in the environment of `roomkit serve` is no error."""
    env = {"ROOMKIT_URL": "http://127.0.0.1:1"}
    assert "port" in sentence(roomkit("serve", "--port", "no", env=env), 2)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_rooms_into_a_closed_pipe_or_a_full_disk(bench: Bench) -> None:
    """No traceback: silence and 1, or a sentence."""
    server = bench.serve()
    server.rooms.create_room("room")
    receiver, sender = os.pipe()
    os.close(receiver)
    with os.fdopen(sender, "w") as broken:
        done = roomkit("rooms", "--url", server.url, stdout=broken)
    assert (done.returncode, done.stderr) == (1, "")
    with Path("/dev/full").open("w") as full:
        done = roomkit("rooms", "--url", server.url, stdout=full)
    assert (done.returncode, done.stderr) == (1, "roomkit: cannot write the output: No space left on device\n")


# watch


def test_watch_shows_each_event_once_and_in_order(bench: Bench, run: Any) -> None:
    """A heading, what there was, then 300 messages that come while it watches; Ctrl-C ends it well."""
    server = bench.serve(history_size=1000)
    room = server.rooms.create_room("room", metadata={"mode": "duel"})
    amy = bench.join(server, "room", "amy", name="Amy")
    watching = run("watch", "room", "--url", server.url)
    heading = watching.until("player_joined")
    assert heading[0].startswith("room: waiting (game), seq 2, since ")
    assert heading[1:3] == ["players 1 of 4", "  amy  Amy  (host)"]
    assert heading[3] == 'metadata {"mode":"duel"}'
    for n in range(300):
        room.send_message("amy", {"n": n})
    seen = watching.until('"n":299')
    numbers = [int(line.split()[1]) for line in seen if " message " in line]
    assert numbers == list(range(numbers[0], numbers[0] + 300))
    amy.do("message", {"last": True})
    watching.until('"last":true')
    watching.process.send_signal(signal.SIGINT)
    assert watching.end() == 0
    assert list(watching.err.queue) == []


def test_watch_json_gives_the_events_that_players_get(bench: Bench, run: Any) -> None:
    """One a line, as on the wire; the room's end is told on standard error, and is a good end."""
    server = bench.serve()
    server.rooms.create_room("room")
    amy = bench.join(server, "room", "amy")
    watching = run("watch", "room", "--json", "--url", server.url)
    watching.until("host_changed")
    amy.do("message", {"text": "hi \u202e"})
    amy.do("close", {"reason": "done"})
    amy.wait_closed()
    seen = [json.loads(line) for line in watching.until("room_closed")]
    assert seen == [event for event in amy.events if event["seq"] >= seen[0]["seq"]]
    assert [event["type"] for event in seen] == ["message", "room_status", "room_closed"]
    server.rooms.remove_room("room")
    assert watching.end() == 0
    assert list(watching.err.queue) == ["roomkit: the room room is gone"]


def test_watch_tells_what_the_history_no_longer_has(bench: Bench, run: Any) -> None:
    """More came at once than the history keeps: a hole is told, and what follows it is shown."""
    server = bench.serve()
    room = server.rooms.create_room("room", history_size=5)
    room.add_player("amy", "Amy")
    watching = run("watch", "room", "--url", server.url)
    watching.until("host_changed")
    for n in range(40):
        room.send_message("amy", {"n": n})
    watching.until('"n":39')
    assert re.fullmatch(r"roomkit: \d+ events came too fast to be shown.*", watching.err.get(timeout=PATIENCE))


def test_watch_of_a_room_that_is_not_there_fails_at_once(bench: Bench) -> None:
    """One sentence, 1."""
    url = bench.serve().url
    assert sentence(roomkit("watch", "nowhere", "--url", url), 1) == (
        f"roomkit: {url} refused: there is no room 'nowhere' (room_not_found)"
    )
    assert "../rooms" in sentence(roomkit("watch", "../rooms", "--url", url), 2)


def test_watch_survives_a_restart_of_the_server(bench: Bench, run: Any) -> None:
    """While the server is away it says so and tries again; the room that comes back under the same id is another one,
    which it says, and shows from its beginning."""
    server = bench.serve()
    server.rooms.create_room("room").add_player("amy", "Amy")
    port = server.listener.address[1]
    watching = run("watch", "room", "--url", server.url)
    watching.until("host_changed")
    assert server.stop()
    watching.until("cannot reach .*; trying again in 0.5 s", watching.err)
    other = bench.serve(port=port)
    other.rooms.create_room("room").add_player("bob", "Bob")
    watching.until("answers again", watching.err)
    watching.until("another one now", watching.err)
    assert any("bob" in line for line in watching.until("host_changed"))


def test_both_work_with_worker_processes(run: Any) -> None:
    """Whichever worker is asked: all rooms, and the events of the room's owner."""
    from support.rest import request

    server = ServeProcess("--workers", "2")
    try:
        address = ("127.0.0.1", server.port)
        for n in range(6):
            assert request(address, "POST", "/api/rooms", {"id": f"room-{n}"}).status == 201
        done = roomkit("rooms", "--url", server.url)
        assert {line.split()[0] for line in done.stdout.splitlines()[1:-1]} == {f"room-{n}" for n in range(6)}
        for n in range(2):
            watching = run("watch", f"room-{n}", "--url", server.url)
            watching.until("players 0")
            request(address, "POST", f"/api/rooms/room-{n}/join", {"player_id": "amy"})
            watching.until("player_joined")
    finally:
        server.stop()
