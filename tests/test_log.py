"""Logging: one line a record in both formats, whatever a client puts into it."""

from __future__ import annotations

import json
import logging
import re
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomkit.log import _JsonFormatter, _TextFormatter, configure_logging

TIME = 1711569600.1239  # 2024-03-27T20:00:00.123Z
TIMESTAMP = "2024-03-27T20:00:00.123Z"


pytestmark = pytest.mark.usefixtures("roomkit_logger")


def record_of(message: object, *args: object, **attributes: Any) -> logging.LogRecord:
    record = logging.LogRecord("roomkit.server", logging.WARNING, __file__, 1, message, args, None)
    record.created = TIME
    vars(record).update(attributes)
    return record


def as_text(message: object, *args: object, **attributes: Any) -> str:
    return _TextFormatter().format(record_of(message, *args, **attributes))


def as_json(message: object, *args: object, **attributes: Any) -> dict[str, Any]:
    line = _JsonFormatter().format(record_of(message, *args, **attributes))
    assert line.isascii()
    assert line.isprintable()
    row = json.loads(line)
    assert isinstance(row, dict)
    return row


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no")


def caught(text: str) -> Any:
    """The exc_info of an error with this text."""
    try:
        raise ValueError(text)
    except ValueError:
        return sys.exc_info()


def test_text_has_time_level_logger_and_message() -> None:
    assert as_text("room %s is full", "r1") == f"{TIMESTAMP} WARNING roomkit.server: room r1 is full"


def test_json_has_timestamp_level_logger_and_message() -> None:
    expected = {"timestamp": TIMESTAMP, "level": "warning", "logger": "roomkit.server", "message": "room r1 is full"}
    assert as_json("room %s is full", "r1") == expected


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("a\nb", "a\\nb"),
        ("a\r\nb", "a\\r\\nb"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x00\x7f\x85", "\\x00\\x7f\\x85"),
        ("\u2028\u202e", "\\u2028\\u202e"),
        ("\ud800", "\\ud800"),
        ("音 樂\u3000房 é", "音 樂\u3000房 é"),
    ],
)
def test_text_escapes_what_could_break_a_line_and_leaves_the_rest(raw: str, shown: str) -> None:
    assert as_text("%s", raw).endswith(f": {shown}")


@given(st.text(st.characters(exclude_categories=[]) | st.sampled_from("\n\r\x0b\x85\u2028\x1b\ud800")))
def test_no_message_makes_a_second_line_in_either_format(message: str) -> None:
    assert len(as_text("%s", message).splitlines()) <= 1
    row = as_json("%s", message)
    assert row["message"] == re.sub("[\ud800-\udfff]", "\ufffd", message)


def test_a_forged_line_in_an_exception_stands_behind_a_bar() -> None:
    forged = f"{TIMESTAMP} CRITICAL roomkit: forged"
    lines = as_text("failed", exc_info=caught(f"x\n{forged}\r{forged}\u2028{forged}\x1b")).splitlines()
    assert lines[0].endswith("WARNING roomkit.server: failed")
    assert all(line.startswith("    | ") for line in lines[1:])
    assert sum(forged in line for line in lines) == 3
    assert lines[-1].endswith("\\x1b")


def test_json_keeps_exception_and_stack_in_one_line() -> None:
    row = as_json("failed", exc_info=caught("x\ny"), stack_info="Stack:\n  here")
    assert row["exception"].startswith("Traceback")
    assert row["exception"].endswith("ValueError: x\ny")
    assert row["stack"] == "Stack:\n  here"


def test_a_traceback_that_a_queue_made_text_of_is_shown() -> None:
    assert as_json("failed", exc_text="Traceback: x")["exception"] == "Traceback: x"
    assert as_text("failed", exc_text="Traceback: x").endswith("\n    | Traceback: x")


def test_exc_info_without_an_exception_adds_nothing() -> None:
    assert "exception" not in as_json("fine", exc_info=(None, None, None))


def test_json_has_the_extra_fields() -> None:
    row = as_json("joined", room="r1", seats=[1, {"a": None}])
    assert (row["room"], row["seats"]) == ("r1", [1, {"a": None}])


def test_an_extra_field_cannot_replace_one_of_the_records_own() -> None:
    row = as_json("joined", level="forged", timestamp="forged", logger="forged", exception="shown")
    assert (row["level"], row["timestamp"], row["logger"]) == ("warning", TIMESTAMP, "roomkit.server")
    assert (row["extra_level"], row["exception"]) == ("forged", "shown")


def test_extra_values_that_json_lacks_become_text() -> None:
    circle: list[Any] = []
    circle.append(circle)
    row = as_json("x", a={1}, b=float("nan"), c=circle, d=Unprintable(), e="\ud800")
    assert (row["a"], row["b"], row["c"]) == ("{1}", "nan", "[[...]]")
    assert (row["d"], row["e"]) == ("<Unprintable that cannot be shown>", "\ufffd")


def test_configured_logging_writes_to_stderr_from_its_level_up(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("WARNING")
    logging.getLogger("roomkit.room").info("quiet")
    logging.getLogger("roomkit.room").warning("loud")
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING roomkit\.room: loud\n", err)


def test_configuring_again_changes_level_and_format_and_doubles_nothing(
    capsys: pytest.CaptureFixture[str], roomkit_logger: logging.Logger
) -> None:
    configure_logging("error")
    configure_logging("debug", json=True)
    roomkit_logger.debug("hello", extra={"room": "r1"})
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert json.loads(line)["room"] == "r1"
    assert len(roomkit_logger.handlers) == 1


def test_handlers_of_others_stay_and_the_root_gets_no_copy(roomkit_logger: logging.Logger) -> None:
    other = logging.NullHandler()
    roomkit_logger.addHandler(other)
    configure_logging()
    assert other in roomkit_logger.handlers
    assert not roomkit_logger.propagate


def test_an_unknown_level_is_refused_and_changes_nothing(roomkit_logger: logging.Logger) -> None:
    before = (roomkit_logger.handlers[:], roomkit_logger.level, roomkit_logger.propagate)
    with pytest.raises(ValueError, match="unknown log level 'loud'; known are debug, info"):
        configure_logging("loud")
    assert (roomkit_logger.handlers, roomkit_logger.level, roomkit_logger.propagate) == before


def test_without_a_standard_error_nothing_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    configure_logging()
    monkeypatch.setattr(sys, "stderr", None)
    logging.getLogger("roomkit").error("nobody listens")


def test_a_worker_process_says_which_one_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """In both formats; a process that is alone says nothing of it."""
    for json_lines in (False, True):
        configure_logging("info", json_lines, worker=3)
        logging.getLogger("roomkit.test").info("hello")
        configure_logging("info", json_lines)
        logging.getLogger("roomkit.test").info("hello")
    text, alone, row, alone_row = capsys.readouterr().err.splitlines()
    assert text.endswith("INFO roomkit.test [worker 3]: hello")
    assert alone.endswith("INFO roomkit.test: hello")
    assert json.loads(row)["worker"] == 3
    assert "worker" not in json.loads(alone_row)
