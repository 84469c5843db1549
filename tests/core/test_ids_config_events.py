"""Identifiers, names, bounds and data at the door; timestamps."""

from __future__ import annotations

import json
import math
import os
import time
from datetime import datetime, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomkit import InvalidConfig, InvalidId, InvalidMessage, RoomConfig
from roomkit.core.commands import CRITICAL_EVENTS
from roomkit.core.commands import Command as AnyCommand
from roomkit.core.events import CRITICAL_TYPES, DROPPABLE_TYPES, EVENT_TYPES, Event, clean_data, encode_json, rfc3339
from roomkit.core.ids import check_id, check_name
from roomkit.core.state import check_song_id, merge_settings

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.:-"

# Identifiers and names.


@given(st.text(ALPHABET, min_size=1, max_size=64))
def test_every_id_of_the_pattern_is_taken(value: str) -> None:
    """1 to 64 of A-Za-z0-9_.:- come back as they are."""
    assert check_id(value, "a room id") == value


@given(st.text(max_size=70))
def test_an_id_is_of_the_pattern_or_refused(value: str) -> None:
    """Any other text is refused, naming what it was meant to be."""
    if 1 <= len(value) <= 64 and set(value) <= set(ALPHABET):
        assert check_id(value, "a room id") == value
    else:
        with pytest.raises(InvalidId, match=r"^a room id must be"):
            check_id(value, "a room id")


@pytest.mark.parametrize(
    "value",
    ["", "a" * 65, "a b", "a/b", "a\n", "\na", "ä", "a\x00", "{a}", "١", None, 7, b"a", ["a"], True],  # noqa: RUF001
)
def test_bad_ids(value: object) -> None:
    """Near misses: a newline at the end, other digits, other types; the message stays short."""
    with pytest.raises(InvalidId) as caught:
        check_id(value, "a player id")
    assert len(str(caught.value)) < 200
    assert isinstance(caught.value, ValueError)


def test_a_huge_id_does_not_make_a_huge_message() -> None:
    """What was refused is quoted, but not all of a megabyte of it."""
    with pytest.raises(InvalidId) as caught:
        check_id("x" * 1_000_000, "a room id")
    assert str(caught.value) == f"a room id must be 1 to 64 of A-Z a-z 0-9 _ . : - (got '{'x' * 79})"


@pytest.mark.parametrize("value", ["Amy", "小美", "Zoë Ünal", "😀", "a" * 64, "x y"])
def test_names_of_people(value: str) -> None:
    """Printable text of any script is a name."""
    assert check_name(value, "amy") == value


@pytest.mark.parametrize("value", [None, ""])
def test_no_name_means_the_default(value: object) -> None:
    """Who gives no name is called by the player id."""
    assert check_name(value, "amy") == "amy"


@pytest.mark.parametrize(
    "value", ["a" * 65, "a\nb", "a\x00", "\x1b[31m", "\ud800", "\u202e", "\u2028", 7, b"amy", ["a"]]
)
def test_bad_names(value: object) -> None:
    """Control characters, lone surrogates, text that turns the line around, and other types are refused."""
    with pytest.raises(InvalidMessage):
        check_name(value, "amy")


@pytest.mark.parametrize("value", ["", "x" * 257, 7, None, b"s"])
def test_bad_song_ids(value: object) -> None:
    """A song id is text of 1 to 256 characters."""
    with pytest.raises(InvalidMessage, match=r"^song_id must be text of 1 to 256 characters$"):
        check_song_id(value)


@pytest.mark.parametrize("value", ["s", "x" * 256, "小"])
def test_good_song_ids(value: str) -> None:
    """The shortest and the longest."""
    assert check_song_id(value) == value


def test_what_is_refused_at_the_door_says_what_it_must_be() -> None:
    """The whole sentence, quoting what was given where that may help."""
    with pytest.raises(InvalidId) as of_id:
        check_id("a b", "a room id")
    assert str(of_id.value) == "a room id must be 1 to 64 of A-Z a-z 0-9 _ . : - (got 'a b')"
    with pytest.raises(InvalidMessage) as of_name:
        check_name("a\nb", "amy")
    assert str(of_name.value) == "a name is 1 to 64 printable characters"


