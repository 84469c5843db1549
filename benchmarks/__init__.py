"""What can be measured: the design's five disasters (``python -m benchmarks.disasters``)."""
