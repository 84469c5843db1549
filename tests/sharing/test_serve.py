"""``roomkit serve --redis``: as its operator starts it, with real stores: passwords, TLS, sockets, none at all."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.fakes import eventually
from support.needs import need_package, need_program
from support.program import roomkit, sentence
from support.rest import request
from support.serve import ServeProcess
from support.tls import TlsFront, make_certificate
from support.valkey import ValkeyServer
from support.ws import WsClient

from roomkit import BackendUnavailable, RoomManager
from roomkit.runtime import new_short_id
from roomkit.server import Server
from roomkit.settings import InvalidSetting, Settings

SECRET = "correct-horse-battery"
#: Of an instance in these tests, in seconds.
TTL = "1"

Start = Callable[..., ServeProcess]


@pytest.fixture
def serve() -> Iterator[Start]:
    """Starts instances, with the store's URL in the environment, and sees to it that they end."""
    need_package("redis")
    with ExitStack() as running:

        def start(url: str, *flags: str) -> ServeProcess:
            process = ServeProcess("--lease-ttl", TTL, "--log-level", "debug", *flags, env={"ROOMKIT_REDIS": url})
            running.callback(process.stop)
            return process

        yield start


def readiness(process: ServeProcess) -> str:
    """What its /readyz says."""
    answer = request(("127.0.0.1", process.port), "GET", "/readyz")
    status: str = answer.json["status"]
    assert answer.status == (200 if status == "ready" else 503)
    return status


def play(process: ServeProcess, room_id: str = "r") -> None:
    """It makes a room, which is stored, and somebody plays there."""
    here = ("127.0.0.1", process.port)
    made = request(here, "POST", "/api/rooms", {"id": room_id})
    assert made.status == 201, made.body
    with WsClient(here, room_id=room_id, player_id="amy") as amy:
        amy.expect("welcome")
        amy.do("message", {"text": "hello"})


# As it is meant.


def test_a_room_goes_on_at_the_other_instance(redis_url: str, serve: Start) -> None:
    """Both by the command line alone; the one with the room is killed, and its player resumes at the other."""
    flags = ("--redis-prefix", f"test-{new_short_id()}:")
    one, two = serve(redis_url, *flags), serve(redis_url, *flags)
    assert request(("127.0.0.1", one.port), "POST", "/api/rooms", {"id": "r"}).status == 201
    with WsClient(("127.0.0.1", one.port), room_id="r", player_id="amy") as amy:
        amy.expect("welcome")
        seq = amy.do("message", {"n": 1})["seq"]
        known = {"token": amy.welcome["token"], "epoch": amy.welcome["epoch"], "seq": seq}
        os.kill(one.pid, signal.SIGKILL)
    eventually(lambda: "goes on with 1 rooms" in two.output)
    with WsClient(("127.0.0.1", two.port), room_id="r", player_id="amy", **known) as amy:
        assert amy.expect("welcome")["data"]["recovered"]


def test_instances_with_another_prefix_do_not_meet(redis_url: str, serve: Start) -> None:
    """One store, two installations: the same room id is free at both."""
    for _ in range(2):
        play(serve(redis_url, "--redis-prefix", f"test-{new_short_id()}:"))


def test_it_says_who_it_is_and_where_its_rooms_are(own_server: ValkeyServer, serve: Start) -> None:
    """Its lines at the start, and what the other instances are told: the name, and the address with the real port."""
    from roomkit.backends.redis import RedisBackend

    web = serve(own_server.url, "--instance", "web-1", "--redis-prefix", "mine:")
    said = re.search(
        r"\ninstance (web-1\.\w{18}) shares its rooms by (\S+), keys mine:\*\nstop it with Ctrl-C\n", web.output
    )
    assert said, web.output
    assert said[2] == own_server.url
    elsewhere = serve(own_server.url, "--redis-prefix", "mine:", "--address", "https://b.example:8443/")
    anywhere = serve(own_server.url, "--redis-prefix", "mine:", "--host", "0.0.0.0")
    backend = RedisBackend(own_server.url, prefix="mine:")
    try:
        eventually(lambda: len(backend.instances()) == 3)
        told = {instance.name.rpartition(".")[0]: set[str]() for instance in backend.instances()}
        for instance in backend.instances():
            told[instance.name.rpartition(".")[0]].add(instance.address)
    finally:
        backend.close()
    host = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:45]
    assert told == {
        "web-1": {web.url},
        host: {"https://b.example:8443", f"http://{socket.gethostname()}:{anywhere.port}"},
    }
    assert elsewhere.stop() == 0


