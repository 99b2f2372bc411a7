# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licagent.domain.config import DEFAULT_FAILSAFE, AgentConfig, FailsafeSetting
from licagent.domain.config_reader import (
    SETTINGS,
    ConfigError,
    describe,
    parse_config,
    read_config,
    values,
)
from licagent.domain.failsafe import failsafe_entries, read_resolvers
from licagent.domain.footprint import FootprintSpec


def problems(text: str = "", **environment: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "agent.toml", environment)
    assert str(caught.value.problems[0]) in str(caught.value)
    return [str(problem) for problem in caught.value.problems]


def test_new_hosts_observe_and_every_key_has_a_default():
    config = parse_config("", "agent.toml", {}).config
    assert config == AgentConfig()
    assert config.mode == "observe"
    assert config.existing_sockets == "cut"
    assert config.socket_path == Path("/run/licagent/licagent.sock")
    assert config.policy_dir == Path("/etc/licagent/policy.d")
    assert {field.name for field in fields(AgentConfig)} == SETTINGS.keys()


def test_every_key_can_be_set_in_the_file():
    config = parse_config(
        """
        mode = "enforce"
        config_dir = "/a"
        state_dir = "/b"
        runtime_dir = "/c"
        bpffs_dir = "/d"
        cgroup_root = "/e"
        loader = "bcc"
        existing_sockets = "keep"
        control = "control.example.org:8443"
        report_interval_s = 15
        failsafe = [
            { cidr = "10.0.0.0/8", ports = ["53", "60-70"], protocol = "udp" },
            { direction = "in", ports = ["22"], protocol = "tcp" },
        ]
        metering = "off"
        metering_interval_s = 60
        spool_max_bytes = 33554432
        metrics_listen = "[::1]:9795"
        [labels]
        environment = "production"
        [[footprint]]
        name = "home"
        path = "/home"
        user = "*"
        [[footprint]]
        name = "build"
        path = "/srv"
        project = 7
        every_s = 60
        """,
        "agent.toml",
        {},
    ).config
    assert config == AgentConfig(
        mode="enforce",
        config_dir=Path("/a"),
        state_dir=Path("/b"),
        runtime_dir=Path("/c"),
        bpffs_dir=Path("/d"),
        cgroup_root=Path("/e"),
        loader="bcc",
        existing_sockets="keep",
        control="control.example.org:8443",
        report_interval_s=15,
        failsafe=(
            FailsafeSetting("out", "10.0.0.0/8", ("53", "60-70"), "udp"),
            FailsafeSetting("in", "any", ("22",), "tcp"),
        ),
        labels={"environment": "production"},
        metering="off",
        metering_interval_s=60,
        spool_max_bytes=33554432,
        metrics_listen="[::1]:9795",
        footprint=(
            FootprintSpec("home", "/home", user="*"),
            FootprintSpec("build", "/srv", project="7", every_s=60),
        ),
    )
    assert values(config)["footprint"] == "home /home user=*; build /srv project=7 every_s=60"
    assert config.trust_path == Path("/a/trust.jwks")
    assert config.licenses_dir == Path("/a/licenses")


ENVIRONMENT = {
    "mode": ("enforce", "enforce"),
    "config_dir": ("/a", Path("/a")),
    "state_dir": ("/b", Path("/b")),
    "runtime_dir": ("/c", Path("/c")),
    "bpffs_dir": ("/d", Path("/d")),
    "cgroup_root": ("/e", Path("/e")),
    "loader": ("prebuilt", "prebuilt"),
    "existing_sockets": ("keep", "keep"),
    "control": ("[::1]:8443", "[::1]:8443"),
    "report_interval_s": ("30", 30),
    "labels": ("region=eu, role=db", {"region": "eu", "role": "db"}),
    "metering": ("off", "off"),
    "metering_interval_s": ("10", 10),
    "spool_max_bytes": ("16777216", 16777216),
    "footprint": ('[{ name = "a", path = "/a" }]', (FootprintSpec("a", "/a"),)),
    "metrics_listen": ("0.0.0.0:9795", "0.0.0.0:9795"),
    "failsafe": ('[{ cidr = "::1/128" }]', (FailsafeSetting("out", "::1/128", (), "any"),)),
}


@pytest.mark.parametrize("key", SETTINGS)
def test_every_key_can_be_set_in_the_environment_and_wins(key):
    text, value = ENVIRONMENT[key]
    file = 'mode = "observe"\nloader = "auto"\nstate_dir = "/x"\n'
    settings = parse_config(file, "agent.toml", {f"LICAGENT_{key.upper()}": text})
    assert getattr(settings.config, key) == value
    assert settings.sources[key] == f"LICAGENT_{key.upper()}"
    other = next(name for name in ("mode", "loader") if name != key)
    assert settings.sources[other].startswith("agent.toml:")


