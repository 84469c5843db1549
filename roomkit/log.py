"""Logging to standard error for the bundled server: one record a line, as text or as JSON.

Much of what is logged comes from clients: names, ids, reasons. Both formats escape every control character and line
break, so nobody can forge a line or send a terminal its escape sequences. A traceback, which needs several lines to
be read, stands in the text format below its record, each of its lines behind a bar.
"""

from __future__ import annotations

import json as _json
import logging
import os
import re
import sys
import threading
import unicodedata
from datetime import datetime, timezone
from typing import Any, TextIO

__all__ = ["configure_logging", "escape"]

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
_BAR = "    | "
_LOST = "%d records before this one could not be written"
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_NOT_ASCII = re.compile(r"[^ -~]")
_OWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

_lock = threading.Lock()  # serialises configure_logging(), so that two calls at once install one handler


def configure_logging(level: str = "info", json: bool = False, worker: int | None = None) -> None:
    """Send what is logged under "roomkit" to standard error. Call it again to change level or format.

    Only the logger "roomkit" is touched: handlers that others gave it stay, and it no longer passes records on to the
    root logger, which might print them a second time.

    Args:
        level: the least severe level shown: debug, info, warning, error or critical.
        json: one JSON object a line instead of text.
        worker: the number of this process among several, to stand in every record.

    Raises:
        ValueError: an unknown level; nothing was changed.

    Thread safety: may be called from any thread, at any time.
    """
    if level.lower() not in _LEVELS:
        raise ValueError(f"unknown log level {level!r}; known are {', '.join(_LEVELS)}")
    logger = logging.getLogger("roomkit")
    with _lock:
        ours = (handler for handler in logger.handlers if isinstance(handler, _StderrHandler))
        handler = next(ours, None) or _StderrHandler()
        handler.setFormatter(_JsonFormatter(worker) if json else _TextFormatter(worker))
        logger.addHandler(handler)  # does nothing for a handler that is there already
        logger.propagate = False
        logger.setLevel(_LEVELS[level.lower()])


class _StderrHandler(logging.Handler):
    """Writes to what `sys.stderr` is at that moment, so that redirecting it works. One write, hence one line, each.

    Where nothing can be written (the disk behind it is full, nobody reads the pipe) records are left out and counted,
    and the next one that can be written is told how many were.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lost = 0  # guarded by the handler's lock, which logging holds around emit()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if sys.stderr is None:
                return
            text = self.format(record) + "\n"
            if self._lost:
                notice = logging.LogRecord(__name__, logging.WARNING, "", 0, _LOST, (self._lost,), None)
                text = self.format(notice) + "\n" + text
            try:
                _write(sys.stderr, text)
            except OSError:
                self._lost += 1
            else:
                self._lost = 0
        except Exception:
            self.handleError(record)


def _write(stream: TextIO, text: str) -> None:
    """Past the stream's buffer: what that cannot write it keeps, and the process would fail on it when it ends."""
    try:
        descriptor = stream.fileno()
    except (AttributeError, OSError, ValueError):  # no file
        stream.write(text)
        stream.flush()
        return
    data = text.encode(getattr(stream, "encoding", None) or "utf-8", "backslashreplace")
    while data:
        data = data[os.write(descriptor, data) :]


class _TextFormatter(logging.Formatter):
    """``2024-03-27T20:00:00.123Z WARNING roomkit.server: message``, and a traceback behind bars below it."""

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._worker = "" if worker is None else f" [worker {worker}]"

    def format(self, record: logging.LogRecord) -> str:
        head = f"{_timestamp(record)} {record.levelname} {record.name}{self._worker}"
        lines = [escape(f"{head}: {record.getMessage()}")]
        for text in (_traceback(self, record), record.stack_info):
            lines += [_BAR + escape(line) for line in (text or "").splitlines()]
        return "\n".join(lines)


class _JsonFormatter(logging.Formatter):
    """timestamp, level, logger, message, exception and stack where there are any, and the fields given as `extra`."""

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        row: dict[str, Any] = {
            "timestamp": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._worker is not None:
            row["worker"] = self._worker
        if exception := _traceback(self, record):
            row["exception"] = exception
        if record.stack_info:
            row["stack"] = record.stack_info
        for name, value in vars(record).items():
            if name not in _OWN_ATTRIBUTES:
                while name in row:  # an extra field never takes the place of one of the record's own
                    name = "extra_" + name
                row[name] = _plain(value)
        return _json_line(row)


def _timestamp(record: logging.LogRecord) -> str:
    """RFC 3339 in UTC with milliseconds."""
    moment = datetime.fromtimestamp(record.created, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str | None:
    # record.exc_text is a cache that all handlers share: read where a queue left nothing else, but never written.
    if record.exc_info and record.exc_info[0] is not None:
        return formatter.formatException(record.exc_info)
    return record.exc_text


def escape(text: str) -> str:
    """The text with every control, format and separator character, and lone surrogate, as a Python escape."""
    if text.isprintable():
        return text
    return "".join(char if _is_visible(char) else char.encode("unicode_escape").decode() for char in text)


def _is_visible(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == "Zs"  # Zs: spaces of all widths, as in Chinese text


def _plain(value: object) -> object:
    """The value where JSON can express it, otherwise its text."""
    try:
        _json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        try:
            return str(value)
        except Exception:  # somebody else's __str__; the record matters more
            return f"<{type(value).__name__} that cannot be shown>"
    return value


def _json_line(row: dict[str, Any]) -> str:
    """One line of plain ASCII that any JSON parser reads: lone surrogates, which many refuse, become U+FFFD."""
    text = _SURROGATE.sub("\ufffd", _json.dumps(row, ensure_ascii=False))
    return _NOT_ASCII.sub(lambda match: _json.dumps(match[0])[1:-1], text)
