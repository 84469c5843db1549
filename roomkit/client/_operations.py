"""The operations of a client, in the form that does not block: each sends one message and gives a future."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

import msgspec

from roomkit.core.events import Event
from roomkit.core.snapshot import RoomState
from roomkit.errors import InvalidMessage

T = TypeVar("T")
Data = dict[str, Any]


def _mapping(value: Any) -> dict[Any, Any]:
    """Settings and metadata of a state are read-only views; they may be sent like any dict."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


_encode = msgspec.json.Encoder(enc_hook=_mapping).encode


class Operation(Generic[T]):
    """A message that wants an answer, from the call to its end.

    Args:
        kind: the message's type. message_id: its id. value: what the answer's data means to the caller.
        passes_hold: its answer does not wait until a gap is filled.

    Attributes:
        frame: the message as it is sent: made at the call, for the caller may go on changing the data.
        deadline, sent_at: of the client's clock; None: not yet.

    Raises:
        InvalidMessage: the data has no JSON form.
    """

    def __init__(
        self,
        kind: str,
        message_id: str,
        data: Mapping[str, Any] | None,
        value: Callable[[Data], T],
        *,
        key: str | None = None,
        passes_hold: bool = False,
    ) -> None:
        self.kind = kind
        self.id = message_id
        self.passes_hold = passes_hold
        self.value = value
        self.deadline = 0.0
        self.sent_at: float | None = None
        message: Data = {"type": kind, "id": message_id}
        if data is not None:
            message["data"] = data
        if key is not None:
            message["key"] = key
        try:
            self.frame = _encode(message).decode()
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidMessage(f"the data of {kind} has no JSON form: {error}") from None
        self.future: Future[T] = Future()
        self.future.set_running_or_notify_cancel()  # it cannot be cancelled: what is sent is sent

    def answered(self, data: Data) -> Callable[[], None]:
        """The server did it. Returns what completes the future."""
        try:
            value = self.value(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            return self.failed(InvalidMessage(f"the server's answer to {self.kind} is not of the protocol: {error!r}"))
        return lambda: self.future.set_result(value)

    def failed(self, error: Exception) -> Callable[[], None]:
        """The server refused, or no answer will come. Returns what completes the future."""
        return lambda: self.future.set_exception(error)


def _seq(data: Data) -> int:
    seq: int = data["seq"]
    return seq


def _room_id(data: Data) -> str:
    room_id: str = data["room_id"]
    return room_id


def _events(data: Data) -> list[Event] | None:
    events = data.get("events")
    return None if events is None else [Event.from_dict(event) for event in events]


class Operations:
    """``client.submit``: the operations as futures, for callers that must not or need not wait.

    Each returns at once a ``concurrent.futures.Future`` with what the client's method of the same name returns, or the
    error that it raises. What cannot be sent at all (data without a JSON form: InvalidMessage) is raised here. A
    done-callback of a future runs on the client's thread, must be quick, and must not call what blocks
    (``WouldDeadlock``).

    Thread safety: full. Nothing blocks.
    """

    def __init__(self, submit: Callable[..., Future[Any]]) -> None:
        self._submit = submit

    def ready(self, ready: bool = True) -> Future[int]:
        """See RoomClient.ready."""
        return self._submit("ready", {"ready": ready}, _seq)

    def select_song(self, song_id: str) -> Future[int]:
        """See RoomClient.select_song."""
        return self._submit("select_song", {"song_id": song_id}, _seq)

    def update_settings(self, settings: Mapping[str, Any]) -> Future[int]:
        """See RoomClient.update_settings."""
        return self._submit("update_settings", {"settings": settings}, _seq)

    def start_game(self) -> Future[int]:
        """See RoomClient.start_game."""
        return self._submit("start_game", None, _seq)

    def finish_game(self, results: Mapping[str, Any] | None = None) -> Future[int]:
        """See RoomClient.finish_game."""
        return self._submit("finish_game", None if results is None else {"results": results}, _seq)

    def rematch(self) -> Future[str]:
        """See RoomClient.rematch."""
        return self._submit("rematch", None, _room_id)

    def send_message(self, data: Mapping[str, Any], *, key: str | None = None) -> Future[int]:
        """See RoomClient.send_message."""
        return self._submit("message", data, _seq, key=key)

    def perform(self, operation: str, data: Mapping[str, Any] | None = None) -> Future[int]:
        """See RoomClient.perform."""
        return self._submit("perform", {"operation": operation, "data": {} if data is None else data}, _seq)

    def kick(self, player_id: str, *, ban: bool = False) -> Future[int]:
        """See RoomClient.kick."""
        return self._submit("kick", {"player_id": player_id, "ban": ban}, _seq)

    def lock(self, locked: bool = True) -> Future[int]:
        """See RoomClient.lock."""
        return self._submit("lock", {"locked": locked}, _seq)

    def close_room(self, reason: str | None = None) -> Future[int]:
        """See RoomClient.close_room."""
        return self._submit("close", None if reason is None else {"reason": reason}, _seq)

    def refresh(self) -> Future[RoomState]:
        """See RoomClient.refresh."""
        return self._submit("state", None, None)

    def events_after(self, seq: int) -> Future[list[Event] | None]:
        """See RoomClient.events_after."""
        return self._submit("state", {"after": seq}, _events)

    def ping(self) -> Future[float]:
        """See RoomClient.ping."""
        return self._submit("ping", None, None)
