"""Hours of a server's life in minutes: people come, play, vanish, come back, dawdle, misbehave; then nothing is left.

``python -m tests.soak`` (docs/reliability.md).
"""
