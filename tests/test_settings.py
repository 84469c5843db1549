"""Settings: one declaration each, four sources, one precedence, and errors that say where the fault is."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomkit.core.config import RoomConfig
from roomkit.core.urls import show_store_url
from roomkit.log import _LEVELS
from roomkit.settings import (
    GROUPS,
    LOG_LEVELS,
    SETTINGS,
    InvalidSetting,
    Setting,
    Settings,
    add_arguments,
    describe,
    load_settings,
    settings_table_markdown,
)

SECRET = "correct-horse-battery"
BY_NAME = {setting.name: setting for setting in SETTINGS}


def parse_flags(*argv: str) -> argparse.Namespace:
    """What `roomkit serve` gets from argparse for these flags."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(argv)


@pytest.fixture
def toml(tmp_path: Path) -> Any:
    """Writes a config file and returns its path."""

    def write(text: str | bytes) -> str:
        path = tmp_path / "roomkit.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def refusal(arguments: Any = None, environ: dict[str, str] | None = None) -> InvalidSetting:
    """The error that these sources give."""
    with pytest.raises(InvalidSetting) as caught:
        load_settings(arguments, environ or {})
    return caught.value


# The table


def test_defaults_are_the_documented_ones() -> None:
    assert dataclasses.asdict(load_settings(None, {})) == {
        "host": "127.0.0.1",
        "port": 8080,
        "io_threads": 1,
        "http_threads": 4,
        "workers": 1,
        "compression": False,
        "demo": True,
        "dashboard": True,
        "max_rooms": 10_000,
        "max_rooms_per_owner": 0,
        "max_connections": 10_000,
        "max_connections_per_address": 64,
        "message_rate": 60,
        "message_burst": 120,
        "max_message_size": 65_536,
        "max_fragments": 1024,
        "max_head_size": 8192,
        "max_head_lines": 100,
        "outbox_messages": 256,
        "outbox_bytes": 1_048_576,
        "ping_interval": 50,
        "pong_timeout": 60,
        "handshake_timeout": 10,
        "write_timeout": 5,
        "close_timeout": 2,
        "drain_timeout": 10,
        "origin": (),
        "admin_token": None,
        "tls_cert": None,
        "tls_key": None,
        "redis": None,
        "redis_prefix": "roomkit:",
        "lease_ttl": 5,
        "instance": None,
        "address": None,
        "max_players": 4,
        "min_players": None,
        "queue_size": 100,
        "history_size": 256,
        "max_lifetime": 1800,
        "closed_ttl": 60,
        "empty_ttl": 300,
        "finished_ttl": 300,
        "reconnect_grace": 300,
        "busy_timeout": 1,
        "log_level": "info",
        "log_json": False,
    }


def test_room_defaults_and_bounds_are_those_of_room_config() -> None:
    rooms = [setting for setting in SETTINGS if setting.group == "rooms"]
    assert {setting.name: setting.default for setting in rooms}.items() <= {
        name: getattr(RoomConfig(), name) for name in RoomConfig.__struct_fields__
    }.items()
    RoomConfig(**{setting.name: setting.kind(setting.minimum) for setting in rooms})
    RoomConfig(**{setting.name: setting.kind(setting.maximum) for setting in rooms})


def test_every_row_is_complete_and_its_default_valid() -> None:
    for setting in SETTINGS:
        assert setting.group in GROUPS
        assert setting.help[0].isupper()
        assert not setting.help.endswith(".")
        assert setting.check(setting.default, "here") == setting.default
        if setting.zero_is_off:
            assert setting.check(0, "here") == 0
    assert [setting.name for setting in SETTINGS if setting.secret] == ["admin_token", "redis"]


def test_zero_turns_off_what_the_design_says() -> None:
    assert {setting.name for setting in SETTINGS if setting.zero_is_off} == {
        *("max_rooms", "max_rooms_per_owner", "max_connections", "max_connections_per_address", "message_rate"),
        *("max_message_size", "max_fragments", "outbox_messages", "outbox_bytes", "ping_interval", "pong_timeout"),
        *("handshake_timeout", "write_timeout", "max_lifetime"),
    }


