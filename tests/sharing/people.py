"""Who plays in a storm: by WebSockets at whichever instance takes them, and by REST. Each has its Story."""

from __future__ import annotations

import http.client
import json
import random
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from stories import Story
from support.fakes import PATIENCE
from support.ws import Closed, HandshakeFailed, WsClient

#: How connections may end, and what operations may be refused with, whatever happens to instances and store.
CODES = frozenset({1006, 1012, 4013})
ERRORS = frozenset({"room_busy", "shutting_down", "backend_unavailable"})
_UNKNOWN = "backend_unavailable"  # nobody knows whether it was carried out
_PAUSE = 0.03  # seconds between two operations: a client may send sixty messages a second


class End:
    """Of a storm: when everybody says a last word, or (``gave_up``) just goes."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.gave_up = False
        self._deadline = float("inf")

    def come(self, *, give_up: bool = False) -> None:
        """Now."""
        self.gave_up = give_up
        self._deadline = 0.0 if give_up else time.monotonic() + PATIENCE
        self.over.set()

    def missed(self) -> bool:
        """Whether it is too late for a last word."""
        return time.monotonic() > self._deadline


class Person(Story):
    """Plays in one room over WebSockets.

    Args:
        where: the port for its nth connection. patience: seconds that it waits for anything. careless: how likely it
            is to lose its connection, each time that it says something.

    Attributes:
        refused: its operations that were refused, by name, with the code; not those of which nobody knows.
        acks: the moments at which it was acknowledged something. lose: set: it loses its connection now.
    """

    def __init__(
        self,
        room_id: str,
        name: str,
        where: Callable[[int], int],
        end: End,
        patience: float,
        seed: str,
        careless: float = 0.0,
    ) -> None:
        super().__init__(room_id, name)
        self.refused: dict[str, str] = {}
        self.acks: list[float] = []
        self.lose = threading.Event()
        self.codes: set[int] = set()
        self.lost = 0  # connections
        self._token = secrets.token_urlsafe(16)
        self._where = where
        self._end = end
        self._patience = patience
        self._random = random.Random(seed)
        self._careless = careless
        self._sent = 0
        self._waiting: dict[str, int] = {}
        self.thread = threading.Thread(target=self._run, name=f"person-{name}", daemon=True)

    def _run(self) -> None:
        turn = 0
        while not self._end.missed():
            try:
                with self._connect(turn) as client:
                    done = self._play(client)
            except Closed as closed:
                self.codes.add(closed.code)
                done = False
            except (OSError, HandshakeFailed):  # refused; or frozen: its kernel goes on to take what is sent
                done = False
            if done:
                return
            turn += 1
            self.lost += 1
            self._waiting.clear()
            threading.Event().wait(_PAUSE)  # before the next try
        if not self._end.gave_up:
            self.wrong.append(f"{self.name} could not come back in the end")

    def _connect(self, turn: int) -> WsClient:
        return WsClient(
            ("127.0.0.1", self._where(turn)),
            room_id=self.room_id,
            player_id=self.name,
            token=self._token,
            patience=self._patience,
            **self.known,
        )

    def _play(self, client: WsClient) -> bool:
        """Until all is over (True), or it has lost its connection."""
        first = client.recv_json()
        assert first["type"] == "welcome", first
        self.welcomed(first["data"])
        while not self._end.over.is_set():
            for _ in range(self._random.choice((1, 1, 1, 2, 6))):
                self._send(client)
            if self.lose.is_set() or self._random.random() < self._careless:  # what is under way is not known
                self.lose.clear()
                client.cut()
                return False
            self._listen(client)
            self._end.over.wait(self._random.choice((1, 1, 1, 8)) * _PAUSE)
        while not self._end.missed():  # the last word, by which everything before it is here
            name = self._send(client, "message")
            self._listen(client)
            if name in self.acked:
                return True
            threading.Event().wait(_PAUSE)
        return False

    def _send(self, client: WsClient, kind: str | None = None) -> str:
        self._sent += 1
        name = f"{self.name}.{self._sent}"
        self._waiting[name] = self._sent
        if kind is None:
            kind = self._random.choice(("message", "message", "message", "update_settings"))
        client.send(kind, {"n": name} if kind == "message" else {"settings": {self.name: name}}, id=name)
        return name

    def _listen(self, client: WsClient) -> None:
        """Until all is answered that is under way."""
        while self._waiting:
            self.take_message(client.recv_json())

    def take_message(self, message: dict[str, Any]) -> None:
        """Anything that came after the welcome."""
        if "seq" in message:
            self.hear(message)
            return
        kind, data, name = message["type"], message["data"], message.get("id", "")
        if kind not in ("ack", "error") or self._waiting.pop(name, None) is None:
            self.wrong.append(f"{self.name} was told something odd: {message}")
        elif kind == "error":
            if data["code"] not in ERRORS:
                self.wrong.append(f"{name} was refused with {data['code']}: {data['message']}")
            if data["code"] != _UNKNOWN:
                self.refused[name] = data["code"]
        else:
            self.acked[name] = data["seq"]
            self.acks.append(time.monotonic())
            if data["seq"] > self.seq:
                self.wrong.append(f"{name} was acknowledged with {data['seq']} when {self.name} had {self.seq}")


class Caller:
    """Reserves seats by REST, each for somebody else, who never comes.

    Attributes: as of a Person; by ``join NAME``, with the room that it was.
    """

    def __init__(self, room_ids: list[str], where: Callable[[int], int], end: End, patience: float) -> None:
        self.acked: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self.wrong: list[str] = []
        self._room_ids = room_ids
        self._where = where
        self._end = end
        self._patience = patience
        self.thread = threading.Thread(target=self._run, name="caller", daemon=True)

    def _run(self) -> None:
        turn = 0
        while not self._end.over.wait(0.2):
            turn += 1
            with suppress(OSError, http.client.HTTPException, ValueError):
                self._call(turn, self._room_ids[turn % len(self._room_ids)], f"guest-{turn}")

    def _call(self, turn: int, room_id: str, guest: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._where(turn), timeout=self._patience)
        try:
            body = json.dumps({"player_id": guest})
            connection.request("POST", f"/api/rooms/{room_id}/join", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
        finally:
            connection.close()
        if response.status == 200:
            self.acked[f"join {guest}"] = room_id
            return
        code = answer["error"]["code"]
        if code not in ERRORS | {"room_full"}:
            self.wrong.append(f"{guest} could not join {room_id}: {answer}")
        if code != _UNKNOWN:
            self.refused[f"join {guest}"] = code
