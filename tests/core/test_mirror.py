"""A machine that follows another's events shows what that one shows, whatever was done to it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomkit import Event, Lifecycle, RoomConfig, RoomkitError, RoomState
from roomkit.core import commands as c
from roomkit.core.events import EVENT_TYPES, encode_json
from roomkit.core.lifecycle import GAME, Operation
from roomkit.core.mirror import advance
from roomkit.core.record import dump, load, load_events
from roomkit.core.state import RoomMachine

AUCTION = Lifecycle(
    "auction",
    {
        "open": {
            "add_player": "open",
            "remove_player": [("empty", "sold"), "open"],
            "select_song": "open",
            "bid": [("full", "sold"), "open"],
            "close": "closed",
        },
        "sold": {"remove_player": "sold", "reopen": "open", "close": "closed"},
        "closed": {},
    },
    finished=("sold",),
    operations={"bid": Operation(check=lambda state, player_id, data: {"price": data.get("price")})},
)
LIFECYCLES = {known.name: known for known in (GAME, AUCTION)}
CONFIG = RoomConfig(max_players=3, min_players=2, reconnect_grace=5.0, empty_ttl=9.0, finished_ttl=7.0)

players = st.sampled_from(["amy", "bob", "cat", "dan"])
askers = st.none() | players
values = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3), lambda v: st.lists(v) | v)
keys = st.sampled_from(["a", "b", "song_id", "\u00fc"])
pairs = st.dictionaries(keys, values, max_size=3)
commands = st.one_of(
    st.builds(lambda p: c.AddPlayer(p, p.title(), f"token-{p}"), players),
    st.builds(
        lambda p, here: c.Join(p, p.title(), f"token-{p}", f"token-{p}", None, here, 4.0), players, st.booleans()
    ),
    st.builds(c.RemovePlayer, players),
    st.builds(c.Kick, askers, players, st.booleans()),
    st.builds(c.SetPlayerReady, players, st.booleans()),
    st.builds(c.SetPlayerReady, players, st.just(True)),
    st.builds(lambda p, song: c.UpdateSettings(p, {"song_id": song}, song=True), askers, st.sampled_from("xy")),
    st.builds(c.UpdateSettings, askers, pairs),
    st.builds(c.StartGame, askers),
    st.builds(c.FinishGame, askers, st.none() | pairs),
    st.builds(lambda p: c.Close(p, "over"), askers),
    st.builds(c.SendMessage, askers, pairs),
    st.builds(
        lambda p, price: c.Perform(p, "bid", {} if price is None else {"price": price}),
        askers,
        st.none() | st.integers(0, 3),
    ),
    st.builds(lambda p: c.Perform(p, "reopen", {}), askers),
    st.builds(c.UpdateRoom, askers, st.none() | st.booleans(), st.none() | st.booleans(), st.none() | pairs),
    st.builds(c.Connect, players),
    st.builds(c.Disconnect, players),
    st.builds(lambda p: c.Transfer(p, "next"), askers),
    st.just(c.ExpireNext()),
)


def copy_of(machine: RoomMachine, now: float) -> RoomMachine:
    """The machine as another instance finds it in the store."""
    return load(dump(machine, now, now), LIFECYCLES, now, now)


@given(
    lifecycle=st.sampled_from([GAME, AUCTION]),
    before=st.lists(commands, max_size=15),
    after=st.lists(st.tuples(commands, st.sampled_from([0.001, 0.25, 3.0])), max_size=25),
)
def test_a_mirror_shows_what_the_owner_shows(
    lifecycle: Lifecycle, before: list[c.Command], after: list[tuple[c.Command, float]]
) -> None:
    """From any moment of any room on: after the events of each command it is equal to the room, and at every single
    event the machine shows the state that goes with it.
    """
    now = 1_700_000_000.125
    owner = RoomMachine("r", "epoch", now, now, CONFIG, lifecycle, metadata={"mode": "duel"})
    for player in ("amy", "bob"):
        owner.apply(c.AddPlayer(player, player, f"token-{player}"), now, now)
    for command in before:
        attempt(owner, command, now)
    mirror = copy_of(owner, now)
    state = mirror.snapshot()
    assert state == owner.snapshot()
    for command, seconds in after:
        now += seconds
        for event in attempt(owner, command, now):
            [heard] = load_events([encode_json(event)], event.seq)
            state = advance(mirror, state, heard)
            assert mirror.snapshot().to_dict() == state.to_dict()
            assert mirror.closed is (mirror.status == lifecycle.closed)
        assert state.to_dict() == owner.snapshot().to_dict()
        assert mirror.connected_count == owner.connected_count
        assert mirror.status in lifecycle.statuses


def attempt(machine: RoomMachine, command: c.Command, now: float) -> list[Event]:
    """The command's events; none where it is refused."""
    try:
        return machine.apply(command, now, now)
    except RoomkitError:
        return []