# Bounds.


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("max_players", value) for value in (0, -1, 100_001, 2.0, "4", True, None)],
        *[("min_players", value) for value in (0, 5, -1, 1.5, True, "2")],
        *[("queue_size", value) for value in (0, 1_000_001, 1.0)],
        *[("queue_ceiling", value) for value in (99, 0, 1_000_001)],
        *[("history_size", value) for value in (-1, 1_000_001, None)],
        *[("watermark", value) for value in (-0.1, 1.1, math.nan, "x", True)],
        *[("drop_watermark", value) for value in (-0.1, 1.1, math.nan)],
        *[("max_lifetime", value) for value in (-1, math.nan, "60", None, True)],
        *[("closed_ttl", -0.001), ("empty_ttl", math.nan), ("finished_ttl", "x"), ("reconnect_grace", None)],
        *[("reservation_ttl", -1), ("busy_timeout", -1), ("busy_timeout", math.nan), ("busy_timeout", math.inf)],
    ],
)
def test_a_bound_that_makes_no_sense_is_named(name: str, value: Any) -> None:
    """Refused by InvalidConfig, a ValueError, which names the field; when made and when changed."""
    for make in (lambda: RoomConfig(**{name: value}), lambda: RoomConfig().replace(**{name: value})):
        with pytest.raises(InvalidConfig, match=f"^{name} must be") as caught:
            make()
        assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("max_players", 1, 100_000),
        ("min_players", 1, 4),
        ("queue_size", 1, 1_000_000),
        ("queue_ceiling", 100, 1_000_000),
        ("history_size", 0, 1_000_000),
        ("watermark", 0, 1),
        ("drop_watermark", 0, 1),
        *[(name, 0, math.inf) for name in ("max_lifetime", "closed_ttl", "empty_ttl", "finished_ttl")],
        *[(name, 0, math.inf) for name in ("reconnect_grace", "reservation_ttl")],
        ("busy_timeout", 0, 4_000_000),
    ],
)
def test_the_bounds_belong_to_what_is_allowed(name: str, least: float, most: float) -> None:
    """The least and the most of each are taken, one less or more is refused, and the sentence says all three."""
    kind = (
        "whole number"
        if name in ("max_players", "min_players", "queue_size", "queue_ceiling", "history_size")
        else "number"
    )
    for value in (least, most):
        assert getattr(RoomConfig(**{"min_players": None, name: value}), name) == value
    for value in (least - 1, most + 1):
        if value != math.inf:
            with pytest.raises(InvalidConfig) as caught:
                RoomConfig(**{name: value})
            assert str(caught.value) == f"{name} must be a {kind} from {least} to {most} (got {value!r})"


def test_defaults_are_the_seeds() -> None:
    """The numbers that the seed and DESIGN give."""
    config = RoomConfig()
    assert (config.max_players, config.seats_to_start, config.queue_size, config.history_size) == (4, 4, 100, 256)
    assert (config.max_lifetime, config.closed_ttl, config.empty_ttl, config.finished_ttl) == (1800, 60, 300, 300)
    assert (config.reconnect_grace, config.busy_timeout, config.watermark) == (300, 1, 0.8)


def test_ttls_may_be_off_or_endless() -> None:
    """0 turns a rule off, and infinity is a lifetime."""
    assert RoomConfig(max_lifetime=0, empty_ttl=math.inf).max_lifetime == 0


def test_a_config_cannot_be_changed() -> None:
    """It is frozen; replace makes another, checked as a whole, and names an unknown option."""
    config = RoomConfig(max_players=4, min_players=3)
    with pytest.raises(AttributeError):
        config.max_players = 5  # type: ignore[misc]
    assert config.replace(max_players=6).seats_to_start == 3
    with pytest.raises(InvalidConfig, match="min_players"):
        config.replace(max_players=2)
    with pytest.raises(InvalidConfig, match="unknown room option 'max_player'"):
        config.replace(max_player=2)