def test_describe_names_every_setting_with_flag_environment_default_and_help() -> None:
    rows = {row.name: row for row in describe()}
    assert list(rows) == [field.name for field in dataclasses.fields(Settings)]
    assert rows["max_message_size"] == (
        "max_message_size",
        "--max-message-size",
        "ROOMKIT_MAX_MESSAGE_SIZE",
        "65536",
        "Largest message from a client (bytes; 0 turns it off)",
    )
    assert rows["demo"].flag == "--demo, --no-demo"
    defaults = [rows[name].default for name in ("demo", "host", "origin", "admin_token", "busy_timeout")]
    assert defaults == ["true", "127.0.0.1", "none", "none", "1"]


def test_a_setting_without_a_flag_has_no_flag_text() -> None:
    assert dataclasses.replace(BY_NAME["port"], has_flag=False).flag == ""


def test_markdown_table_has_a_row_for_each_setting_and_five_cells_a_row() -> None:
    text = settings_table_markdown()
    lines = text.splitlines()
    assert text.endswith("|\n")
    assert len(lines) == len(SETTINGS) + 2
    assert {line.count(" | ") for line in lines if "---" not in line} == {4}
    assert "| `port` | `--port` | `ROOMKIT_PORT` | `8080` | Port to listen on; 0 picks a free one |" in lines
    assert "`--demo`, `--no-demo`" in text


def test_help_shows_groups_defaults_and_the_config_flag() -> None:
    parser = argparse.ArgumentParser(formatter_class=lambda prog: argparse.HelpFormatter(prog, width=400))
    add_arguments(parser)
    text = parser.format_help()
    assert [line[:-1] for line in text.splitlines() if line[:-1] in GROUPS] == list(GROUPS)
    assert "--config PATH" in text
    for row in describe():
        assert row.flag.split(", ")[0] in text
        assert row.help in text
        assert f"[default: {row.default}]" in text


def test_flags_that_are_not_given_are_none_in_the_namespace() -> None:
    assert set(vars(parse_flags()).values()) == {None}


# Sources and their precedence


def test_flag_beats_environment_beats_file_beats_default(toml: Any) -> None:
    path = toml("port = 3\nmax_rooms = 3\nqueue_size = 3\n")
    environ = {"ROOMKIT_PORT": "2", "ROOMKIT_MAX_ROOMS": "2", "ROOMKIT_CONFIG": path}
    settings = load_settings(parse_flags("--port", "1"), environ)
    assert (settings.port, settings.max_rooms, settings.queue_size, settings.max_players) == (1, 2, 3, 4)


def test_the_config_flag_beats_the_config_variable(toml: Any) -> None:
    arguments = parse_flags("--config", toml("port = 1"))
    assert load_settings(arguments, {"ROOMKIT_CONFIG": "/nowhere"}).port == 1


def test_flags_override_booleans_both_ways() -> None:
    environ = {"ROOMKIT_DEMO": "on", "ROOMKIT_COMPRESSION": "off"}
    settings = load_settings(parse_flags("--no-demo", "--compression"), environ)
    assert (settings.demo, settings.compression) == (False, True)


def test_a_repeated_origin_flag_gathers_and_replaces_the_environment() -> None:
    arguments = parse_flags("--origin", "https://a.example", "--origin", "http://b.example:81")
    settings = load_settings(arguments, {"ROOMKIT_ORIGIN": "https://c.example"})
    assert settings.origin == ("https://a.example", "http://b.example:81")


def test_origins_in_the_environment_are_separated_by_commas() -> None:
    assert load_settings(None, {"ROOMKIT_ORIGIN": "https://a.example, *,"}).origin == ("https://a.example", "*")
    assert load_settings(None, {"ROOMKIT_ORIGIN": ""}).origin == ()


def test_a_mapping_takes_values_and_texts_and_both_spellings() -> None:
    settings = load_settings({"port": 1, "max-rooms": "2", "host": None, "origin": "https://a.example"}, {})
    assert (settings.port, settings.max_rooms, settings.host) == (1, 2, "127.0.0.1")
    assert settings.origin == ("https://a.example",)


def test_a_namespace_may_hold_what_is_not_a_setting() -> None:
    assert load_settings(argparse.Namespace(command="serve", port="1"), {}).port == 1


