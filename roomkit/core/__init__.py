"""The pure core: no thread, clock, socket, randomness or logging in here (import-linter holds it)."""
