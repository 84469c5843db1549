"""The commands that are not the server: one module each, with ``add_arguments(parser)`` and ``run(arguments)``."""
