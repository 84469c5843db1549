"""What can be measured.

* ``python -m benchmarks.disasters``: the design's five disasters, broken and cured.
* ``python -m benchmarks.counts``: what is stable, counted, and compared with a stored baseline.
* ``python -m pytest benchmarks/bench_library.py``: what the library costs, by the clock.
* ``python -m benchmarks.load``: the server under load, beside the least that plain Python can do.
* ``python -m benchmarks.instances``: rooms that instances share, one instance and several, beside peers.
"""
