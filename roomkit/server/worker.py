"""One worker process of ``roomkit serve --workers N``, started by the supervisor."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading

from roomkit.log import configure_logging
from roomkit.server.app import Server
from roomkit.server.garbage import ShortCollections
from roomkit.server.peers import Peers
from roomkit.server.process import Signals
from roomkit.server.scheduling import PatientThreads
from roomkit.settings import Settings


def main() -> int:
    """Serve until a signal comes, or the supervisor is gone; the exit status."""
    line = sys.stdin.buffer.readline()
    if not line:
        return 1
    orders = json.loads(line)
    settings = Settings(**{**orders["settings"], "origin": tuple(orders["settings"]["origin"])})
    number: int = orders["number"]
    listening, inbox, *senders = (socket.socket(fileno=fd) for fd in orders["descriptors"])
    configure_logging(settings.log_level, settings.log_json, number)
    with Signals() as signals, ShortCollections(), PatientThreads():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor sees to it
        peers = Peers(number, inbox, senders)
        server = Server(settings=settings, peers=peers, listening=listening)
        server.start()
        threading.Thread(target=_wait_for_end, args=(signals,), name="roomkit-lifeline", daemon=True).start()
        print("ready", flush=True)
        signals.wait()
        # Whoever stops a service may signal all of its processes, and the supervisor signals them too: another signal
        # means nothing here. Who cannot wait kills; the supervisor does.
        ended = server.stop()
        peers.close()
        return 0 if ended else 1


def _wait_for_end(signals: Signals) -> None:
    """Ends the process with its supervisor: standard input is at its end then. A daemon; ended with the process."""
    while os.read(sys.stdin.fileno(), 64):
        pass
    signals.wake()


if __name__ == "__main__":
    sys.exit(main())