def test_toml_keys_may_be_written_with_hyphens(toml: Any) -> None:
    assert load_settings({"config": toml("max-rooms = 7")}, {}).max_rooms == 7


def test_the_config_path_may_be_a_path_object(toml: Any) -> None:
    assert load_settings({"config": Path(toml("port = 7"))}, {}).port == 7


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"ROOMKIT_PORT": "4711"})
    assert load_settings().port == 4711


def test_other_variables_are_left_alone() -> None:
    environ = {"PATH": "/bin", "ROOMKIT_TEST_REDIS": "x", "ROOMKIT_REDIS_URL": "redis://", "roomkit_port": "1"}
    assert load_settings(None, environ) == Settings()


@pytest.mark.parametrize("word", ["1", "true", "YES", "On", " on "])
def test_words_for_true(word: str) -> None:
    assert load_settings(None, {"ROOMKIT_LOG_JSON": word}).log_json is True


@pytest.mark.parametrize("word", ["0", "false", "No", "OFF"])
def test_words_for_false(word: str) -> None:
    assert load_settings(None, {"ROOMKIT_DEMO": word}).demo is False


def test_whole_floats_become_ints_and_ints_floats(toml: Any) -> None:
    settings = load_settings({"config": toml("max_rooms = 5.0\nping_interval = 5")}, {"ROOMKIT_PORT": "1e3"})
    assert (settings.max_rooms, settings.ping_interval, settings.port) == (5, 5.0, 1000)
    kinds = [type(value) for value in (settings.max_rooms, settings.ping_interval, settings.port)]
    assert kinds == [int, float, int]


def test_log_level_is_case_insensitive() -> None:
    assert load_settings(parse_flags("--log-level", "WARNING"), {}).log_level == "warning"


def flag_texts(name: str, value: Any) -> list[str]:
    flag = BY_NAME[name].flag
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    return [f"{flag}={item}" for item in (value if isinstance(value, list) else [value])]


def environment_text(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)


def toml_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (str, list, bool)) else repr(value)


#: Of the settings whose texts have a form.
VALID_TEXTS = {
    "redis": [
        "redis://localhost",
        "rediss://:p%40ss@[::1]:6380/3?ssl_ca_certs=/ca.pem",
        "unix://me:pw@/run/valkey.sock",
    ],
    "redis_prefix": ["roomkit:", "a/b.c-", "\u00e9"],
    "instance": ["one", "web-1.example:8080", "a" * 45],
    "address": ["http://10.0.0.1:8080", "https://play.example.com/", "http://[::1]:80"],
}


def valid_values(setting: Setting) -> st.SearchStrategy[Any]:
    if setting.choices:
        return st.sampled_from(setting.choices)
    if setting.kind is bool:
        return st.booleans()
    if setting.kind is int:
        return st.integers(int(setting.minimum), int(setting.maximum))
    if setting.kind is float:
        return st.floats(setting.minimum, setting.maximum)
    if setting.name in VALID_TEXTS:
        return st.sampled_from(VALID_TEXTS[setting.name])
    if setting.kind is str:
        return st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1)
    return st.lists(st.sampled_from(["*", "null", "https://a.example", "http://[::1]:8080", "app://x"]), min_size=1)


@st.composite
def valid_mappings(draw: st.DrawFn) -> dict[str, Any]:
    """Any choice of settings with values that are valid alone and together."""
    values = draw(st.fixed_dictionaries({}, optional={s.name: valid_values(s) for s in SETTINGS}))
    ping, pong = values.get("ping_interval", 50.0), values.get("pong_timeout", 60.0)
    if ping and pong and pong <= ping:
        values[draw(st.sampled_from(["ping_interval", "pong_timeout"]))] = 0.0
    if ("tls_cert" in values) != ("tls_key" in values):
        values["tls_cert"] = values["tls_key"] = values.get("tls_cert", values.get("tls_key"))
    if "tls_cert" in values:
        values.pop("workers", None)
    if "redis" in values:
        values.pop("workers", None)
    if values.get("min_players", 1) > values.get("max_players", 4):
        values["max_players"] = values["min_players"]
    return values


