"""A guest in the chat who throws dice: the Python client in a program of its own.

    python examples/chat/server.py &
    python examples/bot.py http://127.0.0.1:8000 main

Say "/roll" in the room, or "/roll 3d6". The bot comes back by itself when the server was restarted or the network gone,
and answers what it missed. Ctrl-C or SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import random
import re
import signal

from roomkit import Event, RoomkitError
from roomkit.client import RoomClient

ROLL = re.compile(r"/roll(?:\s+(\d{1,2})?d(\d{1,3}))?\s*")


def answer_to(text: object, dice: random.Random) -> str | None:
    """What the bot says to a message; None: nothing."""
    asked = ROLL.fullmatch(text) if isinstance(text, str) else None
    if asked is None:
        return None
    count, sides = int(asked[1] or 1), int(asked[2] or 6)
    if not count or not sides:
        return "I have no such dice"
    thrown = [dice.randint(1, sides) for _ in range(count)]
    return f"{' + '.join(map(str, thrown))} = {sum(thrown)}" if count > 1 else str(thrown[0])


class Bot(RoomClient):
    """One client in one room. Callbacks run on the client's own thread, one after the other."""

    def on_message(self, data: dict[str, object], event: Event) -> None:
        """Somebody said something, the bot itself included."""
        said = data["data"]
        answer = answer_to(said.get("text") if isinstance(said, dict) else None, random.Random())  # dice  # nosec B311
        if answer is not None and data["player_id"] != self.player_id:
            try:
                self.send_message({"text": answer})
            except RoomkitError as refused:  # too many messages, or no answer in time: the dice can be thrown again
                print(f"not said: {refused}", flush=True)


def main() -> None:
    """Play until a signal comes."""
    parser = argparse.ArgumentParser(description="A guest in a room who throws dice.")
    parser.add_argument("url", help="the server, http://127.0.0.1:8000")
    parser.add_argument("room", help="the room's id")
    parser.add_argument("--name", default="Dicebot", help="what others see (default: %(default)s)")
    given = parser.parse_args()
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # before there is any thread; this one waits for them, below
    with Bot(given.url, given.room, "dicebot", name=given.name) as bot:
        print(f"{given.name} is in {bot.room_id}", flush=True)
        signal.sigwait(ends)
        bot.leave()


if __name__ == "__main__":
    main()