def test_the_cgroup_root_may_be_found_by_itself():
    assert parse_config('cgroup_root = "auto"', "f", {}).config.cgroup_root is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('\n\nmoode = "observe"', "agent.toml:3: moode: unknown key (did you mean mode)"),
        ("[labls]\na = 'b'", "agent.toml:1: labls: unknown key (did you mean labels)"),
        ('mode = "enforced"', "'enforced' is not one of observe, enforce (did you mean enforce)"),
        ("mode = true", "agent.toml:1: mode: True is not one of observe, enforce"),
        ('state_dir = "var/lib"', "not an absolute path (start it with /)"),
        ('state_dir = "/a\\u0000b"', "not an absolute path"),
        ("state_dir = 5", "5 is not a path"),
        ("labels = 1", "labels must be a table"),
        ('control = "control.example.org"', "is no address of a control plane"),
        ('control = "a b:8443"', "is no address of a control plane"),
        ('control = "control:70000"', "'70000' is no port"),
        ("control = 8443", "8443 is not a text"),
        ("report_interval_s = -1", "-1 is not a number of seconds (0 to 3600)"),
        ('report_interval_s = "30s"', "'30s' is not a number of seconds"),
        ("report_interval_s = true", "True is not a number of seconds"),
        ('labels = { "A b" = "x" }', "'A b' is no label name"),
        ("labels = { a = 1 }", "label a: 1 is not a text"),
        ("metering_interval_s = 0", "0 is not a number of seconds (1 to 3600)"),
        ("spool_max_bytes = 1", "1 is not a number of bytes"),
        ('metrics_listen = ":9795"', "is no address and port of this host"),
        ('metrics_listen = "localhost:9795"', "is no address and port of this host"),
        ('metrics_listen = "::1:9795"', "an IPv6 address stands in brackets"),
        ('metrics_listen = "[127.0.0.1]:9795"', "an IPv6 address stands in brackets"),
        ('metrics_listen = "127.0.0.1:99999"', "'99999' is no port"),
        ('metrics_listen = "127.0.0.1"', "is no address and port of this host"),
        ("metrics_listen = 9795", "9795 is not a text"),
        ("footprint = 1", "footprint must be a list of tables"),
        ("footprint = [1]", "1 is no table"),
        ('[[footprint]]\nname = "a"', "a footprint needs a path"),
        ('[[footprint]]\nname = "a"\npath = "a"', "footprint 'a': path 'a' must be absolute"),
        ('[[footprint]]\nname = "a"\npath = 1', "path: 1 is not a text"),
        ('[[footprint]]\nname = "a"\npaht = "/"', "unknown key 'paht' (did you mean path)"),
        ('[[footprint]]\nname = "a"\npath = "/"\n' * 2, "two footprints have the name 'a'"),
        ("failsafe = {}", "failsafe must be a list"),
        ("failsafe = [1]", "1 is no table"),
        ('failsafe = [{ cdir = "10.0.0.0/8" }]', "unknown key 'cdir' (did you mean cidr)"),
        ('failsafe = [{ cidr = "10.0.0.1/8" }]', "has host bits set (write 10.0.0.0/8)"),
        ('failsafe = [{ cidr = "10.0.0.0/40" }]', "is no network"),
        ('failsafe = [{ ports = ["0"] }]', "'0' is no port"),
        ('failsafe = [{ ports = ["9-8"] }]', "'9-8' is no port"),
        ('failsafe = [{ ports = ["70000"] }]', "'70000' is no port"),
        ("failsafe = [{ ports = [22] }]", "22 is no port"),
        ('failsafe = [{ ports = ["1"], protocol = "icmp" }]', "icmp has no ports"),
        ('failsafe = [{ protocol = "tpc" }]', "(did you mean tcp)"),
        ('failsafe = [{ direction = "in" }]', "would open the whole host"),
        ('failsafe = [{ direction = "in", cidr = "::/0", ports = ["1"] }]', "leave cidr out"),
        ("mode = ", "agent.toml:1: not TOML"),
        ("a = 1\na = 2", "agent.toml:2: not TOML"),
        ("a = " + "[" * 5000, "not TOML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_line_and_suggestion(text, problem):
    assert problem in problems(text)[0]


def test_all_problems_are_named_at_once():
    text = 'mod = 1\nloader = "gcc"\n'
    found = problems(text, LICAGENT_MODE="off", LICAGENT_EXISTING_SOCKETS="2")
    assert len(found) == 4
    assert found[2].startswith("environment: LICAGENT_EXISTING_SOCKETS")


def test_variables_that_are_near_a_key_are_slips_and_others_are_not_ours():
    assert problems(LICAGENT_STATEDIR="/x") == [
        "environment: LICAGENT_STATEDIR: unknown variable (did you mean LICAGENT_STATE_DIR)"
    ]
    parse_config("", "agent.toml", {"LICAGENT_TEST_TALLY": "x", "LICAGENT_CONFIG": "y"})


def test_the_built_in_failsafe_list_is_one_the_compiler_takes():
    entries = failsafe_entries(DEFAULT_FAILSAFE, ["192.0.2.53"])
    assert {(entry.direction, str(entry.ports)) for entry in entries if entry.port} >= {
        ("in", "22"),
        ("out", "53"),
        ("out", "67-68"),
        ("out", "123"),
    }


def test_names_are_asked_of_the_hosts_own_resolvers_only():
    entries = failsafe_entries(DEFAULT_FAILSAFE, ["192.0.2.53", "2001:db8::53"])
    dns = [entry for entry in entries if str(entry.ports) == "53"]
    assert {entry.cidr for entry in dns} == {"192.0.2.53", "2001:db8::53"}
    assert len(dns) == 4  # udp and tcp
    assert not [entry for entry in failsafe_entries(DEFAULT_FAILSAFE, []) if entry.port == 53]


def test_an_owner_may_name_the_resolvers_too():
    text = 'failsafe = [{ cidr = "resolvers", ports = ["853"], protocol = "tcp" }]'
    config = parse_config(text, "agent.toml", {}).config
    [entry] = failsafe_entries(config.failsafe, ["192.0.2.53"])
    assert (entry.cidr, str(entry.ports)) == ("192.0.2.53", "853")


def test_resolvers_are_those_of_resolv_conf(tmp_path):
    first, second = tmp_path / "resolv.conf", tmp_path / "stub.conf"
    first.write_text("# nameserver 9.9.9.9\nnameserver 127.0.0.53\nnameserver x\nnameserver\n")
    second.write_bytes(b"\xff\nnameserver fe80::1%eth0\nnameserver 127.0.0.53 \n")
    found = read_resolvers((first, tmp_path / "none", second))
    assert found == ("127.0.0.53", "fe80::1")


def test_describe_names_every_value_and_where_it_comes_from():
    settings = parse_config('mode = "enforce"', "f.toml", {"LICAGENT_LABELS": "b=c,a=b"})
    rows = {row["key"]: (row["value"], row["source"]) for row in describe(settings)}
    assert rows.keys() == SETTINGS.keys()
    assert rows["mode"] == ("enforce", "f.toml:1")
    assert rows["labels"] == ("a=b,b=c", "LICAGENT_LABELS")
    assert rows["cgroup_root"] == ("auto", "default")
    assert "in tcp any 22" in rows["failsafe"][0]


def test_a_named_file_must_be_there(tmp_path):
    missing = tmp_path / "none.toml"
    for attempt in (
        lambda: read_config({}, missing),
        lambda: read_config({"LICAGENT_CONFIG": str(missing)}),
    ):
        with pytest.raises(ConfigError, match="no such file"):
            attempt()


def test_files_are_read_from_where_they_are_named(tmp_path):
    first, second = tmp_path / "1.toml", tmp_path / "2.toml"
    first.write_text('loader = "bcc"', encoding="utf-8")
    second.write_text('loader = "prebuilt"', encoding="utf-8")
    environment = {"LICAGENT_CONFIG": str(first)}
    assert read_config(environment).config.loader == "bcc"
    assert read_config(environment, second).config.loader == "prebuilt"


@pytest.mark.parametrize("content", [b"\xff\xfe", b"#" * (1 << 20) + b"#"])
def test_a_file_that_is_no_settings_file_is_refused(tmp_path, content):
    file = tmp_path / "agent.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError):
        read_config({}, file)


@given(st.text(max_size=200))
def test_any_text_is_settings_or_named_problems(text):
    try:
        parse_config(text, "agent.toml", {})
    except ConfigError as error:
        found = error.problems
    else:
        return
    assert found
    assert all(problem.file == "agent.toml" and problem.message for problem in found)


def test_a_folder_too_long_for_a_socket_is_refused_before_anything_is_loaded() -> None:
    longest = "/" + "r" * (107 - len("/licagent.sock") - 1)
    settings = parse_config(f'runtime_dir = "{longest}"', "agent.toml", {})
    assert len(str(settings.config.socket_path)) == 107
    with pytest.raises(ConfigError, match=r"runtime_dir: .* too long .* by 1 bytes"):
        parse_config(f'runtime_dir = "{longest}r"', "agent.toml", {})