@given(st.integers(1, 50), st.data())
def test_seats_to_start(size: int, data: st.DataObject) -> None:
    """min_players from 1 to max_players is taken; left out it is max_players."""
    least = data.draw(st.one_of(st.none(), st.integers(1, size)))
    assert RoomConfig(max_players=size, min_players=least).seats_to_start == (size if least is None else least)


# Data.

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)
objects = st.dictionaries(st.text(), json_values, max_size=5)


@given(objects)
def test_json_objects_pass_unchanged(data: dict[str, Any]) -> None:
    """Any JSON object comes back equal, and what is sent of it can be read by any JSON parser."""
    cleaned = clean_data(data)
    assert cleaned == data
    assert json.loads(encode_json(cleaned)) == data


def test_data_is_copied_deeply() -> None:
    """What the caller does with its object afterwards changes nothing."""
    inner = {"list": [1, {"x": 1}]}
    cleaned = clean_data({"inner": inner})
    inner["list"].append(2)
    inner["list"][1]["x"] = 2  # type: ignore[index]
    assert cleaned == {"inner": {"list": [1, {"x": 1}]}}


def cycle() -> dict[str, Any]:
    data: dict[str, Any] = {}
    data["list"] = [data]
    return data


def deep(levels: int) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for _ in range(levels):
        data = {"x": data}
    return data


@pytest.mark.parametrize(
    "data",
    [
        {"x": "\ud800"},
        {"\udfff": 1},
        {"x": ["a\ud83d"]},
        {"x": object()},
        {"x": {1, object()}},
        {"x": lambda: 1},
        {("a", "b"): 1},
        {None: 1},
        cycle(),
        deep(100_000),
        [1],
        "x",
        None,
        7,
    ],
    ids=lambda data: type(data).__name__,
)
def test_data_without_a_json_form_is_refused(data: Any) -> None:
    """Lone surrogates, strange keys and objects, cycles, bottomless nesting: refused, and only by InvalidMessage."""
    with pytest.raises(InvalidMessage, match=r"^results (must be a dict|has no JSON form)"):
        clean_data(data, "results")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_become_null(value: float) -> None:
    """NaN and the infinities, which browsers refuse to read, are sent as null."""
    assert clean_data({"x": [value]}) == {"x": [None]}
    assert encode_json({"x": value}) == b'{"x":null}'


def test_numbers_as_keys_become_text() -> None:
    """As json.dumps does it, so that results may be counted by seat."""
    assert clean_data({7: {8: 1}}) == {"7": {"8": 1}}


def test_a_message_needs_no_ascii() -> None:
    """Text is sent as UTF-8."""
    assert encode_json({"text": "小美 😀"}) == '{"text":"小美 😀"}'.encode()


@given(objects, objects)
def test_merging_settings(settings: dict[str, Any], changes: dict[str, Any]) -> None:
    """Newer values win, None removes, and the arguments stay as they are."""
    settings = {key: value for key, value in settings.items() if value is not None}
    before = (dict(settings), dict(changes))
    merged = merge_settings(settings, changes)
    assert (settings, changes) == before
    assert all(merged[key] == value for key, value in changes.items() if value is not None)
    assert set(merged) == (set(settings) | set(changes)) - {key for key, value in changes.items() if value is None}


def test_settings_are_bounded() -> None:
    """64 settings, and not one more."""
    settings = {str(number): 1 for number in range(64)}
    assert len(merge_settings({}, settings)) == 64
    assert len(merge_settings(settings, {"0": None, "new": 1})) == 64
    with pytest.raises(InvalidMessage, match="64"):
        merge_settings(settings, {"new": 1})


# Events.


