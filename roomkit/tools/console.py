"""What commands say: sentences on standard error, text on standard output, and no traceback when that goes away."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from roomkit.log import escape


class CommandFailed(Exception):
    """A command cannot go on. The text is the sentence for the user.

    Attributes:
        status: the process's exit status.
    """

    def __init__(self, sentence: str, status: int = 1) -> None:
        super().__init__(sentence)
        self.status = status


class OutputGone(Exception):
    """Standard output cannot be written any more. ``status``: the process's exit status; all has been said."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def fail(sentence: str, status: int = 1) -> int:
    """Say on standard error what went wrong; returns ``status``."""
    print(f"roomkit: {escape(sentence)}", file=sys.stderr)
    return status


def note(sentence: str) -> None:
    """Say something on standard error that is no failure."""
    print(f"roomkit: {escape(sentence)}", file=sys.stderr, flush=True)


def write(text: str, output: str | None = None) -> int:
    """Write to standard output, or to a file; the exit status: 0, or 1 when that is not possible (which is said)."""
    try:
        if output is not None:
            Path(output).write_text(text, encoding="utf-8", newline="\n")
        else:
            print(text, end="", flush=True)
    except OSError as error:
        if output is not None:
            return fail(f"cannot write {output}: {error.strerror}")
        # Python writes again what is left when it ends, and must not fail then (its docs, signal, "Note on SIGPIPE").
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1 if isinstance(error, BrokenPipeError) else fail(f"cannot write the output: {error.strerror}")
    return 0


def say(line: str) -> None:
    """One line on standard output, at once. What clients named is to be escaped before.

    Raises:
        OutputGone: nobody reads it any more, or it cannot be written.
    """
    if status := write(_encodable(line) + "\n"):
        raise OutputGone(status)


def save(path: str, data: bytes) -> None:
    """Write a file.

    Raises:
        CommandFailed: it cannot be written.
    """
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise CommandFailed(f"cannot write {path}: {error.strerror}") from None


def _encodable(text: str) -> str:
    """The text with what standard output's encoding does not have as Python escapes."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
