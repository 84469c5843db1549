"""RoomSession: a player's WebSocket. It turns messages into operations on the room, and answers them.

Everything here runs on the I/O thread that owns the room's connections, one message after the other. The room's events
go to the connection by way of the room's queue (``Room.drain``); the answers made here follow them in the same turn.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from roomkit.concurrency.worker import PoolFull
from roomkit.core import commands as c
from roomkit.core.events import encode_json, rfc3339
from roomkit.errors import CLOSE, InvalidMessage, InvalidTransition, RoomBusy, RoomkitError, close_code_for, close_name
from roomkit.room import Room
from roomkit.server import messages as m

if TYPE_CHECKING:
    from roomkit.server.app import Server
    from roomkit.server.websocket import WebSocketConnection

log = logging.getLogger("roomkit.session")

_MAX_BAD_MESSAGES = 20
_RETRY = 0.5


class JoinRequest(msgspec.Struct, frozen=True):
    """What the WebSocket's address says."""

    room_id: str
    player_id: str
    name: str | None = None
    token: str | None = None
    password: str | None = None
    epoch: str | None = None
    seq: int | None = None


class RoomSession:
    """See the module. One per connection.

    Thread safety: none; its connection's I/O thread only.
    """

    __slots__ = ("_bad_messages", "_connection", "_joined", "_request", "_server", "player_id", "room")

    def __init__(self, server: Server, room: Room, request: JoinRequest) -> None:
        self._server = server
        self._request = request
        self.room = room
        self.player_id = request.player_id
        self._joined = False
        self._bad_messages = 0
        self._connection: WebSocketConnection

    def on_open(self, connection: WebSocketConnection) -> None:
        """See websocket.Session: take the seat, or say why not."""
        self._connection = connection
        request = self._request
        self._joined = True  # also where the server fails in the middle of it: on_close() gives back what was taken
        self.room.submit_join(
            request.player_id,
            connection,
            self._not_let_in,
            name=request.name,
            token=request.token,
            password=request.password,
            epoch=request.epoch,
            seq=request.seq,
            greeting=self._server.greeting,
        )

    def _not_let_in(self, error: RoomkitError) -> None:
        self._joined = False
        code = close_code_for(error)
        self._server.tally.add("refused_joins", close_name(code))
        self._connection.close(code, str(error))

    def on_close(self, code: int, reason: str) -> None:
        """See websocket.Session: a lost connection is not a leave."""
        if self._joined:
            try:
                self.room.remove_connection(self.player_id, self._connection)
            except RoomBusy:
                self._connection.reactor.call_later(_RETRY, lambda: self.on_close(code, reason))

    def on_message(self, message: str | bytes) -> None:
        """See websocket.Session."""
        connection = self._connection
        if not isinstance(message, str):
            connection.close(CLOSE["unsupported_data"], "messages are JSON text")
            return
        if not self._joined:
            return
        within_rate = connection.spend()
        try:
            parsed = m.decode_message(message)
        except InvalidMessage as error:
            self._refuse(error.message_id, error)
            self._bad_messages += 1
            if self._bad_messages > _MAX_BAD_MESSAGES:
                connection.close(CLOSE["policy_violation"], "too many messages that are not of the protocol")
            return
        if not within_rate:
            self._reply_error(parsed.id, "limit_exceeded", "too many messages; this one was not carried out")
            return
        try:
            _HANDLERS[type(parsed)](self, parsed)
        except RoomkitError as error:
            self._refuse(parsed.id, error)

    # Operations that are one command.

    def _run(self, message_id: str | None, command: c.Command) -> None:
        room = self.room
        if room.shared:
            answer = None if message_id is None else partial(self._ack, message_id)
            room.submit(command, answer, partial(self._refuse, message_id))
        elif message_id is None:
            room.execute(command, wait=False)
        else:
            room.submit(command, partial(self._ack, message_id))

    def _ready(self, message: m.Ready) -> None:
        self._run(message.id, c.SetPlayerReady(self.player_id, message.data.ready))

    def _select_song(self, message: m.SelectSong) -> None:
        self._run(message.id, c.UpdateSettings(self.player_id, {"song_id": message.data.song_id}, song=True))

    def _update_settings(self, message: m.UpdateSettings) -> None:
        self._run(message.id, c.UpdateSettings(self.player_id, message.data.settings))

    def _start_game(self, message: m.StartGame) -> None:
        self._run(message.id, c.StartGame(self.player_id))

    def _finish_game(self, message: m.FinishGame) -> None:
        self._run(message.id, c.FinishGame(self.player_id, message.data.results))

    def _relay(self, message: m.Relay) -> None:
        self._run(message.id, c.SendMessage(self.player_id, message.data, message.key))

    def _perform(self, message: m.Perform) -> None:
        self._run(message.id, c.Perform(self.player_id, message.data.operation, message.data.data))

    def _kick(self, message: m.Kick) -> None:
        self._run(message.id, c.Kick(self.player_id, message.data.player_id, message.data.ban))

    def _lock(self, message: m.Lock) -> None:
        self._run(message.id, c.UpdateRoom(self.player_id, locked=message.data.locked))

    def _close(self, message: m.Close) -> None:
        self._run(message.id, c.Close(self.player_id, message.data.reason))

    def _leave(self, message: m.Leave) -> None:
        self._run(message.id, c.RemovePlayer(self.player_id))

    # The others.

    def _rematch(self, message: m.Rematch) -> None:
        status = self.room.status
        if status not in self.room.lifecycle.finished:
            raise InvalidTransition(self.room.id, str(status), "rematch")

        def transfer() -> None:
            self._server.rooms.transfer(self.room, self.player_id, answer=answer)

        def answer(room_id: str, seq: int) -> None:
            if message.id is not None:
                self._reply_ack(message.id, {"seq": seq, "room_id": room_id})

        if not self.room.shared:
            transfer()
            return
        try:  # the store is asked, for which nobody else is to wait
            self._server.listener.pool.submit(lambda: self._refusing(message.id, transfer))
        except PoolFull:
            raise RoomBusy("the server is busy; try again") from None

    def _refusing(self, message_id: str | None, operation: Callable[[], None]) -> None:
        """On a pool thread: the I/O thread tells of a refusal."""
        try:
            operation()
        except RoomkitError as error:
            refusal = error  # the name of an except clause ends with it
            self._connection.reactor.call(lambda: self._refuse(message_id, refusal))

    def _state(self, message: m.State) -> None:
        data: dict[str, Any] = {}
        events = None if message.data.after is None else self.room.get_events(message.data.after)
        state = self.room.get_state()
        data["seq"] = state.seq
        if events is not None:
            data["events"] = events
        else:
            data["state"] = state.to_dict()
        self.room.when_stored(lambda: self._reply_ack(message.id, data), partial(self._refuse, message.id))

    def _ping(self, message: m.Ping) -> None:
        self._reply_ack(message.id, {"time": rfc3339(self._server.wall_clock())})

    # Answers.

    def _ack(self, message_id: str, seq: int) -> None:
        self._reply_ack(message_id, {"seq": seq})

    def _reply_ack(self, message_id: str | None, data: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"type": "ack", "data": data}
        if message_id is not None:
            answer["id"] = message_id
        self._connection.reply(encode_json(answer))

    def _refuse(self, message_id: str | None, error: RoomkitError) -> None:
        self._server.tally.add("refused", error.code)
        self._reply_error(message_id, error.code, str(error))

    def _reply_error(self, message_id: str | None, code: str, sentence: str) -> None:
        answer: dict[str, Any] = {"type": "error", "data": {"code": code, "message": sentence}}
        if message_id is not None:
            answer["id"] = message_id
        self._connection.reply(encode_json(answer))


_HANDLERS: dict[type, Callable[[RoomSession, Any], None]] = {
    m.Ready: RoomSession._ready,
    m.SelectSong: RoomSession._select_song,
    m.UpdateSettings: RoomSession._update_settings,
    m.StartGame: RoomSession._start_game,
    m.FinishGame: RoomSession._finish_game,
    m.Rematch: RoomSession._rematch,
    m.Relay: RoomSession._relay,
    m.Perform: RoomSession._perform,
    m.Kick: RoomSession._kick,
    m.Lock: RoomSession._lock,
    m.Close: RoomSession._close,
    m.Leave: RoomSession._leave,
    m.State: RoomSession._state,
    m.Ping: RoomSession._ping,
}
