"""examples/bot.py: a program with the Python client, in a room of the chat example."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support.fakes import PATIENCE
from support.pages import example
from support.rest import request
from support.serve import ROOT, ServeProcess

from examples.bot import answer_to
from roomkit.client import RoomClient


@pytest.fixture(scope="module")
def chat() -> Iterator[ServeProcess]:
    with example("chat/server.py") as process:
        yield process


def test_it_answers_in_the_room_and_leaves(chat: ServeProcess) -> None:
    """Only what is asked of it, once each, and its seat is free when it has ended."""
    request(("127.0.0.1", chat.port), "POST", "/api/rooms", {"id": "dice"})
    command = [sys.executable, "examples/bot.py", chat.url, "dice"]
    with (
        RoomClient(chat.url, "dice", "amy") as amy,
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}) as bot,
    ):
        try:
            heard = amy.events(timeout=PATIENCE)
            amy.wait_for(lambda state: state.get_player("dicebot") is not None, PATIENCE)
            amy.send_message({"text": "hello"})
            amy.send_message({"dice": 7})
            amy.send_message({"text": "/roll 3d6"})
            said = next(event for event in heard if event.type == "message" and event.data["player_id"] == "dicebot")
            assert re.fullmatch(r"[1-6] \+ [1-6] \+ [1-6] = \d+", said.data["data"]["text"])
            bot.send_signal(signal.SIGTERM)
            assert bot.wait(PATIENCE) == 0
            amy.wait_for(lambda state: state.get_player("dicebot") is None, PATIENCE)
        finally:
            bot.kill()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("/roll", "[1-6]"),
        ("/roll d20", r"\d+"),
        ("/roll 2d4", r"[1-4] \+ [1-4] = [2-8]"),
        ("/roll 0d6", "I have no .*"),
    ],
)
def test_dice(text: str, answer: str) -> None:
    for seed in range(20):
        assert re.fullmatch(answer, answer_to(text, random.Random(seed)) or "")


@pytest.mark.parametrize("text", ["roll", "/roll 3", "/roll 3d6 please", "/roll 999d6", "", None, {"text": "/roll"}])
def test_what_is_no_question_gets_no_answer(text: object) -> None:
    assert answer_to(text, random.Random(1)) is None
