"""deploy/compose.yaml, as far as it can be tried without an engine: its shape, and every part of it that can be run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support.fakes import eventually
from support.needs import need_package
from support.rest import request
from support.serve import ServeProcess
from support.valkey import ValkeyServer

from roomkit import cli
from roomkit.settings import SETTINGS, load_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
SECRET = "0123456789abcdef"
PASSWORD = "${VALKEY_PASSWORD:?set it, letters and digits only}"
INSTANCES = ["one", "two", "three"]


@pytest.fixture
def compose() -> dict[str, Any]:
    """The file, with the one variable filled in, as the engine does it."""
    need_package("yaml")
    import yaml

    text = (DEPLOY / "compose.yaml").read_text()
    loaded: dict[str, Any] = yaml.safe_load(text.replace(PASSWORD, SECRET))
    return loaded


def environment(service: dict[str, Any]) -> dict[str, str]:
    """What the container has; a variable without a value is that of whoever starts it, who has none here."""
    return {name: value for name, value in service["environment"].items() if value is not None}


def test_every_service_is_made_from_something_that_is_there(compose: dict[str, Any]) -> None:
    """Names of the specification only; what they refer to exists: services, configs, volumes, files."""
    assert set(compose) == {"name", "x-instance", "services", "configs", "volumes"}
    assert list(compose["services"]) == ["valkey", *INSTANCES, "proxy"]
    known = {"image", "build", "init", "environment", "depends_on", "stop_grace_period", "restart", "command"}
    known |= {"configs", "volumes", "healthcheck", "ports"}
    for name, service in compose["services"].items():
        assert set(service) <= known, name
        assert set(service.get("depends_on", [])) <= set(compose["services"])
        assert {config["source"] for config in service.get("configs", [])} <= set(compose["configs"])
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).is_file()
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).resolve().is_file()
    assert "${" not in re.sub(r"#.*", "", str(compose))


def test_nothing_is_open_to_the_world_by_itself(compose: dict[str, Any]) -> None:
    """One port, of this machine; no instance and no store can be reached past the proxy."""
    ports = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert ports == {"proxy": ["127.0.0.1:8000:8000"]}


def test_the_instances_settings_are_settings(compose: dict[str, Any]) -> None:
    """With those of the image: each has its own name and address, on the port that the image listens on; there is time
    to drain; and the command line is one that the parser takes."""
    dockerfile = re.sub(r"\\\n\s*", " ", (DEPLOY / "Dockerfile").read_text())
    assert ".[redis]" in dockerfile, "the driver is in the image"
    image = dict(re.findall(r"(ROOMKIT_\w+)=(\S+)", dockerfile.partition("ENV ")[2].partition("\n")[0]))
    cli._parsers()[1]["serve"].parse_words([])
    assert 'ENTRYPOINT ["roomkit"]\nCMD ["serve"]' in dockerfile
    for name in INSTANCES:
        service = compose["services"][name]
        given = environment(service)
        assert set(service["environment"]) <= {setting.env for setting in SETTINGS}
        settings = load_settings(None, {**image, **given})
        assert (settings.instance, settings.address) == (name, f"http://{name}:{settings.port}")
        assert settings.redis == f"redis://:{SECRET}@valkey:6379/0"
        assert settings.max_connections_per_address == 0
        assert int(service["stop_grace_period"].removesuffix("s")) > 2 * settings.drain_timeout
        assert compose["services"]["proxy"]["environment"][f"ROOMKIT_{name.upper()}"] == f"{name}:{settings.port}"


def test_the_proxy_has_the_file_that_the_tests_run(compose: dict[str, Any]) -> None:
    """tests/proxies puts this file before real instances; each of its variables is given here but the port's."""
    [mounted] = compose["services"]["proxy"]["volumes"]
    source, target, mode = mounted.split(":")
    assert (DEPLOY / source).samefile(DEPLOY / "haproxy.cfg")
    assert (target, mode) == ("/usr/local/etc/haproxy/haproxy.cfg", "ro")
    wanted = set(re.findall(r"\$\{(\w+)", (DEPLOY / source).read_text()))
    assert wanted - {"ROOMKIT_BIND"} == set(compose["services"]["proxy"]["environment"])


def test_the_store_s_file_makes_a_store_that_an_instance_can_use(compose: dict[str, Any], tmp_path: Path) -> None:
    """A real Valkey with that configuration asks for the password, keeps what it is told; an instance plays with it."""
    need_package("redis")
    service = compose["services"]["valkey"]
    assert service["command"] == ["valkey-server", service["configs"][0]["target"]]
    config = tmp_path / "valkey.conf"
    config.write_text(compose["configs"]["valkey"]["content"].replace("/data", str(tmp_path)))
    store = ValkeyServer(tmp_path / "unused", *_as_flags(config), keep=True)
    try:
        assert (store.ask("PING") or b"").startswith(b"-NOAUTH")
        given = environment(compose["services"]["one"])
        url = given["ROOMKIT_REDIS"].replace("valkey:6379", f"127.0.0.1:{store.port}")
        process = ServeProcess(env={**given, "ROOMKIT_REDIS": url})
        try:
            here = ("127.0.0.1", process.port)
            eventually(lambda: request(here, "GET", "/readyz").status == 200)
            assert request(here, "POST", "/api/rooms", {"id": "r"}).status == 201
        finally:
            assert process.stop() == 0
        assert any((tmp_path / "appendonlydir").iterdir())
    finally:
        store.stop()


def _as_flags(config: Path) -> list[str]:
    """Each line of a configuration as a flag, behind those that the test's server has of its own."""
    return [part for line in config.read_text().splitlines() for part in f"--{line}".split(" ", 1)]
