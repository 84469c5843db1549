"""Real instances behind a real haproxy and a real nginx: people play, instances are killed and drained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from proxied import Site
from support.fakes import eventually
from support.rest import request
from support.ws import WsClient

INSTANCES = 3

Make = Callable[[int], Site]


def test_people_play_through_the_proxy(site: Make, kind: str, tmp_path: Path) -> None:
    """Everybody of a room is at one of three instances; messages go both ways, the largest one too; REST finds the
    room, and nobody who comes through the proxy counts as this machine. The proxy's log has nobody's token."""
    here = site(3)
    for n in range(4):
        here.make_room(f"r{n}")
        assert sum(here.websockets()) == 4 * (n + 1)
        assert all(count % 4 == 0 for count in here.websockets()), here.websockets()
        answer = request(here.proxy.address, "GET", f"/api/rooms/r{n}")
        assert (answer.status, len(answer.json["players"])) == (200, 4)
    seat = request(here.proxy.address, "POST", "/api/rooms/r0/join", {"player_id": "eve"})
    assert seat.status == 200
    with WsClient(here.proxy.address, room_id="r0", player_id="eve", token=seat.json["token"]) as eve:
        eve.expect("welcome")
        text = "x" * (65_536 - len(json.dumps({"type": "message", "data": {"n": ""}, "id": "c1"})))
        seq = eve.do("message", {"n": text})["seq"]
        [mine] = [event for event in eve.events if event["seq"] == seq]
        assert mine["data"]["data"]["n"] == text
    assert request(here.proxy.address, "GET", "/metrics").status == 403
    here.check()
    logs = "".join(path.read_text() for path in tmp_path.glob("*.log")) + here.proxy.output
    assert kind == "haproxy" or "GET /ws 101 " in logs
    for secret in (seat.json["token"], *(player.token for player in here.players)):
        assert secret not in logs


def end_by_kill(site: Site, at: int) -> None:
    """-9."""
    site.kill(at)


def end_by_drain(site: Site, at: int) -> None:
    """SIGTERM."""
    site.drain(at)


@pytest.mark.parametrize("end", [end_by_kill, end_by_drain])
def test_players_come_back_through_the_proxy(site: Make, end: Callable[[Site, int], None]) -> None:
    """The instance where the players are ends: they resume at another, with every event; nothing that was acknowledged
    is lost. It comes back and the other one ends: the same."""
    here = site(INSTANCES)
    here.make_room("r")
    ended = 0
    for _ in range(2):
        home, players = here.crowd()
        ended += players
        end(here, home)
        here.goes_on()
        here.start_again(home)
        here.goes_on()
    here.check()
    assert sum(player.resumed for player in here.players) >= ended


def test_a_returned_backend_is_one_room_with_its_stand_in(site: Make) -> None:
    """The killed instance comes back: who is at the stand-in stays there, newcomers are sent to the returned one; what
    one says the others hear, in one order."""
    here = site(3)
    here.make_room("r")
    home = here.home()
    here.kill(home)
    here.goes_on()
    here.start_again(home)
    eve: list[WsClient] = []

    def newcomer_is_at_the_returned_one() -> bool:
        """Connects until the proxy has noticed that it is back."""
        for client in eve:
            client.close()
        eve[:] = [WsClient(here.proxy.address, room_id="r", player_id="eve", token="e" * 22)]
        eve[0].expect("welcome")
        return here.websockets()[home] == 1

    try:
        eventually(newcomer_is_at_the_returned_one)
        before = eve[0].welcome["seq"]
        seq = eve[0].do("message", {"n": "from the returned one"})["seq"]
        here.goes_on()
        eve[0].until_seq(eve[0].do("state")["seq"])
        assert here.websockets()[home] == 1, "the others stayed where they were"
    finally:
        for client in eve:
            client.close()
    here.check()
    seqs = [event["seq"] for event in eve[0].events]
    assert seqs == list(range(before + 1, before + 1 + len(seqs))), "in one order, without a hole"
    said = {event["data"]["player_id"] for event in eve[0].events if event["type"] == "message"}
    assert said == {"eve", *(player.name for player in here.players)}
    for player in here.players:
        assert (seq, "message", "from the returned one") in player.got
