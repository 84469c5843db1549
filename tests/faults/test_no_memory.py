"""Memory comes to its end at every single step of an operation and of a delivery, one after the other.

Each object that the room's code makes, and each function in C that it calls, is a place where Python may raise
MemoryError. The tests count them, and have the first fail, then the second, and so on, each time in a fresh room.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support.bench import Bench
from support.fakes import eventually

import roomkit
from roomkit import Room, RoomConfig, fanout
from roomkit.core import state as state_module
from roomkit.runtime import Runtime
from roomkit.server import Server
from roomkit.testing import CopyOfState, InlineBroadcaster, ManualClock, RecordingConnection

_ROOT = Path(roomkit.__file__).parent
_FILES = {str(path) for path in (_ROOT / "core").glob("*.py")} | {
    str(_ROOT / name) for name in ("fanout.py", "delivery.py", "room.py", "concurrency/eventqueue.py")
}
_FILES.add(__file__)  # make_event
#: What asks for no memory, or for a few bytes that Python has at hand.
_ASKS_FOR_NONE = {"acquire", "release", "__enter__", "__exit__", "notify_all", "setprofile"}
_ASKS_FOR_NONE |= {"len", "get", "get_ident", "values", "clear", "pop", "discard", "isascii", "is_integer"}


class Memory:
    """Ends at the given call, counted from 1, of those that the room's code makes in this thread; once."""

    def __init__(self, ends_at: int) -> None:
        self.calls = 0
        self.where = ""
        self._ends_at = ends_at

    def __enter__(self) -> Memory:
        sys.setprofile(self._on_call)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.setprofile(None)

    def _on_call(self, frame: FrameType, event: str, function: Any) -> None:
        name = frame.f_code.co_name if event == "call" else function.__name__ if event == "c_call" else ""
        if event == "call" and name not in ("__init__", "make_event"):  # that costs nothing but a frame
            return
        if name and name not in _ASKS_FOR_NONE and frame.f_code.co_filename in _FILES:
            self.calls += 1
            if self.calls == self._ends_at:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {name}"
                sys.setprofile(None)
                raise MemoryError


def make_event(*arguments: Any, **more: Any) -> roomkit.Event:
    """In the place of the class, which is written in C, so that its calls are seen."""
    return roomkit.Event(*arguments, **more)


@pytest.fixture(autouse=True)
def events_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "Event", make_event)


class Follower(RecordingConnection):
    """A client: it follows the events, and asks for what a gap tells of. It takes no event whose turn it is not."""

    def __init__(self, room: Room) -> None:
        super().__init__()
        self._room = room
        self._read = 0
        self.copy: CopyOfState | None = None

    def follow(self, where: str) -> dict[str, Any]:
        """Take what has come; the copy of the state."""
        for message in self.messages[self._read :]:
            if message["type"] == "welcome":
                self.copy = CopyOfState(message["data"]["state"])
                continue
            assert self.copy is not None, f"no welcome, {where}"
            if message["type"] == "gap":
                missed = self._room.get_events(self.copy.seq)
                if missed is None:
                    self.copy = CopyOfState(self._room.get_state().to_dict())
                else:
                    self.copy.apply_all(missed)
                continue
            first = message["seq"] - message.get("conflated", 0)
            assert first <= self.copy.seq + 1, f"{message} after {self.copy.seq}: lost without a word, {where}"
            self.copy.apply(message)
        self._read = len(self.messages)
        assert self.copy is not None, f"no welcome, {where}"
        return self.copy.to_dict()


