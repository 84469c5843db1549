"""Servers for the tests of what is stored, each started once. ROOMKIT_REDIS_URL points them at one of your own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.valkey import ValkeyCluster, ValkeyServer


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server that nobody kills."""
    given = os.environ.get("ROOMKIT_REDIS_URL")
    if given:
        yield given
        return
    server = ValkeyServer(tmp_path_factory.mktemp("valkey"))
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a cluster of three masters that nobody kills."""
    cluster = ValkeyCluster(tmp_path_factory.mktemp("cluster"))
    yield cluster.url
    cluster.stop()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A server to be killed, which keeps what it was told."""
    server = ValkeyServer(tmp_path / "valkey", keep=True)
    yield server
    server.stop()


@pytest.fixture
def forgetful_server(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A server to be killed, which forgets everything with it."""
    server = ValkeyServer(tmp_path / "valkey")
    yield server
    server.stop()
