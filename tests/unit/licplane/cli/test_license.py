# SPDX-License-Identifier: Apache-2.0
"""`licplane license`, and that what it signs is what an agent reads."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from licplane.errors import ExitCode
from lictoken.claims import Condition, Entitlement, License, LicenseScope, Limit
from lictoken.revocation import Revocation, RevocationAction, verify_revocation
from lictoken.trust import TrustStore
from lictoken.validity import Standing, standing
from lictoken.verify import verify_license

Issue = Callable[..., dict[str, Any]]


def as_agent(state: Path, text: str) -> License:
    return verify_license(text.encode(), TrustStore.load(state / "trust.jwks"))


def statement(state: Path, text: str) -> Revocation:
    return verify_revocation(text.encode(), TrustStore.load(state / "trust.jwks"))


def test_every_option_reaches_the_license(run: Any, state: Path, kid: str) -> None:
    result = run(
        *("license", "issue", "--id", "acme-orders", "--subject", "Acme Ltd", "--org", "acme"),
        *("--project", "orders", "--environment", "prod", "--region", "eu-1", "--region", "eu-2"),
        *("--resource", "orders-db", "--resource", "web:bind,connect"),
        *("--limit", "orders-db:egress_bytes=10Gi/day:throttle", "--limit", "seats=5/instant"),
        *("--condition", "label:region=eu-1,eu-2", "--condition", "web:posture:secure_boot=true"),
        *("--selector", "unix:user:etl", "--selector", "host", "--host", "db-1"),
        *("--not-before", "2026-01-01T01:00:00+01:00", "--expires", "2100-01-01T00:00:00Z"),
        *("--grace", "15m", "--failure-mode", "open"),
    )
    assert as_agent(state, result.stdout) == License(
        jti="acme-orders",
        issuer="acme",
        subject="Acme Ltd",
        audience="licagent",
        number=1,
        generation=1,
        issued_at_s=as_agent(state, result.stdout).issued_at_s,
        not_before_s=1_767_225_600,
        expires_at_s=4_102_444_800,
        scope=LicenseScope("acme", "orders", ("prod",), ("eu-1", "eu-2")),
        entitlements=(
            Entitlement(
                "orders-db",
                ("connect",),
                (
                    Limit("egress_bytes", 10 * 2**30, "day", "throttle"),
                    Limit("seats", 5, "instant"),
                ),
                (Condition("label:region", ("eu-1", "eu-2")),),
            ),
            Entitlement(
                "web",
                ("bind", "connect"),
                (Limit("seats", 5, "instant"),),
                (
                    Condition("label:region", ("eu-1", "eu-2")),
                    Condition("posture:secure_boot", ("true",)),
                ),
            ),
        ),
        selectors=("unix:user:etl", "host"),
        hosts=("db-1",),
        grace_s=900,
        failure_mode="open",
        kid=kid,
    )


def test_resource_names_with_colons(run: Any, state: Path, kid: str) -> None:
    result = run(
        *("license", "issue", "--id", "a", "--subject", "A", "--org", "a/b", "--expires", "+1d"),
        *("--resource", "db:5432", "--resource", "eu/web:443:bind", "--host", "db-*.example.net"),
        *("--limit", "db:5432:seats=5/instant", "--host", "machine-id:0123"),
    )
    found = as_agent(state, result.stdout)
    assert found.entitlements == (
        Entitlement("db:5432", ("connect",), (Limit("seats", 5, "instant"),)),
        Entitlement("eu/web:443", ("bind",)),
    )
    assert found.hosts == ("db-*.example.net", "machine-id:0123")


def test_defaults_grant_little(state: Path, issue: Issue) -> None:
    before = int(time.time())
    found = as_agent(state, issue(expires="+20s")["token"])
    # Its time counts from the command, and it is signed a moment later: a passphrase may be asked
    # for in between.
    assert before <= found.not_before_s <= found.issued_at_s <= int(time.time())
    assert found.expires_at_s == found.not_before_s + 20
    assert found.entitlements == (Entitlement("orders-db", ("connect",)),)
    assert (found.failure_mode, found.grace_s, found.hosts) == ("closed", 0, ())


def test_numbers_are_unique_and_generations_rise(state: Path, issue: Issue) -> None:
    made = [issue(jti) for jti in ("a", "b", "a", "c", "a")]
    assert [(one["number"], one["generation"]) for one in made] == [
        (1, 1),
        (2, 1),
        (1, 2),
        (3, 1),
        (1, 3),
    ]
    assert [as_agent(state, one["token"]).generation for one in made] == [1, 1, 2, 1, 3]


def test_a_failure_in_the_middle_leaves_nothing(
    run: Any, state: Path, issue: Issue, monkeypatch: pytest.MonkeyPatch
) -> None:
    from licplane.issuer.registry import OpenRegistry

    issue("a")
    put = OpenRegistry.put
    monkeypatch.setattr(OpenRegistry, "put", lambda *_: (_ for _ in ()).throw(OSError(5, "crash")))
    arguments = ("--subject", "B", "--org", "b", "--resource", "r", "--expires", "+1d")
    run("license", "issue", "--id", "b", *arguments, code=ExitCode.INTERNAL)
    monkeypatch.setattr(OpenRegistry, "put", put)
    assert issue("c")["number"] != 1
    listed = json.loads(run("license", "list", "--json").stdout)["licenses"]
    assert [one["id"] for one in listed] == ["a", "c"]
    audit = json.loads(run("audit", "list", "--json").stdout)["entries"]
    assert "b" not in [one["target"] for one in audit]
    assert "intact" in run("audit", "verify").stderr


def test_refused_terms_spend_no_number(run: Any, issue: Issue) -> None:
    arguments = ("--subject", "B", "--org", "b", "--resource", "no name", "--expires", "+1d")
    result = run("license", "issue", "--id", "b", *arguments, code=ExitCode.REFUSED)
    assert "lic.entitlements[0].resource" in result.stderr
    assert issue("c")["number"] == 1


def test_a_damaged_record(run: Any, state: Path, issue: Issue) -> None:
    issue("a")
    with closing(sqlite3.connect(state / "licplane.db")) as database:
        database.execute("UPDATE license_tokens SET document = '{}'")
        database.commit()
    result = run("license", "show", "a", code=ExitCode.INTERNAL)
    assert "damaged" in result.stderr
    assert "backup" in result.stderr


def test_out_is_written_whole_and_readable(run: Any, state: Path, issue: Issue) -> None:
    out = state.parent / "a.lic"
    out.write_text("old")
    document = issue("a", "--out", str(out))
    assert document["out"] == str(out)
    assert out.read_text() == document["token"]
    assert stat.S_IMODE(out.stat().st_mode) == 0o644
    result = run("license", "show", "a", "--token")
    assert result.stdout == out.read_text()
    assert [path.name for path in state.parent.iterdir() if path.name.startswith(".new")] == []


def test_an_out_that_cannot_be_written_signs_nothing(run: Any, state: Path, kid: str) -> None:
    arguments = ("--id", "a", "--subject", "A", "--org", "a", "--resource", "r", "--expires", "+1d")
    out = state / "absent" / "a.lic"
    run("license", "issue", *arguments, "--out", str(out), code=ExitCode.NOT_FOUND)
    assert json.loads(run("license", "list", "--json").stdout)["licenses"] == []


def test_without_json_stdout_is_the_license_alone(run: Any, state: Path, kid: str) -> None:
    arguments = ("--id", "a", "--subject", "A", "--org", "a", "--resource", "r", "--expires", "+1d")
    result = run("license", "issue", *arguments)
    assert as_agent(state, result.stdout).jti == "a"
    assert "number 1, generation 1" in result.stderr
    result = run("license", "issue", *arguments, "--out", str(state.parent / "a.lic"))
    assert result.stdout == ""


def test_renew_changes_the_end_alone(run: Any, state: Path, issue: Issue) -> None:
    first = as_agent(state, issue("a", "--host", "db-1")["token"])
    renewed = as_agent(state, run("license", "renew", "a", "--expires", "+200d").stdout)
    assert (renewed.generation, renewed.number) == (2, first.number)
    assert renewed.expires_at_s > first.expires_at_s
    assert (renewed.hosts, renewed.entitlements) == (first.hosts, first.entitlements)
    assert renewed.not_before_s == first.not_before_s
    result = run("license", "renew", "a", "--expires", "+1d", code=ExitCode.REFUSED)
    assert "would not last longer" in result.stderr
    run("license", "renew", "b", "--expires", "+1d", code=ExitCode.NOT_FOUND)


def test_revoke_is_final_for_what_was_issued(run: Any, state: Path, issue: Issue) -> None:
    license = as_agent(state, issue("a")["token"])
    out = state.parent / "a.rev"
    run("license", "revoke", "a", "--reason", "contract ended", "--out", str(out))
    said = statement(state, out.read_text())
    assert (said.license, said.action, said.reason, said.generation) == (
        "a",
        RevocationAction.REVOKE,
        "contract ended",
        2,
    )
    assert standing(license, [said]) is Standing.REVOKED
    shown = json.loads(run("license", "show", "a", "--json").stdout)["license"]
    assert shown["state"] == "revoked"
    assert shown["statements"][0]["reason"] == "contract ended"
    assert run("license", "show", "a", "--revocation").stdout == out.read_text()

    for command in (("revoke", "a"), ("suspend", "a"), ("reinstate", "a")):
        assert "final" in run("license", *command, code=ExitCode.REFUSED).stderr
    run("license", "renew", "a", "--expires", "+200d", code=ExitCode.REFUSED)
    arguments = ("--id", "a", "--subject", "A", "--org", "a", "--resource", "r", "--expires", "+1d")
    run("license", "issue", *arguments, code=ExitCode.REFUSED)
    anew = as_agent(state, run("license", "issue", *arguments, "--after-revocation").stdout)
    assert anew.generation == 3
    assert standing(anew, [said]) is Standing.ACTIVE


def test_suspend_and_reinstate(run: Any, state: Path, issue: Issue) -> None:
    license = as_agent(state, issue("a")["token"])
    suspended = statement(state, run("license", "suspend", "a").stdout)
    assert standing(license, [suspended]) is Standing.SUSPENDED
    assert "SUSPENDED" in run("license", "list").stdout.upper()
    refused = run("license", "renew", "a", "--expires", "+200d", code=ExitCode.REFUSED)
    assert "reinstate" in refused.stderr.lower()
    reinstated = statement(state, run("license", "reinstate", "a").stdout)
    assert standing(license, [suspended, reinstated]) is Standing.ACTIVE
    run("license", "reinstate", "a", code=ExitCode.REFUSED)
    run("license", "show", "a", "--token", "--revocation", code=ExitCode.USAGE)
    issue("b")
    run("license", "show", "b", "--revocation", code=ExitCode.NOT_FOUND)


def test_list_and_show(run: Any, issue: Issue) -> None:
    issue("b", "--selector", "unix:user:etl", "--condition", "label:region=eu-1")
    issue("a", "--not-before", "+1d", "--limit", "seats=5/instant")
    issue("c", "--not-before", "-2d", expires="-1d")
    listed = json.loads(run("license", "list", "--json").stdout)
    states = {one["id"]: one["state"] for one in listed["licenses"]}
    assert states == {"a": "not-yet-valid", "b": "active", "c": "expired"}
    assert listed["schema_version"] == 1
    assert "token" not in listed["licenses"][0]
    table = run("license", "list").stdout.splitlines()
    assert [line.split()[0] for line in table] == ["ID", "a", "b", "c"]
    shown = run("license", "show", "b").stdout
    for word in ("unix:user:etl", "region in eu-1", "orders-db: connect", "Acme Ltd"):
        assert word in shown
    assert "seats <= 5 per instant, then deny" in run("license", "show", "a").stdout
    missing = run("license", "show", "bb", "--json", code=ExitCode.NOT_FOUND)
    error = json.loads(missing.stdout)["error"]
    assert error["code"] == "NOT_FOUND"
    assert "did you mean b?" not in missing.stdout or "b" in error["message"]
    run("license", "show", "../a", code=ExitCode.NOT_FOUND)


def test_verify_judges_as_a_host_does(run: Any, state: Path, issue: Issue, kid: str) -> None:
    path = state.parent / "a.lic"
    token = issue("a", "--out", str(path))["token"]
    assert run("license", "verify", str(path)).stdout.splitlines()[1].startswith("a ")
    assert json.loads(run("license", "verify", str(path), "--json").stdout)["id"] == "a"
    path.write_text(token.replace("e", "f", 1))
    refused = run("license", "verify", str(path), "--json", code=ExitCode.REFUSED)
    assert json.loads(refused.stdout)["error"]["code"] in ("BAD_JSON", "BAD_UTF8", "BAD_SIGNATURE")
    path.write_text(token)
    run("keys", "retire", kid)
    refused = run("license", "verify", str(path), "--json", code=ExitCode.REFUSED)
    assert json.loads(refused.stdout)["error"]["code"] == "RETIRED_KEY"


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--expires", "tomorrow", "+90d"),
        ("--expires", "2026-12-31", "with its zone"),
        ("--expires", "2026-12-31T00:00:00", "with its zone"),
        ("--expires", "2026-13-31T00:00:00Z", "no time"),
        ("--expires", "+90y", "no duration"),
        ("--expires", "+999999999999w", "1970..2262"),
        ("--grace", "-1s", "no duration"),
        ("--resource", "r", "given twice"),
        ("--resource", "x:", "action"),
        ("--resource", "x:conect", "did you mean connect?"),
        ("--limit", "seats", "METER=NUMBER"),
        ("--limit", "seats=many", "no number"),
        ("--limit", "seats=-1", "no number"),
        ("--limit", "seats=9999999999999Pi", "no number"),
        ("--limit", "seats=1/fortnight", "fortnight"),
        ("--limit", "seats=1:explode", "explode"),
        ("--limit", "rr:seats=1", "did you mean r?"),
        ("--condition", "region", "KIND=VALUE"),
        ("--selector", "unix:usr:etl", "did you mean unix:user?"),
        ("--selector", "unix:user:", "no selector"),
        ("--selector", "hosts", "did you mean host?"),
        ("--failure-mode", "ajar", "closed"),
    ],
)
def test_bad_options_are_named(run: Any, kid: str, option: str, value: str, word: str) -> None:
    base = ["--id", "a", "--subject", "A", "--org", "a", "--resource", "r"]
    end = [] if option == "--expires" else ["--expires", "+1d"]
    result = run("license", "issue", *base, *end, option, value, code=ExitCode.USAGE)
    assert word in result.stderr
    assert result.stdout == ""


def test_two_at_once_never_share_a_number(state: Path, issue: Issue) -> None:
    """Real processes: flock is by open file, so threads of one process would not show it."""
    issue("first")
    command = [sys.executable, "-c", "from licplane.cli.main import main; main()"]
    base = ["license", "issue", "--subject", "A", "--org", "a", "--resource", "r", "--json"]

    def one(at: int) -> tuple[int, int]:
        done = subprocess.run(
            [*command, *base, "--expires", "+1d", "--id", f"id-{at % 4}"],
            env={**os.environ, "LICPLANE_STATE": str(state)},
            capture_output=True,
            text=True,
            check=True,
        )
        document = json.loads(done.stdout)
        return document["number"], document["generation"]

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(one, range(12)))
    assert sorted(made) == [(number, gen) for number in (2, 3, 4, 5) for gen in (1, 2, 3)]


def test_a_held_lock_is_reported(
    run: Any, state: Path, issue: Issue, monkeypatch: pytest.MonkeyPatch
) -> None:
    issue("first")
    monkeypatch.setattr("licplane.store.engine.LOCK_WAIT_S", 0.1)
    arguments = ("--id", "a", "--subject", "A", "--org", "a", "--resource", "r")
    with closing(sqlite3.connect(state / "licplane.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        run("license", "issue", *arguments, "--expires", "+1d", code=ExitCode.BUSY)
    assert issue("a")["number"] == 2


def test_the_installed_command(state: Path, tmp_path: Path) -> None:
    """As a user runs it: data on stdout, words on stderr, a key under a passphrase."""
    program = Path(sys.executable).parent / "licplane"
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse battery\n")

    def licplane(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [program, *arguments],
            env={**os.environ, "LICPLANE_STATE": str(state)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done

    assert licplane("--version").stdout.startswith("licplane ")
    assert "license" in licplane("--help").stdout
    passphrase = ("--passphrase-file", str(secret))
    kid = licplane("keys", "create", "--issuer", "acme", *passphrase).stdout.strip()
    arguments = ("--id", "a", "--subject", "A", "--org", "a", "--resource", "r", "--expires", "+1d")
    issued = licplane("license", "issue", *arguments, *passphrase)
    assert as_agent(state, issued.stdout).kid == kid
    assert issued.stderr.startswith("Issued a: number 1")
    assert "needs its passphrase" in licplane("license", "issue", *arguments, code=5).stderr
    assert licplane("license", "show", "nothing", code=6).stdout == ""


def test_shell_completion_knows_the_ids(state: Path, issue: Issue, kid: str, run: Any) -> None:
    issue("acme-1")
    issue("beta-1")

    def complete(words: str, at: int) -> list[str]:
        env = {
            "_LICPLANE_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(at),
            "LICPLANE_STATE": str(state),
        }
        program = Path(sys.executable).parent / "licplane"
        done = subprocess.run(
            [program], env={**os.environ, **env}, capture_output=True, text=True, check=True
        )
        return [line.partition(",")[2] for line in done.stdout.split()]

    assert complete("licplane license show a", 3) == ["acme-1"]
    assert complete(f"licplane keys retire {kid[:3]}", 3) == [kid]
    assert "issue" in complete("licplane license ", 2)
