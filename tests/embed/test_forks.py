"""fork(2): a manager without threads works in a child; one that had some says so at its first use."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest
from support.fakes import PATIENCE
from support.rest import request
from support.ws import WsClient
from support.wsgi import ROOT, WsgiProcess

Run = Callable[..., WsgiProcess]


def test_an_app_made_before_gunicorn_forks(run: Run) -> None:
    """--preload: manager and room are made in the master; the worker serves that room with threads of its own."""
    process = run("flask", "gthread", "--preload")
    with WsClient(process.address, room_id="room", player_id="amy") as amy:
        amy.expect("welcome")
        amy.do("message", {})
        seen = request(process.address, "GET", "/insight").json
        assert seen["pid"] == process.serving
        assert {"roomkit-io-0", "roomkit-reaper"} <= set(seen["threads"])
    assert process.stop() == 0


def test_a_reaper_started_before_gunicorn_forks(run: Run) -> None:
    """--preload and start_cleanup() at import: the client and the log are told why, and the site's pages go on."""
    process = run("flask", "gthread", "--preload", reaper=True)
    answer = request(
        process.address,
        "GET",
        "/ws?room_id=room&player_id=amy",
        headers={
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        },
    )
    assert (answer.status, answer.error) == (500, "used_after_fork")
    process.said("this RoomManager had threads in process")
    assert request(process.address, "GET", "/hello").body == b"hello"
    assert request(process.address, "GET", "/api/rooms").error == "used_after_fork"
    assert process.stop() == 0


def test_several_worker_processes_are_warned_of(run: Run) -> None:
    """Each has rooms of its own, which the log says."""
    process = run("flask", "gthread", "--workers", "2")
    with WsClient(process.address, room_id="room", player_id="amy") as amy:
        amy.expect("welcome")
    process.said("several worker processes, and each has rooms of its own")
    assert process.stop() == 0


def in_child(parent: str, child: str) -> str:
    """Run ``parent``, fork, run ``child`` there; what the child printed."""
    program = """
import os, signal, threading
from roomkit import *
rooms = RoomManager()
{parent}
pid = os.fork()
if pid == 0:
    signal.alarm(10)
    try:
{child}
    except BaseException as error:
        print(type(error).__name__, error, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
assert rooms.shutdown(5)
"""
    program = program.format(parent=textwrap.dedent(parent), child=textwrap.indent(textwrap.dedent(child), " " * 8))
    # Python 3.12 warns of every fork of a process with threads, which is what is tried here.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


THREADS = {
    "reaper": "rooms.start_cleanup()",
    "subscriber": """
        room, seen = rooms.create_room("r"), threading.Event()
        room.subscribe(lambda event: seen.set())
        room.add_player("amy")
        assert seen.wait(5)
    """,
    "server": """
        from roomkit.server import Server
        from roomkit.settings import Settings
        rooms.create_room("r")
        server = Server(rooms, Settings(port=0)).start()
    """,
}


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize(
    "use", ["rooms.create_room()", "rooms.get_room('r')", "len(rooms)", "rooms.list_rooms()", "rooms.start_cleanup()"]
)
def test_a_manager_with_threads_is_refused_in_a_child(threads: str, use: str) -> None:
    """Whatever thread it was, and whatever is done first: the error names the cause and both processes."""
    said = in_child(THREADS[threads], use)
    assert said.startswith("UsedAfterFork this RoomManager had threads in process "), said
    assert "make the manager after the fork" in said


def test_a_room_of_such_a_manager_is_refused_too() -> None:
    """One that is held by a reference: its operations raise and change nothing."""
    said = in_child(THREADS["subscriber"], "room.add_player('bob')")
    assert said.startswith("UsedAfterFork"), said


def test_leaving_quietly() -> None:
    """A child that just ends (``with`` in the parent, shutdown at exit) gets no error for it."""
    assert in_child(THREADS["reaper"], "print(rooms.shutdown())") == "True\n"


def test_a_manager_without_threads_works_in_a_child() -> None:
    """With rooms, players and history; threads are started there."""
    parent = "room = rooms.create_room('r'); room.add_player('amy')"
    child = """
        seen = threading.Event()
        rooms.start_cleanup()
        rooms.get_room("r").subscribe(lambda event: event.type == "player_joined" and seen.set())
        room.add_player("bob")
        print(seen.wait(5), [p.id for p in room.get_players()], rooms.shutdown(5))
    """
    assert in_child(parent, child) == "True ['amy', 'bob'] True\n"
