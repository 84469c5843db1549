"""Servers on loopback for the tests of the tools."""

from __future__ import annotations

from support.bench import bench as bench
