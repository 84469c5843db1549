"""Fuzz frames on an open WebSocket: ``python tests/fuzz/frames.py -max_total_time=60``."""

from fuzzing import fuzz

if __name__ == "__main__":
    fuzz("frames")