def test_each_event_type_is_critical_or_droppable() -> None:
    """The two kinds have nothing in common, and a status change is never dropped."""
    assert not CRITICAL_TYPES & DROPPABLE_TYPES
    assert CRITICAL_TYPES | DROPPABLE_TYPES == EVENT_TYPES
    for promised in ("room_status", "player_joined", "player_left", "game_started", "game_finished", "room_closed"):
        assert promised in CRITICAL_TYPES


def test_each_command_says_how_many_places_it_needs() -> None:
    """No command is missing from the table of reservations."""
    assert set(CRITICAL_EVENTS) == set(AnyCommand.__args__)  # type: ignore[attr-defined]


def test_an_event_is_read_as_it_came() -> None:
    """From a message as decoded, which may lack what has a default and may have what is not known."""
    whole = Event("message", 14, "2024-03-27T20:00:00.123Z", {"x": 1}, 2)
    assert Event.from_dict(json.loads(encode_json(whole)) | {"id": "7"}) == whole
    assert Event.from_dict({"type": "gap", "seq": 0, "data": {}}) == Event("gap", 0, "", {}, 0)
    for missing in ("type", "seq", "data"):
        with pytest.raises(KeyError, match=missing):
            Event.from_dict({key: 1 for key in ("type", "seq", "data") if key != missing})


def test_event_on_the_wire() -> None:
    """As in docs/protocol.md; ``conflated`` only where something was."""
    event = Event("message", 14, "2024-03-27T20:00:00.123Z", {"player_id": "amy", "data": {}})
    assert json.loads(encode_json(event)) == {
        "type": "message",
        "seq": 14,
        "timestamp": "2024-03-27T20:00:00.123Z",
        "data": {"player_id": "amy", "data": {}},
    }
    assert json.loads(encode_json(msgspec.structs.replace(event, conflated=2)))["conflated"] == 2


# Timestamps.


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1711569600.123, "2024-03-27T20:00:00.123Z"),
        (1711569600, "2024-03-27T20:00:00.000Z"),
        (1711569600.9999, "2024-03-27T20:00:00.999Z"),
        (1.001, "1970-01-01T00:00:01.001Z"),
        (951782399.5, "2000-02-28T23:59:59.500Z"),
        (951782400, "2000-02-29T00:00:00.000Z"),
        (4102444799.999, "2099-12-31T23:59:59.999Z"),
    ],
)
def test_known_timestamps(at: float, text: str) -> None:
    """Values worked out by hand: the epoch, a leap day, the end of a century."""
    assert rfc3339(at) == text


def test_timestamps_do_not_depend_on_what_was_written_before() -> None:
    """Forwards and backwards through the first seconds, where a second and its neighbours are easily mixed up."""
    moments = [*range(0, 3000, 250), 999, 1000, 1001]
    for before in moments:
        for after in moments:
            rfc3339(before / 1000)
            assert rfc3339(after / 1000) == f"1970-01-01T00:00:0{after // 1000}.{after % 1000:03d}Z"


def test_timestamps_do_not_depend_on_the_hosts_time_zone() -> None:
    """They are UTC, as their Z says."""
    before = os.environ.get("TZ")
    try:
        for zone in ("UTC-9", "UTC+5"):
            os.environ["TZ"] = zone
            time.tzset()
            rfc3339(1.0)
            assert rfc3339(1711569600.123) == "2024-03-27T20:00:00.123Z"
    finally:
        os.environ.pop("TZ")
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()


@given(st.lists(st.integers(0, 4_102_444_800_000), min_size=1, max_size=20))
def test_timestamps_read_back(moments: list[int]) -> None:
    """Every whole millisecond is written as it is, whatever was written before, and texts sort like times."""
    texts = [rfc3339(milliseconds / 1000) for milliseconds in moments]
    for milliseconds, text in zip(moments, texts, strict=True):
        read = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
        assert round(read.timestamp() * 1000) == milliseconds
        assert len(text) == 24
    assert [texts[index] for index in sorted(range(len(moments)), key=moments.__getitem__)] == sorted(texts)
