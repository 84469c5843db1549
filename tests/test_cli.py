"""The command line as a user or a service manager meets it: real processes, their exit statuses and what they say."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.program import Running, roomkit, sentence

from roomkit._version import __version__
from roomkit.cli import main
from roomkit.core.diagram import to_markdown, to_mermaid, to_page
from roomkit.core.drawing import to_svg
from roomkit.core.lifecycle import GAME
from roomkit.server.process import Signals
from roomkit.settings import load_settings, settings_table_markdown

ROOT = Path(__file__).parents[1]
#: Seconds that anything may take on a slow machine. Far less than the drains that a second signal must cut short.
DEADLINE = 30.0
LONG = 600  # seconds
SECRET = "correct-horse-battery"


class Serving(Running):
    """A ``roomkit serve`` that runs."""

    def __init__(self, *flags: str) -> None:
        super().__init__("serve", "--port", "0", *flags)

    def wait_address(self) -> tuple[str, int]:
        """What it listens on, from its first line."""
        first = self.out.get(timeout=DEADLINE)
        found = re.fullmatch(
            rf"roomkit {re.escape(__version__)} listens on (http://\S+)  \(open it in a browser\)", first
        )
        assert found, first
        assert self.out.get(timeout=DEADLINE) == "stop it with Ctrl-C"
        url = urlsplit(found[1])
        assert url.hostname
        assert url.port
        return url.hostname, url.port

    def wait_end(self) -> tuple[int, list[str]]:
        """The exit status, and what is left on standard error."""
        return self.end(), list(self.err.queue)


@pytest.fixture
def serve() -> Iterator[Any]:
    """Starts servers, and sees to it that they end."""
    running: list[Serving] = []

    def start(*flags: str) -> Serving:
        running.append(Serving(*flags))
        return running[-1]

    yield start
    for serving in running:
        serving.close()


# Without a command, and words that are wrong


def test_no_command_prints_the_help() -> None:
    done = roomkit()
    assert done.returncode == 0
    assert done.stderr == ""
    for word in ("usage: roomkit", "serve", "fsm", "settings"):
        assert word in done.stdout


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["serve", "--help"], ["fsm", "-h"], ["settings", "-h"]])
def test_version_and_help_exit_with_0(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"roomkit {__version__}\n" if words == ["--version"] else "usage: roomkit")
    assert err == ""


def test_version_of_a_real_process() -> None:
    done = roomkit("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"roomkit {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["srve"], "roomkit: unknown command 'srve'; did you mean serve? (see roomkit --help)"),
        (["dance"], "roomkit: unknown command 'dance' (see roomkit --help)"),
        (["--vresion"], "roomkit: unknown flag --vresion; did you mean --version? (see roomkit --help)"),
        (["--version=1"], "roomkit: argument --version: takes no value (see roomkit --help)"),
        (["--"], "roomkit: takes flags only, and got something else (see roomkit --help)"),
        (
            ["--port", "1", "serve"],
            "roomkit: the flag --port goes behind the command: roomkit serve --port ... (see roomkit --help)",
        ),
        (
            ["--admin-token", SECRET, "serve"],
            "roomkit: the flag --admin-token goes behind the command: roomkit serve --admin-token ... "
            "(see roomkit --help)",
        ),
        (["--admin-tokn=" + SECRET], "roomkit: unknown flag --admin-tokn (see roomkit --help)"),
        (
            ["serve", "--prot", "1"],
            "roomkit serve: unknown flag --prot; did you mean --port? (see roomkit serve --help)",
        ),
        (
            ["serve", "--admin-tokn", SECRET],
            "roomkit serve: unknown flag --admin-tokn; did you mean --admin-token? (see roomkit serve --help)",
        ),
        (
            ["serve", "--admin_token=" + SECRET],
            "roomkit serve: unknown flag --admin_token; did you mean --admin-token? (see roomkit serve --help)",
        ),
        (
            ["serve", "--admin-token:" + SECRET],
            "roomkit serve: unknown flag --admin-token; did you mean --admin-token? (see roomkit serve --help)",
        ),
        (
            ["serve", "-port", "1"],
            "roomkit serve: unknown flag -port; did you mean --port? (see roomkit serve --help)",
        ),
        (["serve", "-p" + SECRET], "roomkit serve: unknown flag -p (see roomkit serve --help)"),
        (["serve", SECRET], "roomkit serve: takes flags only, and got something else (see roomkit serve --help)"),
        (["serve", "--", SECRET], "roomkit serve: takes flags only, and got something else (see roomkit serve --help)"),
        (
            ["serve", "--admin-token"],
            "roomkit serve: argument --admin-token: expected one argument (see roomkit serve --help)",
        ),
        (["fsm", "--ouput=x"], "roomkit fsm: unknown flag --ouput; did you mean --output? (see roomkit fsm --help)"),
        (["settings", "x"], "roomkit settings: takes flags only, and got something else (see roomkit settings --help)"),
    ],
    ids=lambda value: " ".join(value).replace(SECRET, "SECRET") if isinstance(value, list) else "",
)
def test_wrong_words_get_one_sentence_without_secrets(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", says + "\n")
    assert SECRET not in err


# fsm and settings


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], to_markdown(GAME)),
        (["--format", "table"], to_markdown(GAME)),
        (["--format", "mermaid"], to_mermaid(GAME)),
        (["--format", "svg"], to_svg(GAME)),
        (["--format", "page"], to_page(GAME)),
    ],
    ids=["default", "table", "mermaid", "svg", "page"],
)
def test_fsm_prints_what_the_table_gives_in_any_locale(flags: list[str], text: str) -> None:
    done = roomkit("fsm", *flags, env={"PYTHONHASHSEED": "1", "PYTHONIOENCODING": "ascii"})  # another order of sets
    assert (done.returncode, done.stdout, done.stderr) == (0, text, "")


def test_an_unknown_format_names_those_that_there_are() -> None:
    said = sentence(roomkit("fsm", "--format", "png"), 2)
    assert said.startswith("roomkit fsm: argument --format: invalid choice: 'png' (choose from ")
    for form in ("table", "mermaid", "svg", "page"):
        assert form in said


def test_output_goes_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "fsm.svg"
    done = roomkit("fsm", "--format", "svg", "--output", str(path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert path.read_bytes() == to_svg(GAME).encode()


def test_output_into_a_missing_directory_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "fsm.md"
    said = sentence(roomkit("fsm", "--output", str(path)), 1)
    assert said == f"roomkit: cannot write {path}: No such file or directory"
    assert not path.parent.exists()


def test_a_reader_that_went_away_gets_no_traceback() -> None:
    receiver, sender = os.pipe()
    os.close(receiver)
    with os.fdopen(sender, "w") as broken:
        done = roomkit("settings", stdout=broken)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_one_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        done = roomkit("settings", stdout=full)
    assert (done.returncode, done.stderr) == (1, "roomkit: cannot write the output: No space left on device\n")


def test_the_settings_docs_are_what_the_command_prints() -> None:
    done = roomkit("settings", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert settings_table_markdown() in done.stdout
    path = ROOT / "docs" / "settings.md"
    written = path.read_text(encoding="utf-8") if path.exists() else ""
    assert written == done.stdout, "out of date; run: python -m roomkit settings --output docs/settings.md"


def test_the_examples_in_the_settings_docs_work(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    flags = re.search(r"`roomkit serve ((?:--\S+ [0-9]+ ?)+)`", page)
    variables = re.search(r"`((?:ROOMKIT_\S+ )+)roomkit serve`", page)
    toml = re.search(r"```toml\n(.*?)```", page, re.DOTALL)
    assert flags
    assert variables
    assert toml
    words = flags[1].split()
    by_flag = load_settings(dict(zip([word[2:] for word in words[::2]], words[1::2], strict=True)), {})
    by_variable = load_settings(None, dict(word.split("=") for word in variables[1].split()))
    path = tmp_path / "roomkit.toml"
    path.write_text(toml[1])
    by_file = load_settings({"config": str(path)}, {})
    for settings in (by_flag, by_variable, by_file):
        assert (settings.port, settings.message_rate) == (9000, 20)
    assert by_file.log_json
    assert by_file.origin == ("https://example.com", "https://www.example.com")


# serve: what is wrong before it listens


def test_a_bad_flag_value_is_one_sentence() -> None:
    said = sentence(roomkit("serve", "--port", "eighty"), 2)
    assert said == "roomkit: flag --port: must be a whole number, not the text 'eighty'"


def test_an_unknown_variable_is_one_sentence() -> None:
    said = sentence(roomkit("serve", env={"ROOMKIT_PROT": SECRET}), 2)
    assert said == "roomkit: environment ROOMKIT_PROT: unknown setting; did you mean ROOMKIT_PORT?"


def test_a_file_that_is_no_toml_is_one_sentence_without_its_contents(tmp_path: Path) -> None:
    path = tmp_path / "roomkit.toml"
    path.write_text(f'admin_token = "{SECRET}\n')
    said = sentence(roomkit("serve", "--config", str(path)), 2)
    assert said.startswith(f"roomkit: file {path}: the config file is not TOML: ")
    assert "line 1" in said
    assert SECRET not in said


def test_a_port_in_use_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = sentence(roomkit("serve", "--port", str(port)), 1)
    assert said == f"roomkit: cannot listen on 127.0.0.1 port {port}: the port is in use"


def test_a_host_that_is_no_name_is_one_sentence() -> None:
    host = "\u00fc" * 64  # longer than a part of a name may be, so nobody is asked
    said = sentence(roomkit("serve", "--host", host, env={"PYTHONUTF8": "1"}), 1)
    assert said == f"roomkit: cannot listen on {host}: this is no host name"


def test_a_missing_certificate_is_named(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    said = sentence(roomkit("serve", "--tls-cert", str(cert), "--tls-key", str(key)), 1)
    assert said == f"roomkit: cannot use tls_cert {cert} with tls_key {key}: No such file or directory"


# serve: from the first line to the last


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_serve_says_at_once_where_it_listens_and_a_signal_ends_it(serve: Any, number: signal.Signals) -> None:
    """Its pipe is no terminal, so only a flush lets a parent see the address while it runs."""
    serving = serve("--drain-timeout", str(LONG))
    host, port = serving.wait_address()
    connection = http.client.HTTPConnection(host, port, timeout=DEADLINE)
    connection.request("GET", "/healthz")
    assert connection.getresponse().status == 200
    connection.close()
    serving.process.send_signal(number)
    status, said = serving.wait_end()
    assert status == 0
    assert ["draining for at most 600 s" in line for line in said] == [True], said


def test_the_log_can_be_json(serve: Any) -> None:
    serving = serve("--log-json")
    serving.wait_address()
    serving.process.terminate()
    status, said = serving.wait_end()
    assert status == 0
    assert all(line.startswith('{"timestamp":') for line in said)
    assert said


class StubbornClient:
    """A WebSocket that never answers a close frame, and so keeps a drain waiting for its whole time."""

    def __init__(self, address: tuple[str, int], room_id: str) -> None:
        self._socket = socket.create_connection(address, DEADLINE)
        request = [
            f"GET /ws?room_id={room_id}&player_id=amy HTTP/1.1",
            f"Host: {address[0]}:{address[1]}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
        ]
        self._socket.sendall("\r\n".join([*request, "", ""]).encode())
        self._read = b""
        self.wait_for(b"101 ")
        self.wait_for(b'"type":"welcome"')

    def wait_for(self, data: bytes) -> None:
        """Read until the server has sent this."""
        while data not in self._read:
            received = self._socket.recv(65536)
            assert received, self._read
            self._read += received

    def close(self) -> None:
        self._socket.close()


def create_room(address: tuple[str, int], room_id: str) -> None:
    connection = http.client.HTTPConnection(*address, timeout=DEADLINE)
    connection.request("POST", "/api/rooms", f'{{"id": "{room_id}"}}', {"Content-Type": "application/json"})
    assert connection.getresponse().status == 201
    connection.close()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_second_signal_cuts_a_drain_short(serve: Any, second: signal.Signals) -> None:
    """The drain would last ten minutes: only the second signal can end the process within the deadline."""
    serving = serve("--drain-timeout", str(LONG), "--close-timeout", str(LONG))
    address = serving.wait_address()
    create_room(address, "room-1")
    client = StubbornClient(address, "room-1")
    try:
        serving.process.send_signal(signal.SIGTERM)
        client.wait_for(b"\x03\xf4restarting")  # 1012: the drain has begun, and waits for the answer
        assert serving.process.poll() is None
        serving.process.send_signal(second)
        status, said = serving.wait_end()
    finally:
        client.close()
    assert status == 1
    assert "draining for at most 600 s; a second signal stops at once" in said[0]
    assert "stopped before everything was drained" in said[-1]


# The signals alone


@pytest.fixture
def signals() -> Iterator[Signals]:
    """With this process's own handlers restored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with Signals() as signals:
            yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_signal_before_the_wait_is_not_lost_and_each_ends_one_wait(signals: Signals) -> None:
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    signals.wait(0)
    signals.wait(0)
    with pytest.raises(BlockingIOError):
        signals._receiver.recv(1)


def test_another_thread_can_end_the_wait(signals: Signals) -> None:
    waker = threading.Thread(target=signals.wake)
    waker.start()
    signals.wait(DEADLINE)
    waker.join()


def test_a_wake_after_the_end_does_nothing(signals: Signals) -> None:
    signals.__exit__()
    signals.wake()
    assert signal.set_wakeup_fd(-1) == -1


def test_a_value_glued_to_help_is_never_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Python 3.13 takes -hVALUE for -h and prints the help, older ones refuse it; neither repeats the value."""
    with pytest.raises(SystemExit) as ended:
        main(["serve", "-h" + SECRET])
    assert ended.value.code in (0, 2)
    assert SECRET not in "".join(capsys.readouterr())
