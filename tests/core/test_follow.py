"""Following events with a copy of the state, by the cases that the JavaScript client is held to as well."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from roomkit import Event, RoomState
from roomkit.core.events import EVENT_TYPES, parse_rfc3339, rfc3339
from roomkit.core.follow import changes_state, follow

CASES: dict[str, Any] = json.loads((Path(__file__).parents[1] / "client" / "follow.json").read_text())


def test_each_event_type_is_followed_by_a_new_state() -> None:
    """Each step changes exactly what it says, in a new state; the old one is as it was."""
    state, expected = RoomState.from_dict(CASES["state"]), CASES["state"]
    assert state.to_dict() == expected
    types = set()
    for step in CASES["steps"]:
        event = Event.from_dict(step["event"])
        after = follow(state, event)
        assert state.to_dict() == expected, f"{event.type} changed the old state"
        expected = {**expected, **step["changes"], "seq": event.seq}
        assert after.to_dict() == expected, event.type
        assert follow(after, event) is after, "it was followed twice"
        state = after
        types.add(event.type)
    assert types >= EVENT_TYPES - {"room_transferred"}


def test_what_changes_the_state_is_known_by_type() -> None:
    """All but messages, the last event, and types of a newer server."""
    assert {kind for kind in EVENT_TYPES if not changes_state(kind)} == {"message", "room_closed"}
    assert not changes_state("from_the_future")


def test_a_state_shares_nothing_that_can_be_changed_with_the_event() -> None:
    """A listener that changes an event's data does not change the state that followed it."""
    state = RoomState.from_dict(CASES["state"])
    for kind, data, where in (
        ("settings_changed", {"settings": {"x": [1]}}, lambda s: s.settings["x"]),
        ("game_finished", {"results": {"x": [1]}}, lambda s: s.results["x"]),
        ("room_updated", {"metadata": {"x": [1]}}, lambda s: s.metadata["x"]),
    ):
        after = follow(state, Event(kind, 11, "", data))
        next(iter(data.values()))["x"].append(2)
        assert where(after) == [1]
        with pytest.raises(TypeError):
            after.settings["y"] = 1  # type: ignore[index]


def test_who_joins_again_has_one_seat() -> None:
    """A player_joined of somebody whose leaving was never heard replaces the player, at the end of the line."""
    state = RoomState.from_dict(CASES["state"])
    again = {**CASES["state"]["players"][0], "name": "Amy again"}
    after = follow(state, Event("player_joined", 11, "", {"player": again, "count": 2}))
    assert [(player.id, player.name) for player in after.players] == [("bob", "bob"), ("amy", "Amy again")]


def test_a_state_with_everything_in_it_comes_back() -> None:
    """What to_dict wrote is read as the same state, each field in its place."""
    full = CASES["state"] | {
        "results": {"amy": 1},
        "settings": {"song_id": "s"},
        "song_id": "s",
        "locked": True,
        "private": True,
        "has_password": True,
        "metadata": {"mode": "x"},
        "started_at": "2024-03-27T20:00:00.123Z",
        "transferred_to": "room-2",
    }
    state = RoomState.from_dict(full)
    assert state.to_dict() == full
    assert RoomState.from_dict(state.to_dict()) == state


@pytest.mark.parametrize("missing", ["players", "created_at", "settings"])
def test_what_is_no_state_is_refused(missing: str) -> None:
    """A welcome of something else than a room server is not taken for a state."""
    with pytest.raises((KeyError, TypeError, ValueError)):
        RoomState.from_dict({key: value for key, value in CASES["state"].items() if key != missing})
    with pytest.raises((KeyError, TypeError, ValueError)):
        RoomState.from_dict(CASES["state"] | {"created_at": "yesterday"})


@given(st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)))
@example(datetime(1970, 1, 1, 0, 0, 1, 1000))  # the nearest float to 1.001 lies just below it
@example(datetime(2024, 3, 27, 20, 0, 0, 123000))
def test_times_survive_the_way_there_and_back(moment: datetime) -> None:
    """What was written is read so that it is written the same again: copies of a state stay equal."""
    text = moment.isoformat(timespec="milliseconds") + "Z"
    at = parse_rfc3339(text)
    assert rfc3339(at) == text
    assert abs(at - moment.replace(tzinfo=timezone.utc).timestamp()) <= 0.001
