"""What ships for operating a server: unit, image, dashboard, alerts. Each is put to what is nearest to its real use."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from support.fakes import eventually
from support.needs import need_program
from support.serve import ServeProcess
from test_metrics import scrape

from roomkit.cli import main
from roomkit.server.process import DRAIN_SLACK
from roomkit.settings import SETTINGS, Settings, load_settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
#: Every query: (panel, expression as Prometheus gets it).
QUERIES = [
    (
        panel["title"],
        target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*"),
    )
    for panel in PANELS
    for target in panel.get("targets", [])
]
RULES = (DEPLOY / "roomkit.rules.yml").read_text()


# systemd.


def unit() -> dict[str, list[str]]:
    """The unit's settings; one that is given twice has two values."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "roomkit.service").read_text().splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say, once the program is one that this machine has; and `security` finds
    it well locked in."""
    analyze = need_program("systemd-analyze")
    path = tmp_path / "roomkit.service"
    program = unit()["ExecStart"][0].split()[0]
    path.write_text((DEPLOY / "roomkit.service").read_text().replace(program, sys.executable))
    done = subprocess.run([analyze, "verify", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = subprocess.run(
        [analyze, "security", "--offline=yes", "--threshold=20", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_unit_starts_a_command_that_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    """ExecStart's words are understood: what fails is only the file that is not on this machine."""
    words = shlex.split(unit()["ExecStart"][0])
    assert Path(words[0]).name == "roomkit"
    assert not Path(words[3]).exists()
    assert main(words[1:]) == 2
    assert "the config file cannot be read: No such file" in capsys.readouterr().err


def test_the_unit_leaves_time_to_drain() -> None:
    """systemd waits longer than a server takes, and its signal goes to the main process alone."""
    settings = unit()
    assert float(settings["TimeoutStopSec"][0]) > Settings().drain_timeout + 2 * DRAIN_SLACK
    assert (settings["KillMode"], settings["KillSignal"]) == (["mixed"], ["SIGTERM"])
    assert int(settings["LimitNOFILE"][0]) > Settings().max_connections
    assert settings["DynamicUser"] == ["yes"]