def in_play() -> tuple[RoomMachine, RoomState]:
    """A mirror of a room in which much has happened, and its state."""
    owner = RoomMachine("r", "epoch", 0.0, 0.0, CONFIG, AUCTION)
    for command in (
        c.AddPlayer("amy", "Amy", "token-amy"),
        c.Join("bob", "Bob", "token-bob"),
        c.UpdateSettings(None, {"a": 1}),
    ):
        owner.apply(command, 1.0, 1.0)
    mirror = copy_of(owner, 1.0)
    return mirror, mirror.snapshot()


def test_a_status_that_the_lifecycle_does_not_have_is_refused() -> None:
    """An event of another table than the one that is known here: it is an error, and the mirror is as it was."""
    mirror, state = in_play()
    event = Event("room_status", state.seq + 1, "", {"status": "unheard of", "previous": "open"})
    with pytest.raises(ValueError, match="lifecycle 'auction' has no status 'unheard of'"):
        advance(mirror, state, event)
    assert mirror.snapshot() == state


def test_a_mirror_knows_no_secrets() -> None:
    """Whoever came after the record was read has a seat without a token."""
    mirror, state = in_play()
    data = {"player": {"id": "cat", "name": "Cat", "ready": False, "connected": True, "joined_at": state_time()}}
    after = advance(mirror, state, Event("player_joined", state.seq + 1, state_time(), data))
    assert [player.id for player in after.players] == ["amy", "bob", "cat"]
    assert mirror.seats["cat"].token == ""
    assert mirror.seq == after.seq == state.seq + 1


def state_time() -> str:
    return "2024-03-27T20:00:00.123Z"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = (
    "player",
    "player_id",
    "ready",
    "ready_cleared",
    "song_id",
    "settings",
    "status",
    "results",
    "locked",
    "private",
    "metadata",
    "room_id",
)
datas = st.dictionaries(st.sampled_from(_FIELDS), json_values) | st.builds(
    lambda player: {"player": player},
    st.fixed_dictionaries(
        {
            "id": st.just("cat") | json_values,
            "name": json_values,
            "ready": st.booleans() | json_values,
            "connected": st.booleans() | json_values,
            "joined_at": st.just(state_time()) | json_values,
        }
    ),
)


@given(kind=st.sampled_from(sorted(EVENT_TYPES)), timestamp=st.just(state_time()) | st.text(max_size=30), data=datas)
def test_what_is_no_event_of_its_type_is_refused(kind: str, timestamp: str, data: dict[str, Any]) -> None:
    """Whatever stands in the store: one of the errors that who follows is ready for, and then the mirror shows what it
    showed.
    """
    mirror, state = in_play()
    try:
        after = advance(mirror, state, Event(kind, state.seq + 1, timestamp, data))
    except (LookupError, TypeError, ValueError):
        assert mirror.snapshot() == state
        assert mirror.connected_count == 1
    else:
        assert after.seq == mirror.seq == state.seq + 1
