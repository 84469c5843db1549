"""A running server, as a command talks to it: its HTTP API, with the admin token where there is one."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from roomkit.settings import Settings
from roomkit.tools.console import CommandFailed

DEFAULT_URL = f"http://127.0.0.1:{Settings.port}"
#: Seconds that a server may take to answer.
TIMEOUT = 10.0
_PRINTABLE = re.compile(r"[!-~]+")


class Unreachable(CommandFailed):
    """Nobody answers there, or not in HTTP, or it broke off. Trying again later may help."""


class Refused(CommandFailed):
    """The server answered with an error.

    Attributes:
        http_status: 404 and the like. code: roomkit's own, ``room_not_found``; empty when it gave none.
    """

    def __init__(self, sentence: str, http_status: int, code: str) -> None:
        super().__init__(sentence)
        self.http_status, self.code = http_status, code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--url`` and ``--token-file``."""
    parser.add_argument(
        "--url",
        default=None,
        help=f"the server's address [default: ROOMKIT_URL in the environment, else {DEFAULT_URL}]",
    )
    parser.add_argument(
        "--token-file",
        metavar="PATH",
        help="file with the admin token [default: ROOMKIT_ADMIN_TOKEN in the environment; on the server's own machine "
        "none is needed]",
    )


def from_arguments(arguments: argparse.Namespace, environ: Mapping[str, str] | None = None) -> Remote:
    """The server that the arguments and the environment name.

    Raises:
        CommandFailed: a bad address, or a token file that cannot be read.
    """
    environ = os.environ if environ is None else environ
    url = arguments.url or environ.get("ROOMKIT_URL") or DEFAULT_URL
    token = environ.get("ROOMKIT_ADMIN_TOKEN") or None
    if arguments.token_file is not None:
        try:
            token = Path(arguments.token_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise CommandFailed(f"cannot read {arguments.token_file}: {reason}", 2) from None
    if token is not None and not _PRINTABLE.fullmatch(token):
        raise CommandFailed("the admin token is empty or has characters that no token has", 2)
    return Remote(url, token)


class Remote:
    """One server. A connection is kept, and made anew when it was lost.

    Thread safety: none. A request blocks at most about ``TIMEOUT`` seconds.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        parts = parse_url(url)
        self.secure = parts.scheme == "https"
        self.host, self.port, self.prefix = parts.host, parts.port, parts.path
        self._token = token
        self._connection: http.client.HTTPConnection | None = None

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def address(self) -> str:
        """``http://host:port``, as it is shown."""
        return f"{'https' if self.secure else 'http'}://{self.netloc}{self.prefix}"

    @property
    def netloc(self) -> str:
        """``host:port``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, *path: str, **query: object) -> Any:
        """The JSON at ``path`` (its parts, unquoted). Query parameters that are None are left out.

        Raises:
            Unreachable, Refused.
        """
        given = {name: str(value) for name, value in query.items() if value is not None}
        return self.request("GET", *path, query=given)

    def post(self, *path: str, body: object) -> Any:
        """Send JSON; the JSON that is answered. Raises Unreachable, Refused."""
        return self.request("POST", *path, body=body)

    def request(self, method: str, *path: str, query: Mapping[str, str] | None = None, body: object = None) -> Any:
        """One request; what was answered, or None for an empty answer. Raises Unreachable, Refused."""
        target = self.prefix + "".join("/" + quote(part, safe="") for part in path)
        if query:
            target += "?" + urlencode(query)
        kept = self._connection is not None
        try:
            return self._ask(method, target, body)
        except Unreachable:
            if not kept or method != "GET":
                raise
            return self._ask(method, target, body)  # the server may have closed a connection that was idle

    def _ask(self, method: str, target: str, body: object) -> Any:
        headers = {"Accept": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        try:
            if self._connection is None:
                kind = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
                self._connection = kind(self.host, self.port, timeout=TIMEOUT)
            self._connection.request(method, target, data, headers)
            response = self._connection.getresponse()
            answer = response.read()
        except ssl.SSLError as error:
            self.close()
            raise Unreachable(f"{self.address} does not speak TLS with us: {error.reason}") from None
        except http.client.HTTPException as error:
            self.close()
            raise Unreachable(f"{self.address} does not answer in HTTP ({type(error).__name__})") from None
        except TimeoutError:
            self.close()
            raise Unreachable(f"{self.address} did not answer within {TIMEOUT:g} s") from None
        except (OSError, UnicodeError) as error:
            self.close()
            reason = getattr(error, "strerror", None) or str(error)
            raise Unreachable(f"cannot reach {self.address}: {reason}") from None
        return self._judge(response.status, answer)

    def _judge(self, status: int, answer: bytes) -> Any:
        try:
            value: Any = json.loads(answer) if answer else None
        except (ValueError, RecursionError):
            raise Refused(f"{self.address} answered {status} with something that is no JSON", status, "") from None
        if status < 400:
            return value
        try:
            code, sentence = str(value["error"]["code"]), str(value["error"]["message"])
        except (TypeError, KeyError):
            raise Refused(f"{self.address} answered {status}; is it a roomkit server?", status, "") from None
        hint = "; give it in ROOMKIT_ADMIN_TOKEN or with --token-file" if status == 401 else ""
        raise Refused(f"{self.address} refused: {sentence} ({code}){hint}", status, code)


class Url:
    """The parts of a server's address. Raises CommandFailed: it is none."""

    def __init__(self, scheme: str, host: str, port: int, path: str) -> None:
        self.scheme, self.host, self.port, self.path = scheme, host, port, path


def parse_url(url: str) -> Url:
    """``http://host:port/prefix`` or ``https://...``; without a scheme it is http.

    Raises:
        CommandFailed: it is no such address. The text is not shown when a password may be in it.
    """
    if "@" in url:
        raise CommandFailed("the server's address must have no user or password in it", 2)
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in ("http", "https", "ws", "wss") or not host or parts.query or parts.fragment:
        raise CommandFailed(f"{url[:100]!r} is no address of a server, like {DEFAULT_URL}", 2)
    secure = parts.scheme in ("https", "wss")
    return Url("https" if secure else "http", host, port or (443 if secure else 80), parts.path.rstrip("/"))
