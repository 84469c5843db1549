"""Threads' tools, with no rooms in them."""
