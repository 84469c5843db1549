"""A player in a process of its own: ``player.py ADDRESS ROOM PLAYER [OPTIONS AS JSON]``.

It prints what happens as lines of JSON, ``[kind, data]``: each event, each change of the connection, the welcome. For
each line of JSON on its standard input, ``[operation, argument, ...]``, it does that and prints ``["done", answer]``
with the state's number, or ``["failed", code]``.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from roomkit.client import ClientError, RoomClient
from roomkit.core.events import Event
from roomkit.errors import RoomkitError


def say(kind: str, data: Any) -> None:
    """One line, in one write: the callbacks' thread and the main thread share standard output."""
    sys.stdout.write(json.dumps([kind, data]) + "\n")
    sys.stdout.flush()


def tell_event(event: Event) -> None:
    say("event", {"seq": event.seq, "type": event.type, "data": event.data})


def main() -> None:
    address, room_id, player_id, *more = sys.argv[1:]
    options = json.loads(more[0]) if more else {}
    client = RoomClient(address, room_id, player_id, base_delay=0.05, max_delay=0.2, **options)
    client.on("event", tell_event)
    client.on("connection", lambda change: say("connection", [change.state, change.code]))
    with client:
        say("in", {"token": client.token, "state": client.state and client.state.to_dict()})
        for line in sys.stdin:
            operation, *arguments = json.loads(line)
            try:
                if operation == "state":
                    assert client.state is not None
                    say("done", client.state.to_dict())
                else:
                    say("done", getattr(client, operation)(*arguments))
            except (RoomkitError, ClientError) as error:
                say("failed", str(error))


if __name__ == "__main__":
    main()