@given(values=valid_mappings(), hyphens=st.booleans())
def test_valid_values_give_the_same_settings_from_every_source(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any], hyphens: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "property.toml"
    keys = {name: name.replace("_", "-") if hyphens else name for name in values}
    path.write_text("".join(f"{keys[name]} = {toml_text(value)}\n" for name, value in values.items()), "utf-8")
    flags = parse_flags(*(text for name, value in values.items() for text in flag_texts(name, value)))
    environ = {BY_NAME[name].env: environment_text(value) for name, value in values.items()}

    expected = Settings(**values)

    assert load_settings(flags, {}) == expected
    assert load_settings(values, {}) == expected
    assert load_settings(None, environ) == expected
    assert load_settings({"config": str(path)}, {}) == expected
    given_back = {name: getattr(expected, name) for name in values}
    assert {name: list(v) if isinstance(v, tuple) else v for name, v in given_back.items()} == values


# Errors


def test_errors_name_setting_and_source_for_each_source(toml: Any) -> None:
    path = toml("port = 70000")
    cases = {
        "flag --port": refusal(parse_flags("--port", "70000")),
        "environment ROOMKIT_PORT": refusal(None, {"ROOMKIT_PORT": "70000"}),
        f"file {path}, key port": refusal({"config": path}),
    }
    for source, error in cases.items():
        assert (error.name, error.source) == ("port", source)
        assert str(error) == f"{source}: must be at most 65535, not 70000"


def test_a_weaker_source_is_checked_even_where_it_is_overridden(toml: Any) -> None:
    assert refusal(parse_flags("--port", "1"), {"ROOMKIT_PORT": "x"}).source == "environment ROOMKIT_PORT"
    assert refusal({"port": 1, "config": toml("port = 'x'")}).source.endswith("key port")


def test_constructing_settings_checks_too() -> None:
    with pytest.raises(InvalidSetting, match=r"^argument port: must be at least 0, not -1$"):
        Settings(port=-1)
    with pytest.raises(InvalidSetting, match="argument ping_interval: pong_timeout"):
        dataclasses.replace(Settings(), ping_interval=70.0)
    assert Settings(origin=["*"]).origin == ("*",)  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.kind in (int, float)], ids=lambda s: s.name)
def test_numbers_outside_their_bounds_are_refused(setting: Setting) -> None:
    for value in (setting.minimum - 1, setting.maximum + 1, math.nan, math.inf, -math.inf, 16**5000):
        with pytest.raises(InvalidSetting) as caught:
            setting.check(value, "here")
        assert caught.value.name == setting.name
        assert len(str(caught.value)) < 150


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "", "abc", "0x10", "1,5", "1" * 5000])
@pytest.mark.parametrize("name", ["port", "ping_interval"])
def test_texts_that_spell_no_usable_number_are_refused(name: str, text: str) -> None:
    assert refusal(None, {BY_NAME[name].env: text}).name == name


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("port = 80.5", "must be a whole number, not 80.5"),
        ("port = true", "must be a whole number, not True"),
        ("port = '80'", "must be a whole number, not the text '80'"),
        ("port = nan", "must be a whole number, not nan"),
        ("port = []", "must be a whole number, not an array"),
        ("ping_interval = false", "must be a number, not False"),
        ("ping_interval = inf", "must be a finite number, not inf"),
        ("demo = 1", "must be true or false, not 1"),
        ("demo = 'yes'", "must be true or false, not the text 'yes'"),
        ("host = 1", "must be a text, not 1"),
        ("host = ''", "is empty; leave it out to use the default"),
        ('host = "a\\nb"', "must be free of control characters, not the text 'a\\nb'"),
        ("log_level = 'loud'", "must be one of debug, info, warning, error, critical, not the text 'loud'"),
        ("log_level = 1979-05-27", "must be a text, not datetime.date(1979, 5, 27)"),
        ("origin = 'https://a.example'", "must be a list of texts, not the text 'https://a.example'"),
        ("[port]\nx = 1", "must be a whole number, not a table"),
    ],
)
def test_wrong_types_and_values_in_the_file_are_refused(toml: Any, line: str, sentence: str) -> None:
    assert refusal({"config": toml(line)}).sentence == sentence


