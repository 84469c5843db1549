"""`.ci/audit` against an advisory service on loopback: what is known fails the run, a service that is away does not."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata

import pytest
from support.fakes import PATIENCE
from support.needs import absent, need_package
from support.serve import ROOT

ADVISORY = {
    "id": "TEST-2026-1",
    "summary": "made up",
    "affected": [
        {
            "package": {"ecosystem": "PyPI", "name": "wsproto"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99"}]}],
        }
    ],
}


class Advisories(BaseHTTPRequestHandler):
    """Knows one vulnerability, in every wsproto there is."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps({"vulns": [ADVISORY]} if asked["package"]["name"] == "wsproto" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[str]:
    """The address of the service."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Advisories) as server:
        thread = threading.Thread(target=server.serve_forever, name="advisories")
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()
        thread.join(PATIENCE)


def audit(url: str) -> tuple[int, str]:
    need_package("pip_audit")
    try:
        metadata.version("roomkit-server")
    except metadata.PackageNotFoundError:
        absent("an installed roomkit-server")
    command = [sys.executable, ROOT / ".ci/audit", "-s", "osv", "--osv-url", url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


def test_a_known_vulnerability_fails_the_run(service: str) -> None:
    """It is named, with its package; the others are told to be clean, those that they need included."""
    status, told = audit(service)
    assert status == 1
    assert f"wsproto {metadata.version('wsproto')}: TEST-2026-1" in told
    assert f"h11 {metadata.version('h11')}: nothing known" in told
    assert f"markupsafe {metadata.version('markupsafe')}: nothing known" in told
    assert "pytest" not in told, "only what roomkit runs on"


def test_without_a_service_nothing_is_claimed(service: str) -> None:
    """No advisories: said so, and no failure."""
    status, told = audit(service.replace("127.0.0.1", "127.0.0.1.invalid"))
    assert status == 0
    assert told.startswith("not audited")
