"""The bot of docs/python-client.md plays."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.fakes import PATIENCE, Listener, eventually

from roomkit.server import Server

PAGE = Path(__file__).parents[2] / "docs" / "python-client.md"


def test_the_bot_of_the_page_plays_a_round(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """Two of them, word for word as it stands there, against the real server: they get ready, the host starts, both
    greet, and both have the results when the round is over."""
    names: dict[str, Any] = {}
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    exec(compile(code, str(PAGE), "exec"), names)
    room = server.rooms.get_room("room")
    heard = Listener()
    room.subscribe(heard)
    with ThreadPoolExecutor(2) as pool:
        bots = [pool.submit(names["play_a_round"], server.url, "room", name) for name in ("amy", "bob")]
        heard.wait(lambda told: told.types.count("message") == 2)
        room.finish_game(None, {"amy": 3, "bob": 5})
        assert [bot.result(PATIENCE) for bot in bots] == [{"amy": 3, "bob": 5}] * 2
    said = [event.data["data"]["text"] for event in heard.events if event.type == "message"]
    assert sorted(said) == ["good luck from amy", "good luck from bob"]
    assert "bob says good luck from bob" in capsys.readouterr().out
    eventually(lambda: not any(player.connected for player in room.get_players()))
