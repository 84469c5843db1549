"""Rooms that instances share by way of a backend: what of a room is not stored yet, and who owns it."""