# Docker. There is no engine where this was written: the image was not built.


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, rest) of each line, continuations joined."""
    text = re.sub(r"\\\n\s*", " ", (DEPLOY / "Dockerfile").read_text())
    return [
        (w.upper(), rest)
        for w, _, rest in (line.partition(" ") for line in text.splitlines() if line[:1] not in ("", "#"))
    ]


def docker_env() -> dict[str, str]:
    return dict(pair.split("=", 1) for name, rest in dockerfile() if name == "ENV" for pair in shlex.split(rest))


def test_the_dockerfile_is_two_stages_and_ends_as_nobody() -> None:
    """Known instructions only; the last stage copies from the first, takes another user before it ends, and nothing
    runs as root after that; a stop is a drain."""
    lines = dockerfile()
    known = {
        "FROM",
        "WORKDIR",
        "COPY",
        "RUN",
        "USER",
        "ENV",
        "EXPOSE",
        "STOPSIGNAL",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
    }
    assert {name for name, _ in lines} <= known
    stages = [n for n, (name, _) in enumerate(lines) if name == "FROM"]
    assert len(stages) == 2
    last = lines[stages[1] :]
    assert lines[stages[0]][1].endswith(" AS build")
    assert lines[stages[1]][1].endswith("-slim"), "small"
    assert lines[stages[0]][1].split()[0] == lines[stages[1]][1], "the venv's Python must be that of the image"
    assert any(name == "COPY" and rest.startswith("--from=build ") for name, rest in last)
    names = [name for name, _ in last]
    assert dict(last)["USER"] not in ("root", "0")
    assert "RUN" not in names[names.index("USER") :]
    assert dict(last)["STOPSIGNAL"] == "SIGTERM"
    for name in ("ENTRYPOINT", "CMD"):
        assert isinstance(json.loads(dict(last)[name]), list), "as a list: a shell in between would keep the signals"


def test_the_image_s_settings_are_settings() -> None:
    """Every ROOMKIT_ variable is one, it listens for the world outside, on the port that is exposed."""
    ours = {name: value for name, value in docker_env().items() if name.startswith("ROOMKIT_")}
    assert set(ours) <= {setting.env for setting in SETTINGS}
    settings = load_settings(None, ours)
    assert settings.host == "0.0.0.0"
    assert [rest for name, rest in dockerfile() if name == "EXPOSE"] == [str(settings.port)]


def test_the_image_s_health_check_tells_a_live_server_from_a_dead_one() -> None:
    """The command itself, run against a server that lives and then against its port without one."""
    (health,) = [rest for name, rest in dockerfile() if name == "HEALTHCHECK"]
    command = json.loads(health.partition("CMD ")[2])
    assert command[0] == "python"
    command[0] = sys.executable
    server = ServeProcess()
    try:
        environ = {"ROOMKIT_PORT": str(server.port)}
        assert subprocess.run(command, env=environ, capture_output=True, check=False).returncode == 0
    finally:
        server.stop()
    assert subprocess.run(command, env=environ, capture_output=True, check=False).returncode == 1


# Grafana and Prometheus.


def test_the_dashboard_has_the_shape_that_grafana_loads() -> None:
    """Version, unique ids, places on the grid of 24 that do not overlap, the data source by a variable everywhere."""
    assert DASHBOARD["schemaVersion"] >= 36
    assert DASHBOARD["uid"]
    assert "__inputs" not in DASHBOARD, "an export for sharing; this one is provisioned as it is"
    assert "id" not in DASHBOARD, "the database of whoever loads it gives one"
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids) > 20
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert 0 < place["w"] <= 24 - place["x"], panel["title"]
        assert panel["type"] in ("row", "stat", "timeseries")
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            refs = [target["refId"] for target in panel["targets"]]
            assert len(set(refs)) == len(refs) > 0
            for part in (panel, *panel["targets"]):
                assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for one, other in combinations([panel["gridPos"] for panel in PANELS], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
    variables = {variable["name"]: variable["type"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource": "datasource", "instance": "query"}


def test_every_query_asks_for_a_metric_that_there_is() -> None:
    """With the labels that it has, in a real scrape with workers; every counter within rate() or increase(); nothing
    that would show one line for each worker unasked. And every metric of ours is on the dashboard, or left out on
    purpose."""
    server = ServeProcess("--workers", "2")
    try:
        families = scrape(("127.0.0.1", server.port))
    finally:
        server.stop()
    labels: dict[str, set[str]] = {}
    for family in families.values():
        for sample in family.samples:
            labels.setdefault(sample.name, {"instance", "job"}).update(sample.labels)
    counters = {s.name for f in families.values() if f.type == "counter" for s in f.samples}
    asked = set()
    rules = [
        ("rules", expr)
        for expr in re.findall(r"expr: (?:>-\n((?:          .*\n)+)|(.*)\n)", RULES)
        for expr in expr
        if expr
    ]
    for panel, query in QUERIES + rules:
        for name, chosen in re.findall(r"\b((?:roomkit|process)_\w+)(?:\{(.*?)\})?", query):
            assert name in labels, f"{panel}: {name} is in no scrape"
            asked.add(name)
            assert set(re.findall(r"(\w+)=", chosen)) <= labels[name], (panel, query)
            for grouped in re.findall(r"by \(([\w, ]+)\)", query):
                assert set(grouped.split(", ")) <= labels[name], (panel, query)
            if name in counters:
                assert re.search(rf"(rate|increase)\({name}", query), (panel, query)
        assert re.match(r"(sum|min|max|histogram_quantile|up)\b", query.strip()), (panel, query)
    ours = {f.name + "_total" * (f.type == "counter") for f in families.values() if f.name.startswith("roomkit_")}
    shown = {name.removesuffix("_bucket").removesuffix("_sum") for name in asked}
    assert ours - shown == {
        "roomkit_build_info",
        "roomkit_connections_adopted_total",
        "roomkit_connections_handed_over_total",
    }


class Prometheus:
    """A real one, that scrapes two servers every 0.2 s: one alone, one of two workers."""

    def __init__(self, directory: Path, targets: list[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        config = (DEPLOY / "prometheus.yml").read_text()
        assert '["127.0.0.1:8080"]' in config
        config = config.replace('["127.0.0.1:8080"]', json.dumps(targets)).replace(": 10s", ": 200ms")
        (directory / "prometheus.yml").write_text(
            config.replace("roomkit.rules.yml", str(DEPLOY / "roomkit.rules.yml"))
        )
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        self._process = subprocess.Popen(
            [
                need_program("prometheus"),
                f"--config.file={directory}/prometheus.yml",
                f"--storage.tsdb.path={directory}/data",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            stdout=self._log,
            stderr=self._log,
        )

    def ask(self, path: str, **query: str) -> Any:
        """The data of an answer of its API; None while it does not answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", f"/api/v1/{path}?{urlencode(query)}")
            answer = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()
        assert answer["status"] == "success", answer
        return answer["data"]

    def value(self, query: str) -> list[dict[str, Any]]:
        data = self.ask("query", query=query)
        result: list[dict[str, Any]] = [] if data is None else data["result"]
        return result

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait()
            self._log.close()


@contextlib.contextmanager
def prometheus(directory: Path) -> Iterator[Prometheus]:
    """Prometheus and its two servers, after some scrapes."""
    need_program("prometheus")
    servers = [ServeProcess(), ServeProcess("--workers", "2")]
    made = None
    try:
        made = Prometheus(directory, [f"127.0.0.1:{server.port}" for server in servers])
        asked = made
        eventually(lambda: len(asked.value("count_over_time(up[1m]) >= 4 and up == 1")) == 2)
        yield made
    finally:
        if made is not None:
            made.stop()
        for server in servers:
            server.stop()


def test_prometheus_itself_answers_every_query(tmp_path: Path) -> None:
    """A real Prometheus with the shipped configuration scrapes a server alone and one of two workers; every query of
    the dashboard gives data that a panel can show (or nothing, where it is about what did not happen), once for all
    workers, and every alert rule is evaluated without an error."""
    with prometheus(tmp_path) as real:
        for panel, query in QUERIES:
            result = real.value(query)
            if not query.endswith("> 0"):
                assert result, (panel, query)
            if "by (" not in query:
                assert len(result) <= 1, (panel, query)
        assert real.value('sum(roomkit_limit{limit="connections"})')[0]["value"][1] == "20000", "both workers' halves"
        (group,) = real.ask("rules")["groups"]
        eventually(lambda: all(r["health"] == "ok" for r in real.ask("rules")["groups"][0]["rules"]))
        assert len(group["rules"]) == 6
        # Nothing is wrong with servers that idle; on a busy machine a scrape may fail, and the next one clears that.
        eventually(lambda: real.ask("alerts") == {"alerts": []})


def test_promtool_takes_configuration_and_rules() -> None:
    """Prometheus's own check."""
    promtool = need_program("promtool")
    done = subprocess.run(
        [promtool, "check", "config", str(DEPLOY / "prometheus.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 rules found" in done.stdout