@pytest.mark.parametrize("origin", ["https://a.example/", "a.example", "https://a b", "https://u@a.example", ""])
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    assert "an origin like https://example.com:8080" in refusal({"origin": [origin]}).sentence


def test_an_empty_variable_is_refused_rather_than_taken_for_every_interface() -> None:
    assert "is empty" in refusal(None, {"ROOMKIT_HOST": ""}).sentence


def test_unknown_names_are_refused_with_a_suggestion(toml: Any) -> None:
    path = toml("max_conections = 1")
    file = refusal({"config": path})
    assert (file.name, file.source) == ("max_conections", f"file {path}, key max_conections")
    assert file.sentence == "unknown setting; did you mean max_connections?"
    environment = refusal(None, {"ROOMKIT_PROT": "1"})
    assert str(environment) == "environment ROOMKIT_PROT: unknown setting; did you mean ROOMKIT_PORT?"
    assert str(refusal({"prot": 1})) == "flag --prot: unknown setting; did you mean --port?"
    assert refusal({"zzz": 1}).sentence == "unknown setting"


def test_variables_that_kubernetes_makes_are_explained() -> None:
    environ = {"ROOMKIT_PORT": "tcp://10.0.0.1:80", "ROOMKIT_SERVICE_HOST": "10.0.0.1"}
    assert "enableServiceLinks: false" in refusal(None, environ).sentence


def test_a_key_given_in_both_spellings_is_refused(toml: Any) -> None:
    assert "given twice" in refusal({"config": toml("max_rooms = 1\nmax-rooms = 2")}).sentence


def test_a_key_with_control_characters_cannot_break_the_sentence(toml: Any) -> None:
    assert "\n" not in str(refusal({"config": toml('"a\\nb" = 1')}))


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        (b"port = 1\nhost = = 1\n", "at line 2, column 8)"),
        (b"port = 1\n\nhost = ", "line 3"),
        (b"port = 1\nhost = '\xff'\n", "not UTF-8 (at line 2)"),
    ],
)
def test_a_file_that_is_not_toml_is_refused_with_the_line(toml: Any, text: bytes, ending: str) -> None:
    path = toml(text)
    error = refusal({"config": path})
    assert (error.name, error.source) == ("config", f"file {path}")
    assert error.sentence.startswith("the config file is not ")
    assert ending in error.sentence


def test_a_config_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    missing = refusal({"config": str(tmp_path / "none.toml")})
    assert str(missing) == f"file {tmp_path / 'none.toml'}: the config file cannot be read: No such file or directory"
    assert "cannot be read" in refusal(None, {"ROOMKIT_CONFIG": str(tmp_path)}).sentence


@pytest.mark.parametrize("path", ["", "a\0b", "a\nb"])
def test_a_config_path_that_is_none_is_refused(path: str) -> None:
    assert refusal(None, {"ROOMKIT_CONFIG": path}).source == "environment ROOMKIT_CONFIG"
    assert refusal({"config": path}).source == "flag --config"


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"ping_interval": 60}, "ping_interval"),
        ({"pong_timeout": 50}, "pong_timeout"),
        ({"tls_cert": "a.pem"}, "tls_cert"),
        ({"workers": 2, "tls_cert": "a.pem", "tls_key": "a.pem"}, "workers"),
        ({"tls_key": "a.pem"}, "tls_key"),
        ({"workers": 2, "redis": "redis://h"}, "workers"),
        ({"min_players": 5}, "min_players"),
        ({"min_players": 3, "max_players": 2}, "min_players"),
    ],
)
def test_values_that_do_not_go_together_are_refused(values: dict[str, Any], name: str) -> None:
    error = refusal(values)
    assert (error.name, error.source) == (name, f"flag {BY_NAME[name].flag}")


def test_of_two_values_that_clash_the_stronger_source_is_named() -> None:
    error = refusal({"max_players": 2}, {"ROOMKIT_MIN_PLAYERS": "3"})
    assert (error.name, error.source) == ("max_players", "flag --max-players")


@pytest.mark.parametrize("values", [{"ping_interval": 0, "pong_timeout": 1}, {"ping_interval": 90, "pong_timeout": 0}])
def test_ping_and_pong_do_not_clash_when_one_is_off(values: dict[str, Any]) -> None:
    assert load_settings(values, {}).ping_interval == values["ping_interval"]


