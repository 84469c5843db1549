"""What can be measured beside the server under load: the design's five disasters (``python -m benchmarks.disasters``)."""
