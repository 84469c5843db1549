"""The machine's clock is set, by an hour forward and by two back, while people play."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest
from players import ADDRESS, make_room
from support.fakes import PATIENCE, eventually
from support.rest import request
from support.serve import ServeProcess
from support.ws import WsClient

PROGRAM = "tests/faults/programs/set_clock.py"
HOUR = 3600


def hours_off(stamp: str) -> int:
    """How far from this process's clock a timestamp of the server's is."""
    moment = datetime.fromisoformat(stamp.replace("Z", "+00:00"))
    return round((moment - datetime.now(timezone.utc)).total_seconds() / HOUR)


def close_and_wait(port: int, room_id: str) -> None:
    """Close a room, and wait for the moment at which the reaper takes it away."""
    make_room(port, room_id)
    with WsClient((ADDRESS, port), room_id=room_id, player_id="zoe") as zoe:
        zoe.expect("welcome")
        zoe.send("close", {})
        assert zoe.wait_closed() == 4510
    assert request((ADDRESS, port), "GET", f"/api/rooms/{room_id}").status == 200
    begun = time.monotonic()
    eventually(lambda: request((ADDRESS, port), "GET", f"/api/rooms/{room_id}").status == 404)
    assert 0.3 < time.monotonic() - begun < PATIENCE


def test_only_timestamps_follow_the_clock(
    serve: Callable[..., ServeProcess], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Forward: a seat with five minutes of grace and a room with thirty outlive a sweep, and the token holds. Back: a
    closed room is taken away a second later all the same. Numbers and order of the events know nothing of it."""
    clock = tmp_path / "clock"
    clock.write_text("0".rjust(8))
    monkeypatch.setenv("FAULTS_CLOCK", str(clock))

    def set_clock(hours: int) -> None:
        with clock.open("r+") as file:  # in one write, as the server may read it at any moment
            file.write(str(hours * HOUR).rjust(8))

    server = serve("--closed-ttl", "1", program=PROGRAM)
    address = (ADDRESS, server.port)
    make_room(server.port)
    with WsClient(address, room_id="room", player_id="bob") as bob:
        bob.expect("welcome")
        stamps: list[int] = []
        heard = 0
        for hours in (0, 1, -1):
            set_clock(hours)
            amy_knows = (
                {"token": "a" * 22, "seq": heard, "epoch": bob.welcome["epoch"]} if heard else {"token": "a" * 22}
            )
            with WsClient(address, room_id="room", player_id="amy", **amy_knows) as amy:
                welcome = amy.expect("welcome")["data"]
                assert welcome["recovered"] is (True if heard else None)
                assert hours_off(welcome["time"]) == hours
                heard = amy.do("message", {"hours": hours})["seq"]
                amy.until_seq(heard)
                stamps.append(hours_off(amy.events[-1]["timestamp"]))
                assert hours_off(amy.do("ping")["time"]) == hours
                amy.cut()
            bob.until("player_dropped")
            # A sweep, by the clock as it is now: on time, and it takes nothing else with it.
            close_and_wait(server.port, f"beside-{hours}")
            state = request(address, "GET", "/api/rooms/room").json
            assert {player["id"]: player["connected"] for player in state["players"]} == {"bob": True, "amy": False}
        assert stamps == [0, 1, -1]
        bob.until_seq(bob.do("message", {"last": True})["seq"])
        assert bob.seqs == list(range(bob.seqs[0], bob.seqs[-1] + 1))
