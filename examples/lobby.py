"""A game lobby without sockets: four players, one round, every event printed.

python examples/lobby.py
"""

from __future__ import annotations

import threading

from roomkit import Event, InvalidTransition, RoomManager


def main() -> None:
    """Play one round."""
    over = threading.Event()

    def show(event: Event) -> None:
        print(f"{event.seq:3}  {event.type:15} {event.data}")
        if event.type == "room_closed":
            over.set()

    with RoomManager() as rooms:
        room = rooms.create_room("lobby-1", max_players=4)
        room.subscribe(show)
        for name in ("Amy", "Bob", "Cat", "Dan"):
            room.add_player(name.lower(), name)
        room.select_song("bob", "song-7")
        try:
            room.start_game("amy")
        except InvalidTransition as refusal:
            print(f"     refused         {refusal}")
        for player in room.get_players():
            room.set_player_ready(player.id)
        room.start_game("amy")
        room.send_message("cat", {"text": "good luck"})
        room.finish_game("amy", {"amy": 9120, "bob": 8730, "cat": 9440, "dan": 7010})
        room.close("thanks for playing")
        over.wait(5)


if __name__ == "__main__":
    main()