class Scene:
    """A room with amy, the host, and bob, both connected, and a seat for a third. Drained by hand."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        runtime = Runtime(self.clock, self.clock.wall)
        config = RoomConfig(busy_timeout=0, max_players=3, min_players=2, reconnect_grace=100)
        self.room = Room("room", config, runtime=runtime, broadcaster=InlineBroadcaster(by_hand=True))
        self.amy, self.bob = Follower(self.room), Follower(self.room)
        self.token = ""
        for name, connection in (("amy", self.amy), ("bob", self.bob)):
            self.token = self.room.join(name, connection).player.token or ""
        self.drain()

    def drain(self) -> None:
        self.room.drain()

    def play(self) -> None:
        for name in ("amy", "bob"):
            self.room.set_player_ready(name)
        self.room.start_game("amy")
        self.drain()

    def come_back(self) -> None:
        """bob, over another connection, while the first one is there still."""
        again = Follower(self.room)
        self.room.join("bob", again, token=self.token, epoch=self.room.get_state().epoch, seq=2)

    def expire(self) -> None:
        self.room.remove_connection("bob")
        self.drain()
        self.clock.advance(100)
        self.room.expire()

    def say_twice(self) -> None:
        for n in range(2):
            self.room.send_message("amy", {"n": n}, key="where")


Act = Callable[[Scene], object]


def playing(act: Act) -> Act:
    """In a game that was started before."""
    act.__dict__["first"] = Scene.play
    return act


ACTS: dict[str, Act] = {
    "add_player": lambda scene: scene.room.add_player("cat", "Cat"),
    "join": lambda scene: scene.room.join("cat", Follower(scene.room)),
    "come back": Scene.come_back,
    "add_connection": lambda scene: scene.room.add_connection("bob", Follower(scene.room)),
    "remove_connection": lambda scene: scene.room.remove_connection("bob"),
    "the host leaves": lambda scene: scene.room.remove_player("amy"),
    "kick": lambda scene: scene.room.kick("amy", "bob", ban=True),
    "ready": lambda scene: scene.room.set_player_ready("bob"),
    "song": lambda scene: scene.room.select_song("amy", "7"),
    "settings": lambda scene: scene.room.update_settings("amy", {"speed": 2}),
    "finish": playing(lambda scene: scene.room.finish_game("amy", {"won": "bob"})),
    "leave a game": playing(lambda scene: scene.room.remove_player("bob")),
    "close": lambda scene: scene.room.close("enough", "amy"),
    "message": lambda scene: scene.room.send_message("amy", {"text": "hello"}),
    "message with a key": Scene.say_twice,
    "lock": lambda scene: scene.room.lock("amy"),
    "metadata": lambda scene: scene.room.set_metadata({"kind": "odd"}, "amy"),
    "expire": Scene.expire,
    "read": lambda scene: scene.room.get_state(),
}


def prepared(act: Act) -> Scene:
    scene = Scene()
    getattr(act, "first", lambda scene: None)(scene)
    scene.room.get_state()  # so that a change makes the next snapshot itself
    return scene


def failures(act: Act, run: Callable[[Scene, Memory], None]) -> Iterator[tuple[Scene, str]]:
    """``run`` in a fresh scene for each call in it, which fails; the scene afterwards, and where it was."""
    for ends_at in range(1, 2000):
        scene = prepared(act)
        memory = Memory(ends_at)
        run(scene, memory)
        if not memory.where:
            return
        yield scene, f"at call {ends_at}: {memory.where}"
    raise AssertionError("it never came to its end")


def check_whole(scene: Scene, where: str) -> None:
    """Nothing is held, nothing is torn, the next operation works, and everybody knows what there is to know."""
    room, machine = scene.room, scene.room._machine
    queue = room._fanout.queue
    assert queue._reserved == 0, where
    # A connection whose join or delivery failed is gone, as the server sees to.
    for player_id in ("amy", "bob", "cat"):
        if player_id not in room.connections():
            room.remove_connection(player_id)
    assert machine.connected_count == sum(seat.connected for seat in machine.seats.values()), where
    state = room.get_state()
    assert state.seq == machine.seq == room._history.last_seq, where
    assert state.host is None if not state.players else state.get_player(str(state.host)), where
    events = room.get_events(0)
    if events is not None:
        assert [event.seq for event in events] == list(range(1, state.seq + 1)), where
        copy = CopyOfState(EMPTY)
        copy.apply_all(events)
        assert copy.to_dict() == {**state.to_dict(), **{key: EMPTY[key] for key in ("epoch", "created_at")}}, where
    if not machine.closed:
        room.send_message(None, {"after": "all"})
        assert room.get_state().seq == state.seq + 1, where
    scene.drain()
    for name, connection in room.connections().items():
        if isinstance(connection, Follower) and connection.closed:  # its session says so
            room.remove_connection(name, connection)
    scene.drain()
    now = room.get_state().to_dict()
    for name, connection in room.connections().items():
        if isinstance(connection, Follower):
            assert connection.follow(where) == now, f"{name}, {where}"


EMPTY = Room("room", RoomConfig(max_players=3, min_players=2)).get_state().to_dict()


@pytest.mark.parametrize("name", ACTS)
def test_an_operation_changes_all_or_nothing(name: str) -> None:
    """State, seq, history and queue are as they were, or have all gone on; nothing stays reserved or locked, and the
    next operation works and tells everybody."""
    act = ACTS[name]

    def run(scene: Scene, memory: Memory) -> None:
        try:
            with memory:
                act(scene)
        except MemoryError:
            pass

    for scene, where in failures(act, run):
        check_whole(scene, where)


@pytest.mark.parametrize("name", ACTS)
def test_what_could_not_be_delivered_is_announced(name: str) -> None:
    """While the broadcaster encodes, frames and hands out: whoever misses an event hears of a gap before the next one,
    or loses the connection, and so comes back; nobody takes one event for the next."""
    act = ACTS[name]

    def run(scene: Scene, memory: Memory) -> None:
        act(scene)
        with memory:
            try:
                scene.drain()
            except MemoryError:  # the broadcaster's thread logs it and goes on
                pass

    for scene, where in failures(act, run):
        check_whole(scene, where)


def test_a_join_for_which_there_is_no_memory_leaves_no_seat_connected(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In the server: the seat is taken, and then there is no memory for the connection's place in the room. The client
    is told to come back (1011), the seat is dropped like any other whose connection is lost, and the client comes back
    to it."""
    server: Server = bench.serve()
    room = server.rooms.create_room("room")
    failed: list[str] = []
    real = fanout.Fanout.attach_locked

    def attach(self: Any, player_id: str, *arguments: Any, **more: Any) -> None:
        if not failed:
            failed.append(player_id)
            raise MemoryError
        real(self, player_id, *arguments, **more)

    monkeypatch.setattr(fanout.Fanout, "attach_locked", attach)
    token = "t" * 22
    refused = bench.connect(server, player_id="amy", token=token)
    assert refused.wait_closed() == 1011
    eventually(lambda: not room.get_players()[0].connected)
    assert server.tally.get("session_errors") == 1
    back = bench.join(server, player_id="amy", token=token)
    assert back.do("message", {"still": "here"})
    assert [player.connected for player in room.get_players()] == [True]
    assert "a session failed" in caplog.text
