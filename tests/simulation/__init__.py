"""roomkit on a virtual clock under a seeded scheduler: docs/simulation.md. ``python -m tests.simulation`` runs it."""
