"""The store of rooms that instances share, as the settings say."""

from __future__ import annotations

import re
import socket
from typing import Any
from urllib.parse import urlsplit

from roomkit.backends.base import Backend
from roomkit.server.acceptor import host_in_url
from roomkit.settings import InvalidSetting, Settings

_SOURCE = "setting redis"
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")  # options of the URL that name one


def open_store(settings: Settings) -> Backend | None:
    """The store that ``settings.redis`` names, or None. Connects with its first use, so it may be absent now; whoever
    called closes it.

    Raises:
        InvalidSetting: the package redis is not here, or an option of the URL is none.
    """
    if settings.redis is None:
        return None
    try:
        from roomkit.backends.redis import RedisBackend
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "redis":
            raise
        sentence = "needs the package redis: pip install 'roomkit-server[redis]'"
        raise InvalidSetting("redis", _SOURCE, sentence) from None
    _check_options(settings.redis)
    return RedisBackend(
        settings.redis,
        prefix=settings.redis_prefix,
        lease_ttl=settings.lease_ttl,
        log_size=max(1000, settings.history_size),  # a commit has an event or more
    )


def _check_options(url: str) -> None:
    """What the driver would find out with its first connection only. "from None": the causes carry what was given."""
    import redis

    try:
        pool: Any = redis.ConnectionPool.from_url(url)
        pool.make_connection()  # an object; nothing is sent
        names = [name for name in _FILES if pool.connection_kwargs.get(name)]
    except (TypeError, ValueError, redis.RedisError):
        options = urlsplit(url).query
        known = ", ".join(re.findall(r"(?:^|&)([a-z_]{1,40})=", options)) or "none that can be read"
        raise InvalidSetting("redis", _SOURCE, f"the options of the URL cannot be used: {known}") from None
    for name in names:
        path = pool.connection_kwargs[name]
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            sentence = f"the file of {name}, {path}, cannot be read: {error.strerror}"
            raise InvalidSetting("redis", _SOURCE, sentence) from None


def instance_name(settings: Settings) -> str:
    """The setting, or the machine's name made to fit."""
    return settings.instance or re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:45] or "instance"


def instance_address(settings: Settings, port: int) -> str:
    """The setting, or the URL of where the server listens; the machine's name where that is every interface."""
    if settings.address is not None:
        return settings.address.rstrip("/")
    every = settings.host in ("0.0.0.0", "::", "")  # nothing is bound here  # nosec B104
    host = socket.gethostname() if every else host_in_url(settings.host)
    return f"{'http' if settings.tls_cert is None else 'https'}://{host}:{port}"
