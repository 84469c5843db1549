"""What an identifier and a name may look like, decided once for every door."""

from __future__ import annotations

import re

from roomkit.errors import InvalidId, InvalidMessage

MAX_ID_LENGTH = 64
MAX_NAME_LENGTH = 64
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


def check_id(value: object, what: str) -> str:
    """Return ``value`` when it is a valid identifier.

    Raises:
        InvalidId: it is not 1 to 64 of ``A-Za-z0-9_.:-``.
    """
    if type(value) is str and _ID.fullmatch(value):
        return value
    raise InvalidId(f"{what} must be 1 to {MAX_ID_LENGTH} of A-Z a-z 0-9 _ . : - (got {repr(value)[:80]})")


_SECRET = re.compile(r"[A-Za-z0-9_-]{22,128}")


def is_secret(value: object) -> bool:
    """Whether a client's token is long enough to be the secret of a new seat (22 characters: 128 bits in base64)."""
    return isinstance(value, str) and _SECRET.fullmatch(value) is not None


def check_name(value: object, default: str) -> str:
    """Return a display name: printable text of 1 to 64 characters, ``default`` when there is none.

    Raises:
        InvalidMessage: too long, or with characters that do not print (control characters, lone surrogates).
    """
    if value is None or value == "":
        return default
    if not isinstance(value, str) or len(value) > MAX_NAME_LENGTH or not value.isprintable():
        raise InvalidMessage(f"a name is 1 to {MAX_NAME_LENGTH} printable characters")
    return value
