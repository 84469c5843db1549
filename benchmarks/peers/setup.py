"""The peers' own environments: made in a folder that the caller names, never in the project's."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.processes import environment

#: What is measured, at these versions.
PYTHON_PACKAGES = (
    "python-socketio==5.18.1",
    "python-engineio==4.15.1",
    "redis==8.1.0",
    "hiredis==3.5.0",
    "uvicorn==0.54.0",
    "uvloop==0.23.0",
    "httptools==0.9.0",
    "websockets==17.4",
    "gevent==26.9.0",
    "gevent-websocket==0.10.1",
)
NODE_PACKAGES = (
    "socket.io@4.8.4",
    "@socket.io/redis-streams-adapter@0.3.1",
    "redis@6.3.1",
    "bufferutil@4",
)
_HERE = Path(__file__).parent
_PATIENCE = 300.0  # seconds that an installation may take


class Peer(NamedTuple):
    """A peer that can be started.

    Attributes:
        program, words: behind which the store's URL stands.
    """

    program: str
    words: tuple[str, ...]


def _run(*words: str) -> str:
    """An error's text; empty: done."""
    try:
        done = subprocess.run(
            words,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return f"{words[0]}: {(done.stderr or done.stdout).strip()[-500:]}" if done.returncode else ""


def python_socketio(kind: str, folder: Path) -> Peer | str:
    """In a virtual environment, made unless it is there; or a sentence about what is missing."""
    place = folder / "python"
    program = place / "bin" / "python"
    ready = place / ".ready"
    wanted = "\n".join(PYTHON_PACKAGES)
    if not ready.exists() or ready.read_text(encoding="utf-8") != wanted:
        problem = _run(sys.executable, "-m", "venv", str(place)) or _run(
            str(program), "-m", "pip", "install", "--quiet", *PYTHON_PACKAGES
        )
        if problem:
            return f"python-socketio could not be installed: {problem}"
        ready.write_text(wanted, encoding="utf-8")
    return Peer(str(program), (str(_HERE / "python_socketio.py"), kind))


def node_socketio(folder: Path) -> Peer | str:
    """Likewise, with npm."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return "Socket.IO needs Node.js, with npm."
    place = folder / "node"
    ready = place / ".ready"
    wanted = "\n".join(NODE_PACKAGES)
    if not ready.exists() or ready.read_text(encoding="utf-8") != wanted:
        place.mkdir(parents=True, exist_ok=True)
        (place / "package.json").write_text('{"private": true}\n', encoding="utf-8")
        problem = _run(npm, "install", "--prefix", str(place), "--no-audit", "--no-fund", *NODE_PACKAGES)
        if problem:
            return f"Socket.IO could not be installed: {problem}"
        ready.write_text(wanted, encoding="utf-8")
    return Peer(node, (str(_HERE / "node_socketio.cjs"), str(place)))


#: By the name in the tables.
PEERS: dict[str, Callable[[Path], Peer | str]] = {
    "python-socketio (gevent)": partial(python_socketio, "gevent"),
    "python-socketio (asyncio)": partial(python_socketio, "asyncio"),
    "Socket.IO (Node)": node_socketio,
}
