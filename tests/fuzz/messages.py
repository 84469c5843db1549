"""Fuzz messages in a room: ``python tests/fuzz/messages.py -max_total_time=60``."""

from fuzzing import fuzz

if __name__ == "__main__":
    fuzz("messages")
