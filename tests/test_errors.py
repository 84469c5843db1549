"""The exceptions' codes and the close codes, which are part of the protocol."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import roomkit
import roomkit.client
from roomkit import CLOSE_CODES, InvalidTransition, RoomkitError
from roomkit.errors import CLOSE, close_code_for, close_name, error_for, error_for_close, should_come_back

ERRORS = [value for value in vars(roomkit).values() if isinstance(value, type) and issubclass(value, RoomkitError)]

#: Stable: clients compare with these.
CODES = {
    "backend_unavailable",
    "bad_password",
    "bad_token",
    "invalid_config",
    "invalid_id",
    "invalid_lifecycle",
    "invalid_message",
    "invalid_record",
    "invalid_transition",
    "limit_exceeded",
    "lock_upgrade_error",
    "not_host",
    "operation_refused",
    "player_banned",
    "player_exists",
    "player_not_found",
    "room_busy",
    "room_exists",
    "room_full",
    "room_locked",
    "room_not_found",
    "roomkit_error",
    "shutting_down",
    "unauthorized",
    "used_after_fork",
}

PROTOCOL = Path(__file__).parent.parent / "docs" / "protocol.md"


def make(kind: type[RoomkitError]) -> RoomkitError:
    return kind("room-1", "closed", "add_player") if kind is InvalidTransition else kind("why")


def test_codes_are_the_names_in_snake_case() -> None:
    """Each public exception has its stable code, and a user's own gets one in the same way."""
    assert {error.code for error in ERRORS} == CODES
    assert len(ERRORS) == len(CODES)

    class SeatOnFire(RoomkitError):
        pass

    assert SeatOnFire.code == "seat_on_fire"
    assert RoomkitError.code == "roomkit_error"


def test_every_exception_is_public() -> None:
    """What roomkit raises can be imported from roomkit, and what its client raises from roomkit.client."""
    ours = {kind for kind in RoomkitError.__subclasses__() if kind.__module__.startswith("roomkit")}
    assert ours <= {*ERRORS, *(getattr(roomkit.client, name) for name in roomkit.client.__all__)}


def test_invalid_transition_names_room_status_and_operation() -> None:
    """All three, in the text and as attributes."""
    error = InvalidTransition("room-1", "playing", "add_player")
    assert str(error) == "room 'room-1' is playing: add_player is not allowed"
    assert (error.room_id, error.status, error.operation) == ("room-1", "playing", "add_player")


@pytest.mark.parametrize(
    ("name", "also"),
    [
        ("InvalidId", ValueError),
        ("InvalidMessage", ValueError),
        ("InvalidConfig", ValueError),
        ("InvalidLifecycle", ValueError),
        ("InvalidRecord", ValueError),
        ("LockUpgradeError", RuntimeError),
    ],
)
def test_some_are_builtin_errors_as_well(name: str, also: type[Exception]) -> None:
    """So that code which knows nothing of roomkit can catch them."""
    assert issubclass(getattr(roomkit, name), also)


def documented() -> dict[int, tuple[str, bool]]:
    """The table of docs/protocol.md: code to name and whether to come back."""
    section = PROTOCOL.read_text().split("## Close codes")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d{4}) \| (\w+) \| (yes|no) \|", section, re.MULTILINE)
    return {int(code): (name, back == "yes") for code, name, back in rows}


def test_close_codes_are_the_documented_ones() -> None:
    """The table in Python is the table on the page."""
    assert documented() == {code: (entry.name, entry.come_back) for code, entry in CLOSE_CODES.items()}
    assert {entry.name: entry.code for entry in CLOSE_CODES.values()} == CLOSE


def test_close_codes_tell_by_their_range_whether_to_come_back() -> None:
    """4000 to 4499 come back, 4500 to 4999 stay away; no code that RFC 6455 (7.4.1) forbids to send."""
    for code, entry in CLOSE_CODES.items():
        assert code == entry.code
        assert code not in (1004, 1005, 1006, 1015)
        if code >= 4000:
            assert code <= 4999
            assert entry.come_back is (code < 4500)


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_each_refusal_has_a_close_code(kind: type[RoomkitError]) -> None:
    """Whoever could not join is told by a documented code; come back only where that can help."""
    entry = CLOSE_CODES[close_code_for(make(kind))]
    assert entry.come_back is (kind.__name__ in ("BackendUnavailable", "RoomBusy", "ShuttingDown"))


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_a_client_makes_the_same_exception_of_code_and_sentence(kind: type[RoomkitError]) -> None:
    """What was raised on one side can be caught on the other by the same class, and reads the same."""
    raised = make(kind)
    told = error_for(raised.code, str(raised))
    assert type(told) is kind
    assert (told.code, str(told), told.args) == (raised.code, str(raised), (str(raised),))
    if isinstance(told, InvalidTransition):
        assert (told.room_id, told.status, told.operation) == ("", "", "")  # those do not travel
    refused = error_for_close(close_code_for(raised), "why")
    assert refused is not None
    assert close_code_for(refused) == close_code_for(raised)
    assert str(refused) == "why"


def test_a_code_that_is_not_known_here_makes_a_plain_error_that_has_it() -> None:
    """A class of the server's program that the client's has not; one that it has is used; roomkit's own come first."""
    told = error_for("not_in_this_process", "sorry")
    assert (type(told), told.code, str(told)) == (RoomkitError, "not_in_this_process", "sorry")
    assert RoomkitError.code == "roomkit_error"

    class OwnRule(roomkit.OperationRefused):
        def __init__(self, left: int, right: int) -> None:
            super().__init__(f"{left} and {right}")

    assert type(error_for("own_rule", "1 and 2")) is OwnRule
    assert str(error_for("own_rule", "1 and 2")) == "1 and 2"
    type("RoomFull", (roomkit.OperationRefused,), {})
    assert type(error_for("room_full", "")) is roomkit.RoomFull
    assert error_for_close(4509, "") is None


def test_whether_to_come_back_is_told_for_codes_that_nobody_knows() -> None:
    """No close frame: come back; else by the range; the rest stays away."""
    assert {code: should_come_back(code) for code in CLOSE_CODES} == {
        code: entry.come_back for code, entry in CLOSE_CODES.items()
    }
    assert all(map(should_come_back, (1005, 1006, 4000, 4002, 4499)))
    assert not any(map(should_come_back, (1004, 1010, 1015, 3000, 4511, 4999, 5000)))
    assert [close_name(code) for code in (4505, 1005, 1006, 4444, 4999)] == [
        "room_full",
        "connection_lost",
        "connection_lost",
        "connection_lost",
        "unknown",
    ]