def test_the_settings_come_by_file_and_flag_too(own_server: ValkeyServer, serve: Start, tmp_path: Path) -> None:
    """TOML and flags: what the environment says in the other tests."""
    config = tmp_path / "roomkit.toml"
    config.write_text(f'redis = "{own_server.url}"\nredis_prefix = "file:"\nlease_ttl = 2\ninstance = "filed"\n')
    for flags in (("--config", str(config)), ("--redis", own_server.url, "--redis-prefix", "flag:")):
        process = ServeProcess(*flags)
        try:
            play(process)
        finally:
            assert process.stop() == 0
    keys = own_server.ask("KEYS", "*:room:{r}")
    assert keys is not None
    assert b"file:room:{r}" in keys
    assert b"flag:room:{r}" in keys


# Without a store, or with half of one.


def test_without_the_store_it_starts_and_serves_once_that_is_there(own_server: ValkeyServer, serve: Start) -> None:
    """Absent at the start: not ready and says so; a clear answer to who wants a room; then full service."""
    own_server.kill()
    process = serve(own_server.url)
    eventually(lambda: readiness(process) == "store_unavailable")
    refused = request(("127.0.0.1", process.port), "POST", "/api/rooms", {"id": "r"})
    assert (refused.status, refused.error) == (503, "backend_unavailable")
    assert request(("127.0.0.1", process.port), "GET", "/healthz").status == 200
    own_server.start()
    eventually(lambda: readiness(process) == "ready")
    play(process)


def test_without_the_store_it_can_be_stopped(own_server: ValkeyServer, serve: Start) -> None:
    """A signal ends it well, though nobody answers."""
    own_server.kill()
    process = serve(own_server.url)
    eventually(lambda: readiness(process) == "store_unavailable")
    assert process.stop() == 0, process.output


def test_without_the_package_it_says_how_to_get_it() -> None:
    """One sentence, with the command."""
    program = "import sys; sys.modules['redis'] = None; from roomkit.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", program, "serve", "--port", "0", "--redis", f"redis://:{SECRET}@h"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = sentence(done, 2)
    assert said == "roomkit: setting redis: needs the package redis: pip install 'roomkit-server[redis]'"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://h?sokcet_timeout=1", "the options of the URL cannot be used: sokcet_timeout"),
        ("redis://h?socket_timeout=soon", "the options of the URL cannot be used: socket_timeout"),
        ("rediss://h?ssl_cert_reqs=perhaps", "the options of the URL cannot be used: ssl_cert_reqs"),
        (
            "rediss://h?ssl_ca_certs=/nowhere/ca.pem",
            "the file of ssl_ca_certs, /nowhere/ca.pem, cannot be read: No such file or directory",
        ),
    ],
)
def test_an_option_that_is_none_is_one_sentence_at_the_start(url: str, says: str) -> None:
    """Not an error of every connection for ever after."""
    need_package("redis")
    with_password = url.replace("://", f"://:{SECRET}@")
    said = sentence(roomkit("serve", "--port", "0", env={"ROOMKIT_REDIS": with_password}), 2)
    assert said == f"roomkit: setting redis: {says}"


def test_several_workers_cannot_share(redis_url: str) -> None:
    """One sentence that says what to do instead."""
    said = sentence(roomkit("serve", "--port", "0", "--workers", "2", env={"ROOMKIT_REDIS": redis_url}), 2)
    assert said.endswith(
        "workers do not share rooms by redis; run that many instances instead, each without workers"
    ), said


# From Python.


def test_a_server_closes_the_store_that_it_made_and_no_other(redis_url: str) -> None:
    """After stop: its own answers nobody any more; one that came with the manager still does."""
    need_package("redis")
    from roomkit.backends.redis import RedisBackend

    prefix = f"test-{new_short_id()}:"
    settings = Settings(port=0, redis=redis_url, redis_prefix=prefix, lease_ttl=1.0)
    with Server(settings=settings) as server:
        assert server.rooms.shares_rooms
        assert server._store is not None
        server.rooms.create_room("r")
    with pytest.raises(BackendUnavailable, match="closed"):
        server._store.instances()
    brought = RedisBackend(redis_url, prefix=prefix)
    with Server(RoomManager(backend=brought), settings) as server:
        assert server._store is None
        assert server.rooms.get_room("r").id == "r"
    assert brought.instances() == []
    brought.close()


def test_a_store_that_cannot_be_used_leaves_nothing_behind(redis_url: str) -> None:
    """The constructor raises; there is no port, thread or socket to close."""
    need_package("redis")
    with pytest.raises(InvalidSetting, match="options of the URL"):
        Server(settings=Settings(port=0, redis="redis://h?nonsense=1"))


# Passwords.


