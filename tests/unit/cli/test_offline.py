# SPDX-License-Identifier: Apache-2.0
"""What works with no daemon: policy check, config check, doctor."""

from __future__ import annotations

import json
import time

import pytest

from lictoken.claims import Entitlement, License, LicenseScope
from lictoken.keys import SigningKey
from lictoken.sign import sign_license
from lictoken.trust import TrustedKey, TrustStore

ISSUER = "https://licenses.acme.example"

POLICY = """\
[[resource]]
name = "orders-db"
kind = "network"
mode = "enforce"
destinations = [{ cidr = "10.0.5.0/24", ports = ["5432"], protocol = "tcp" }]

[[binding]]
license = "acme"
selectors = ["unix:uid:1000"]
"""


@pytest.fixture
def folder(tmp_path):
    """A configuration with one good license."""
    config = tmp_path / "config"
    (config / "licenses").mkdir(parents=True)
    (config / "policy.d").mkdir()
    key = SigningKey.create(ISSUER)
    trust = TrustStore([TrustedKey.of(key.public_key, ISSUER)])
    (config / "trust.jwks").write_bytes(trust.to_bytes())
    now_s = int(time.time())
    license_ = License(
        jti="acme",
        issuer=ISSUER,
        subject="orders",
        audience="licagent",
        number=7,
        generation=1,
        issued_at_s=now_s,
        not_before_s=now_s,
        expires_at_s=now_s + 3600,
        scope=LicenseScope("acme"),
        entitlements=(Entitlement("orders-db", ("connect",)),),
        kid=key.kid,
    )
    (config / "licenses" / "acme.lic").write_text(sign_license(license_, key), encoding="utf-8")
    return config


def test_a_good_policy_is_counted_to_the_last_rule(folder, run):
    (folder / "policy.d" / "orders.toml").write_text(POLICY, encoding="utf-8")
    assert run("policy", "check").stdout == "good: 1 resource, 1 binding, 1 rule\n"
    found = json.loads(run("policy", "check", "--json").stdout)
    assert (found["ok"], found["rules"], found["warnings"]) == (True, 1, [])


def test_a_bad_policy_is_refused_with_file_line_key_and_suggestion(folder, run):
    bad = POLICY.replace("10.0.5.0/24", "10.0.5.1/24").replace("selectors", "selector")
    file = folder / "policy.d" / "orders.toml"
    file.write_text(bad, encoding="utf-8")
    result = run("policy", "check")
    assert result.exit_code == 7
    assert result.stdout == ""
    assert f"{file}:5: " in result.stderr
    assert "10.0.5.0/24" in result.stderr
    assert f"{file}:9: " in result.stderr
    assert "selectors" in result.stderr
    problems = json.loads(run("policy", "check", "--json").stdout)["error"]["details"]["problems"]
    assert {problem["line"] for problem in problems} >= {5, 9}
    assert all(problem.keys() == {"file", "line", "key", "message", "suggestion"}
               for problem in problems)  # fmt: skip


def test_a_resource_nobody_can_reach_is_refused(folder, run):
    text = POLICY + POLICY.partition("\n\n")[0].replace("orders-db", "other").replace(".5.", ".6.")
    (folder / "policy.d" / "orders.toml").write_text(text, encoding="utf-8")
    result = run("policy", "check")
    assert result.exit_code == 7
    assert "other" in result.stderr


def test_files_are_judged_alone_or_with_the_installed(folder, run, tmp_path):
    resource, _, binding = POLICY.partition("\n\n")
    (folder / "policy.d" / "resources.toml").write_text(resource, encoding="utf-8")
    extra = tmp_path / "bindings.toml"
    extra.write_text(binding, encoding="utf-8")
    assert run("policy", "check", str(extra), "--installed").exit_code == 0
    # A file of the same name stands in for the installed one.
    (folder / "policy.d" / "bindings.toml").write_text("nonsense", encoding="utf-8")
    assert run("policy", "check", str(extra), "--installed").exit_code == 0
    assert run("policy", "check").exit_code == 7


def test_a_binding_to_a_license_that_does_not_verify_is_refused(folder, run):
    (folder / "policy.d" / "orders.toml").write_text(POLICY, encoding="utf-8")
    file = folder / "licenses" / "acme.lic"
    text = file.read_text(encoding="utf-8")
    middle = len(text) // 2
    swapped = "A" if text[middle] != "A" else "B"
    file.write_text(text[:middle] + swapped + text[middle + 1 :], encoding="utf-8")
    result = run("policy", "check")
    assert result.exit_code == 7
    assert "'acme'" in result.stderr or '"acme"' in result.stderr


def test_a_license_that_does_not_verify_is_noted(folder, run):
    (folder / "policy.d" / "orders.toml").write_text(POLICY, encoding="utf-8")
    (folder / "licenses" / "junk.lic").write_text("junk", encoding="utf-8")
    result = run("policy", "check")
    assert result.exit_code == 0
    assert "junk.lic" in result.stdout


def test_a_policy_file_that_is_not_there(folder, run):
    result = run("policy", "check", "/nowhere/x.toml")
    assert result.exit_code == 6
    assert "no such file" in result.stderr


def test_config_check_shows_values_and_sources(run, tmp_path):
    found = json.loads(run("config", "check", "--json").stdout)
    rows = {row["key"]: row for row in found["settings"]}
    assert rows["state_dir"]["source"] == f"{tmp_path / 'agent.toml'}:2"
    assert rows["mode"] == {"key": "mode", "value": "observe", "source": "default"}


def test_config_check_refuses_with_line_and_suggestion(run, tmp_path):
    file = tmp_path / "other.toml"
    file.write_text("\nmoed = 1\n", encoding="utf-8")
    for arguments in (["config", "check", str(file)], ["--config", str(file), "config", "check"]):
        result = run(*arguments)
        assert result.exit_code == 7
        assert f"{file}:2: moed: unknown key (did you mean mode)" in result.stderr


def test_doctor_checks_the_host_without_a_daemon(folder, run):
    result = run("doctor", "--json")
    assert result.exit_code == 3
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert checks["daemon"]["ok"] is False
    assert checks["trusted keys"]["ok"] is True
    assert checks.keys() >= {"kernel BTF", "cgroup v2", "BPF file system", "state folder"}


def test_daemon_gets_the_settings_and_its_status_is_the_commands(run, monkeypatch, tmp_path):
    import sys
    import types

    from licagent.domain.config_reader import read_config

    calls = []
    module = types.ModuleType("licagent.daemon.main")

    def start(environment, path, **more):
        calls.append((read_config(environment, path).config, more))
        return 8

    module.start = start  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "licagent.daemon.main", module)
    assert run("daemon").exit_code == 8
    assert run("daemon", "--load-only").exit_code == 8
    assert [more for _, more in calls] == [{"load_only": False}, {"load_only": True}]
    assert calls[0][0].state_dir == tmp_path / "state"


def test_detach_does_it_itself_when_there_is_no_daemon(run, monkeypatch):
    import sys
    import types

    module = types.ModuleType("licagent.daemon.detach")
    found = {"changed": True, "detached": [{"hook": "cgroup/connect4", "link_id": 4}]}
    module.main = lambda environment, path: found  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "licagent.daemon.detach", module)
    assert json.loads(run("detach", "--yes", "--json").stdout) == {"schema_version": 1, **found}
