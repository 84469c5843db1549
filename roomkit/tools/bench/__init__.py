"""``roomkit bench URL``: a load test of a running server: one thread, epoll, plain sockets.

``plan`` is what was asked for, ``player`` one WebSocket, ``engine`` the loop with its phases, ``latencies`` and
``result`` the counting, ``report`` the words, ``plot`` the picture, ``command`` the flags.
"""