def everything(process: ServeProcess) -> str:
    """What it printed, logged, and shows on its pages and to other users of the machine."""
    here = ("127.0.0.1", process.port)
    pages = ("/debug/rooms", "/metrics", "/api/admin/stats", "/api/admin/rooms", "/api/rooms", "/readyz", "/nowhere")
    shown = b"".join(request(here, "GET", page).body for page in pages)
    command_line = Path(f"/proc/{process.pid}/cmdline")
    shown += command_line.read_bytes() if command_line.exists() else b""
    return process.output + shown.decode()


def test_a_password_opens_the_store_and_is_never_shown(tmp_path: Path, serve: Start) -> None:
    """Given in the environment, rightly and wrongly, to an instance that logs everything, and to one that dies."""
    need_package("redis")
    store = ValkeyServer(tmp_path / "valkey", "--requirepass", SECRET)
    try:
        right = serve(store.url.replace("://", f"://:{SECRET}@"))
        play(right)
        wrong = serve(store.url.replace("://", f"://:not-{SECRET}@"))
        eventually(lambda: readiness(wrong) == "store_unavailable")
        none = serve(store.url)
        eventually(lambda: readiness(none) == "store_unavailable")
        store.kill()
        eventually(lambda: readiness(right) == "store_unavailable")
        refused = request(("127.0.0.1", right.port), "POST", "/api/rooms", {"id": "s"})
        assert SECRET not in refused.body.decode()
        for process in (right, wrong, none):
            shown = everything(process)
            process.stop()
            assert "does not answer" in shown + process.output
            assert SECRET not in shown + process.output
        assert SECRET not in repr(Settings(redis=f"redis://:{SECRET}@h"))
    finally:
        store.stop()


def test_a_user_of_the_store_needs_no_more_than_this(tmp_path: Path, serve: Start) -> None:
    """The ACL that docs/instances.md shows: its keys and channels, and no command that is dangerous but two."""
    rule = re.search(r"^user roomkit .*$", (Path(__file__).parents[2] / "docs/instances.md").read_text(), re.MULTILINE)
    assert rule
    acl = tmp_path / "users.acl"
    acl.write_text("user default off\n" + rule[0].replace("PASSWORD", SECRET) + "\n")
    store = ValkeyServer(tmp_path / "valkey", "--aclfile", str(acl))
    try:
        url = store.url.replace("://", f"://roomkit:{SECRET}@")
        one, two = serve(url), serve(url)
        play(one)
        os.kill(one.pid, signal.SIGKILL)
        eventually(lambda: "goes on with 1 rooms" in two.output)
        assert request(("127.0.0.1", two.port), "DELETE", "/api/rooms/r").status == 204
        assert two.stop() == 0
        assert "NOPERM" not in two.output
        other = serve(url, "--redis-prefix", "other:")
        eventually(lambda: readiness(other) == "store_unavailable")
    finally:
        store.stop()


# Ways to the store.


def test_tls_with_a_certificate_of_one_s_own(tmp_path: Path, serve: Start) -> None:
    """rediss:// with the authority's file; a store with another certificate, or one that nobody knows, is none."""
    need_package("redis")
    need_program("openssl")
    (tmp_path / "other").mkdir()
    cert, key = make_certificate(tmp_path)
    other, _ = make_certificate(tmp_path / "other")
    store = ValkeyServer(tmp_path / "valkey", "--requirepass", SECRET)
    try:
        with TlsFront(store.port, cert, key) as front:
            url = f"rediss://:{SECRET}@localhost:{front.port}/0"
            good = serve(f"{url}?ssl_ca_certs={cert}")
            play(good)
            assert front.refused == 0
            assert f"shares its rooms by rediss://localhost:{front.port}/0," in good.output
            for options in (f"?ssl_ca_certs={other}", ""):
                bad = serve(url + options)
                eventually(lambda bad=bad: readiness(bad) == "store_unavailable")  # type: ignore[misc]
                eventually(lambda bad=bad: "CERTIFICATE_VERIFY_FAILED" in bad.output)  # type: ignore[misc]
                assert SECRET not in bad.output
            assert front.refused > 0
            for process in (good, bad):
                process.stop()
    finally:
        store.stop()


def test_a_unix_socket(tmp_path: Path, serve: Start) -> None:
    """No port at all."""
    need_package("redis")
    path = tmp_path / "v.sock"
    store = ValkeyServer(tmp_path / "valkey", "--unixsocket", str(path), "--requirepass", SECRET)
    try:
        process = serve(f"unix://:{SECRET}@{path}?db=1")
        play(process)
        assert f"shares its rooms by unix://{path}," in process.output
        assert SECRET not in everything(process)
        assert process.stop() == 0
    finally:
        store.stop()
