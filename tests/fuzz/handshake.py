"""Fuzz the opening handshake and HTTP: ``python tests/fuzz/handshake.py -max_total_time=60``."""

from fuzzing import fuzz

if __name__ == "__main__":
    fuzz("handshake")
