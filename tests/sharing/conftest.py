"""Instances that share a store in this process, ended with the test; and real stores."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.stores import cluster_url, own_server, redis_url
from support.unsteady import Instances

__all__ = ["cluster_url", "instances", "own_server", "redis_url"]


@pytest.fixture
def instances() -> Iterator[Instances]:
    """See Instances."""
    made = Instances()
    yield made
    made.close()
