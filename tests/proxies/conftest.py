"""Proxies before stubs and before instances, ended with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from proxied import RealProxy, Site, program
from stubs import Stub
from support.needs import need_package
from support.stores import redis_url

__all__ = ["redis_url"]


@pytest.fixture(params=["haproxy", "nginx"])
def kind(request: pytest.FixtureRequest) -> str:
    """Of proxy."""
    program(request.param)
    return str(request.param)


@pytest.fixture
def stubs(kind: str, tmp_path: Path) -> Iterator[tuple[RealProxy, list[Stub]]]:
    """A proxy before three stubs."""
    made = [Stub(name) for name in ("one", "two", "three")]
    with ExitStack() as running:
        for stub in made:
            running.callback(stub.close)
        proxy = RealProxy(kind, [stub.port for stub in made], tmp_path)
        running.callback(proxy.stop)
        yield proxy, made


@pytest.fixture
def site(kind: str, redis_url: str, tmp_path: Path) -> Iterator[Callable[[int], Site]]:
    """Makes a site with so many instances."""
    need_package("redis")
    with ExitStack() as running:

        def make(instances: int) -> Site:
            made = Site(kind, redis_url, tmp_path, instances)
            running.callback(made.close)
            return made

        yield make