# The store and the instance


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:6379", "http://h", "redis:h", "redis://", "redis://h:x", "redis://h/zero", "redis://h:70000"),
        *("redis://[::1", "redis://a b", "unix://", "unix:///", "unix://host/path.sock", "redis://:pw@"),
        # A password that is not percent-encoded: it ends early, and its rest would be host, path or option.
        *(f"redis://{SECRET}/x@h", f"redis://u:1/{SECRET}@h", f"redis://u:1?{SECRET}@h", f"redis://u:1#{SECRET}@h"),
        *(f"unix://:a/{SECRET}@/x.sock", f"redis://h/0#{SECRET}"),
    ],
)
def test_a_store_s_url_that_is_none_is_refused_without_showing_it(url: str) -> None:
    """It says what is wanted, and nothing of what was given."""
    error = refusal({"redis": url})
    assert str(error).startswith("flag --redis: must be a URL")
    assert str(error).endswith(", not what was given (not shown here)")
    assert SECRET not in repr(error)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h", "redis://h"),
        (f"redis://me:{SECRET}@h:1/2", "redis://h:1/2"),
        (f"rediss://:{SECRET}@[::1]:1/2?ssl_ca_certs=/{SECRET}", "rediss://[::1]:1/2"),
        (f"redis://u:{SECRET}@{SECRET}@h", "redis://h"),
        (f"unix://me:{SECRET}@/run/v.sock?db=1", "unix:///run/v.sock"),
    ],
)
def test_of_a_store_s_url_only_the_place_is_shown(url: str, shown: str) -> None:
    """Neither user nor password nor options."""
    assert load_settings({"redis": url}, {}).redis == url
    assert show_store_url(url) == shown


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("instance", value) for value in ("a b", "a/b", "\u00e9", "a" * 46)),
        *(("redis_prefix", value) for value in ("a b", "{a}", "a" * 65)),
        *(
            ("address", value)
            for value in ("h:80", "ftp://h", "http://", "http://u@h", "http://h/path", "http://[::1", "http://h:x")
        ),
        *(("lease_ttl", value) for value in ("0", "0.4", "61")),
    ],
)
def test_what_no_instance_can_be_called_is_refused(name: str, value: str) -> None:
    """Names, prefixes, addresses and times that the store or the pages could not use."""
    error = refusal({name: value})
    assert (error.name, error.source) == (name, f"flag {BY_NAME[name].flag}")


# Secrets


def test_the_admin_token_is_not_in_the_repr() -> None:
    settings = Settings(admin_token=SECRET)
    assert settings.admin_token == SECRET
    assert SECRET not in repr(settings)
    assert SECRET not in str(settings)


@pytest.mark.parametrize(
    "line",
    [
        f'admin_token = ["{SECRET}"]',
        f'admin_token = "{SECRET}\\n"',
        f'[admin_token]\n{SECRET} = "{SECRET}"',
        f'admin_token = "{SECRET}"\nhost = = 1',
        f'admin_token = "{SECRET}',
        f'admin_tokn = "{SECRET}"',
    ],
)
def test_the_admin_token_is_in_no_error_about_the_file(toml: Any, line: str) -> None:
    error = refusal({"config": toml(line)})
    assert SECRET not in str(error) + repr(error)
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None


def test_the_admin_token_is_in_no_error_about_flags_and_environment() -> None:
    for error in (
        refusal({"admin_token": SECRET + "\n"}),
        refusal({"admin_token": SECRET.encode()}),
        refusal(None, {"ROOMKIT_ADMIN_TOKEN": SECRET + "\x1b"}),
        refusal(None, {"ROOMKIT_ADMIN_TOKN": SECRET}),
        refusal({"admin_token": SECRET, "port": -1}),
    ):
        assert SECRET not in str(error) + repr(error)


def test_the_error_survives_pickling() -> None:
    error = InvalidSetting("port", "flag --port", "must be less")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.name, copy.source) == (str(error), "port", "flag --port")


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


def test_log_levels_are_those_of_configure_logging() -> None:
    assert tuple(_LEVELS) == LOG_LEVELS
