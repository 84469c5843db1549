"""What the URL of a store and the address of an instance may look like, and what of them may be shown."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_STORE = "a URL: redis://, rediss:// or unix://, [USER:PASSWORD@], HOST[:PORT][/DB] or the path of a socket"
_ENCODED = "a URL whose user and password are percent-encoded, without @ and # behind the host"
_ADDRESS = "http:// or https://, a host and maybe a port, without user, path or query"
_HOST = re.compile(r"[A-Za-z0-9_.-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")  # a name, or an address of IPv4 or IPv6


def fault_in_store_url(url: str) -> str:
    """What a store's URL must be and this one is not, without a word of it; empty when it can be used.

    What stands where no secret should (a password with a raw ``/``, ``?`` or ``#`` ends early) is a fault, so that
    :func:`show_store_url` never shows a piece of one.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in ("redis", "rediss", "unix"):
        return _STORE
    try:
        parts = urlsplit(url)
        host, path, _ = parts.hostname, parts.path, parts.port
    except ValueError:
        return _STORE
    if "@" in rest[len(parts.netloc) :] or parts.fragment:
        return _ENCODED
    if scheme == "unix":
        return _STORE if parts.netloc.rpartition("@")[2] or len(path) < 2 else ""
    return "" if host and _HOST.fullmatch(host) and re.fullmatch(r"(/[0-9]{0,5})?", path) else _STORE


def show_store_url(url: str) -> str:
    """A URL without fault as logs and terminals may show it: without user, password and options."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def fault_in_address(url: str) -> str:
    """What an instance's address must be and this one is not; empty when it can be used."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return _ADDRESS
    plain = parts.scheme in ("http", "https") and "@" not in parts.netloc and parts.path in ("", "/")
    return "" if plain and host and _HOST.fullmatch(host) and not re.search(r"[?#\s]", url) else _ADDRESS
