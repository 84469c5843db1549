"""The peers' servers, each as small as an application would write it: a member enters a room, a message goes to all.

They run in environments of their own: see ``benchmarks.peers.setup``.
"""
