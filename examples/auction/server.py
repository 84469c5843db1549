"""A live auction: one lot after the other, bids in the server's order, a hammer that waits for late bids.

    python examples/auction/server.py --seconds 60 --extension 10

The rules are the table AUCTION and the function check_bid; nothing else decides. In `closing`, the last seconds, a bid
moves the end and leads back to `open`; the hammer only falls in `closing`. So when a bid and the hammer meet, the
room's order says who was first: the bid counts and the hammer is refused, or the lot is sold and the bid is refused.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from werkzeug.utils import send_from_directory
from werkzeug.wrappers import Request, Response

from roomkit import InvalidTransition, Lifecycle, Operation, OperationRefused, Room, RoomBusy, RoomManager, RoomState
from roomkit.server import Server
from roomkit.settings import Settings

LOTS = [("A lighthouse lamp", 200, 10), ("Seven brass buttons", 20, 1), ("The captain's second piano", 900, 50)]
HIGHEST = 1_000_000_000


def check_bid(state: RoomState, player_id: str | None, data: dict[str, Any]) -> dict[str, Any]:
    """Whether a bid counts, and what it changes. Pure: the room asks it under its lock, one bid after the other."""
    lot, amount, player = state.settings, data.get("amount"), state.get_player(player_id or "")
    if "ends_at" not in lot:
        raise OperationRefused("the bidding has not begun")
    if player is None or player.id == state.host:
        raise OperationRefused("the auctioneer does not bid")
    if set(data) != {"amount"} or type(amount) is not int or amount > HIGHEST:
        raise OperationRefused("a bid is a whole number, and not more than anybody has")
    if player.id == lot.get("bidder"):
        raise OperationRefused("the highest bid is yours already")
    least = lot["amount"] + lot["step"] if "bidder" in lot else lot["start"]
    if amount < least:
        raise OperationRefused(f"a bid must now be at least {least}")
    late = {"ends_at": lot["ends_at"] + lot["extension"]} if state.status == "closing" else {}
    return {"amount": amount, "bidder": player.id, "bidder_name": player.name, **late}


def check_start(state: RoomState, player_id: str | None, data: dict[str, Any]) -> dict[str, Any]:
    """The lot's terms become settings, which everybody sees. Times are milliseconds, by the server's clock."""
    if player_id is not None:
        raise OperationRefused("only the auctioneer starts")
    return data


AUCTION = Lifecycle(
    "auction",
    {
        "open": {
            "add_player": "open",
            "remove_player": "open",
            "start": "open",
            "bid": "open",
            "warn": "closing",
            "close": "closed",
        },
        "closing": {
            "add_player": "closing",
            "remove_player": "closing",
            "bid": "open",
            "hammer": [("somebody_bid", "sold"), "closed"],
            "close": "closed",
        },
        "sold": {"add_player": "sold", "remove_player": "sold", "close": "closed"},
    },
    finished=["sold"],
    guards={"somebody_bid": lambda room: "bidder" in room.settings},
    operations={
        "start": Operation(check=check_start),
        "bid": Operation(check=check_bid),
        "warn": Operation(host_only=True),
        "hammer": Operation(host_only=True),
    },
)


def put_up(rooms: RoomManager, lot: tuple[str, int, int], now: float, seconds: float, extension: float) -> Room:
    """Open the bidding for a lot at ``now``. The auctioneer has the first seat, so that no bidder becomes host."""
    title, start, step = lot
    room = rooms.create_room(max_players=500, min_players=1, max_lifetime=0, empty_ttl=0)
    room.add_player("auctioneer", "The auctioneer")
    times = {"ends_at": int((now + seconds) * 1000), "extension": int(extension * 1000)}
    room.perform("start", None, {"title": title, "start": start, "step": step, **times})
    return room


def attend(room: Room, now: float) -> float | None:
    """Do what is due in a lot at ``now`` (Unix seconds); the seconds until there is more to do, None: it is over."""
    state = room.get_state()
    if state.status not in ("open", "closing"):
        return None
    operation, lead = ("warn", state.settings["extension"]) if state.status == "open" else ("hammer", 0)
    wait = (state.settings["ends_at"] - lead) / 1000 - now
    if wait > 0:
        return wait
    try:
        room.perform(operation)
    except (InvalidTransition, RoomBusy):
        pass  # a bid was first, and has moved the end: look again
    return 0.0


class Auctioneer:
    """Puts up the lots in turn, on a thread of its own (``auctioneer``), which :meth:`stop` ends and joins.

    Its clock counts on from the wall clock at the start, so that setting the computer's clock moves no end.
    """

    def __init__(self, rooms: RoomManager, seconds: float, extension: float, pause: float) -> None:
        self._rooms, self._seconds, self._extension, self._pause = rooms, seconds, extension, pause
        self._offset = time.time() - time.monotonic()
        self._stopped = threading.Event()
        self.room = self._put_up(LOTS[0])
        self._thread = threading.Thread(target=self._run, name="auctioneer", daemon=True)
        self._thread.start()

    def _now(self) -> float:
        return time.monotonic() + self._offset

    def _put_up(self, lot: tuple[str, int, int]) -> Room:
        return put_up(self._rooms, lot, self._now(), self._seconds, self._extension)

    def _run(self) -> None:
        for lot in itertools.cycle([*LOTS[1:], LOTS[0]]):
            while (delay := attend(self.room, self._now())) is not None:
                if self._stopped.wait(delay):
                    return
            if self._stopped.wait(self._pause):
                return
            self.room = self._put_up(lot)

    def stop(self) -> None:
        """No lot is put up any more; waits for the thread, which never does anything long."""
        self._stopped.set()
        self._thread.join(5)


HERE = Path(__file__).resolve().parent


def pages(auctioneer: Auctioneer) -> Callable[..., Iterable[bytes]]:
    """The page, what it loads, and which room has the lot of now: ``GET /lot``."""

    @Request.application
    def answer(request: Request) -> Response:
        if request.path == "/lot":
            return Response(json.dumps({"room": auctioneer.room.id}), content_type="application/json")
        path = request.path.lstrip("/") or "index.html"
        folder = HERE.parent / "shared" if path.startswith("shared/") else HERE / "page"
        response = send_from_directory(folder, path.removeprefix("shared/"), request.environ)
        response.headers["Content-Security-Policy"] = "default-src 'self'; img-src data:"
        return response

    return answer


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description="A live auction.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=8000, help="port to listen on; 0: a free one (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=60, help="how long a lot is open (default: %(default)s)")
    parser.add_argument("--extension", type=float, default=10, help="what a late bid adds (default: %(default)s)")
    parser.add_argument("--pause", type=float, default=10, help="seconds between two lots (default: %(default)s)")
    given = parser.parse_args()
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # before there is any thread; this one waits for them, below
    rooms = RoomManager(lifecycle=AUCTION)
    auctioneer = Auctioneer(rooms, given.seconds, given.extension, given.pause)
    with Server(rooms, Settings(host=given.host, port=given.port), application=pages(auctioneer)) as server:
        print(f"auction on {server.url}", flush=True)
        signal.sigwait(ends)
        auctioneer.stop()


if __name__ == "__main__":
    main()
