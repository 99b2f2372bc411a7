# SPDX-License-Identifier: Apache-2.0
"""`licplane keys`."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from licplane.errors import ExitCode
from licplane.issuer.keyring import load_key
from licplane.store.database import Store
from licplane.store.record_model import KeyKind, SealedKey
from lictoken import base64url
from lictoken.keys import SigningKey
from lictoken.trust import KeyStatus, TrustStore

PASSPHRASE = "correct horse battery"
ISSUE = ("license", "issue", "--id", "a", "--subject", "A", "--org", "a", "--resource", "r")
ISSUE_A = (*ISSUE, "--expires", "+1d")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def stored(state: Path) -> list[SealedKey]:
    with Store.in_folder(state) as store, store.reading() as reader:
        return list(reader.keys(KeyKind.ISSUER))


def test_create_keeps_the_private_key_sealed(run: Any, state: Path, tmp_path: Path) -> None:
    file = tmp_path / "passphrase"
    file.write_text(PASSPHRASE + "\n")
    result = run("keys", "create", "--issuer", "acme", "--passphrase-file", str(file))
    kid = result.stdout.strip()
    assert "Warning" not in result.stderr
    assert (mode(state), mode(state / "licplane.db")) == (0o700, 0o600)
    [row] = stored(state)
    key = load_key(row, PASSPHRASE)
    assert (key.kid, key.issuer) == (kid, "acme")
    assert base64url.encode(key.secret) not in row.document
    for file in state.rglob("*"):
        data = file.read_bytes() if file.is_file() else b""
        assert key.secret not in data
        assert base64url.encode(key.secret).encode() not in data
    trusted = TrustStore.load(state / "trust.jwks").get(kid)
    assert trusted is not None
    assert trusted.public_key == key.public_key


def test_the_sealed_key_signs_only_with_its_passphrase(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LICPLANE_PASSPHRASE", PASSPHRASE)
    run("keys", "create", "--issuer", "acme")
    run(*ISSUE_A)
    monkeypatch.setenv("LICPLANE_PASSPHRASE", "wrong " + PASSPHRASE)
    assert "does not open" in run(*ISSUE_A, code=ExitCode.PERMISSION).stderr
    monkeypatch.delenv("LICPLANE_PASSPHRASE")
    assert "needs its passphrase" in run(*ISSUE_A, code=ExitCode.PERMISSION).stderr
    (tmp_path / "licplane.passphrase").write_text(PASSPHRASE)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    run(*ISSUE_A)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    run(*ISSUE_A, "--passphrase-file", "-", input=PASSPHRASE + "\n")


def test_no_passphrase_makes_no_key(run: Any, state: Path) -> None:
    result = run("keys", "create", "--issuer", "acme", code=ExitCode.USAGE)
    assert "--passphrase-file" in result.stderr
    assert not state.exists()


@pytest.mark.parametrize(
    ("text", "word"), [("", "empty"), ("a\nb", "several lines"), ("short", "fewer than 8")]
)
def test_poor_passphrases(run: Any, state: Path, tmp_path: Path, text: str, word: str) -> None:
    file = tmp_path / "passphrase"
    file.write_text(text)
    arguments = ("keys", "create", "--issuer", "acme", "--passphrase-file", str(file))
    assert word in run(*arguments, code=ExitCode.REFUSED).stderr
    assert stored(state) == []


def test_unencrypted_only_when_asked_and_with_a_warning(run: Any, state: Path) -> None:
    result = run("keys", "create", "--issuer", "acme", "--unencrypted")
    assert "Warning" in result.stderr
    assert load_key(stored(state)[0], None).kid == result.stdout.strip()
    run("keys", "create", "--issuer", "a", "--unencrypted", "--passphrase-file", "x", code=2)


def test_list_and_retire(run: Any, state: Path, kid: str) -> None:
    second = run("keys", "create", "--issuer", "acme", "--unencrypted").stdout.strip()
    listed = json.loads(run("keys", "list", "--json").stdout)
    assert listed["schema_version"] == 1
    assert [key["kid"] for key in listed["keys"]] == [kid, second]
    assert listed["keys"][0]["private_key"] == "unencrypted"
    table = run("keys", "list").stdout.splitlines()
    assert [line.split()[0] for line in table] == ["KID", kid, second]

    assert json.loads(run("keys", "retire", kid[:8], "--json").stdout)["changed"] is True
    assert json.loads(run("keys", "retire", kid, "--json").stdout)["changed"] is False
    trust = TrustStore.from_bytes(run("keys", "export").stdout.encode())
    statuses = {key.kid: key.status for key in trust}
    assert statuses == {kid: KeyStatus.RETIRED, second: KeyStatus.ACTIVE}
    assert json.loads(run(*ISSUE_A, "--json").stdout)["kid"] == second
    assert "retired" in run(*ISSUE_A, "--key", kid, code=ExitCode.REFUSED).stderr
    run("keys", "retire", second)
    assert "no active key" in run(*ISSUE_A, code=ExitCode.NOT_FOUND).stderr


def test_export_holds_no_secret(run: Any, state: Path, kid: str, tmp_path: Path) -> None:
    secret = json.loads(stored(state)[0].document)["secret"]
    out = tmp_path / "trust.jwks"
    texts = (
        run("keys", "export").stdout,
        run("keys", "export", "--json").stdout,
        (run("keys", "export", "--out", str(out)), out.read_text())[1],
    )
    for text in texts:
        assert kid in text
        assert secret not in text


def test_several_issuers_must_be_told_apart(run: Any, kid: str) -> None:
    run("keys", "create", "--issuer", "beta", "--unencrypted")
    assert "acme, beta" in run(*ISSUE_A, code=ExitCode.USAGE).stderr
    assert json.loads(run(*ISSUE_A, "--issuer", "beta", "--json").stdout)["issuer"] == "beta"
    # That id is beta's now.
    refused = run(*ISSUE_A, "--issuer", "acme", code=ExitCode.REFUSED)
    assert "issued by beta" in refused.stderr


def test_the_newest_key_signs(run: Any, kid: str) -> None:
    newest = kid
    for _ in range(4):
        newest = run("keys", "create", "--issuer", "acme", "--unencrypted").stdout.strip()
    assert json.loads(run(*ISSUE_A, "--json").stdout)["kid"] == newest


def test_kid_never_looks_like_an_option(
    run: Any, monkeypatch: pytest.MonkeyPatch, state: Path
) -> None:
    dashed = next(
        key
        for key in (SigningKey("acme", number.to_bytes(32, "big")) for number in range(1000))
        if key.kid.startswith("-")
    )
    other = SigningKey("acme", b"\1" * 32)
    made = iter([dashed, other])
    monkeypatch.setattr(SigningKey, "create", classmethod(lambda _cls, _issuer: next(made)))
    result = run("keys", "create", "--issuer", "acme", "--unencrypted")
    assert result.stdout.strip() == other.kid


def test_absent_state_and_unknown_key(run: Any, state: Path) -> None:
    for command in (["keys", "list"], ["keys", "export"], ["keys", "retire", "x"], [*ISSUE_A]):
        assert "licplane keys create" in run(*command, code=ExitCode.NOT_FOUND).stderr
    assert not state.exists()
    run("keys", "create", "--issuer", "acme", "--unencrypted")
    run("keys", "retire", "nothing", code=ExitCode.NOT_FOUND)


def test_a_state_folder_that_others_may_change(run: Any, state: Path, kid: str) -> None:
    state.chmod(0o777)
    assert "Others may change" in run("keys", "list", code=ExitCode.PERMISSION).stderr
    assert "Others may change" in run(*ISSUE_A, code=ExitCode.PERMISSION).stderr


def test_issue_fixture_is_what_the_tests_say(issue: Callable[..., dict[str, Any]]) -> None:
    assert issue()["subject"] == "Acme Ltd"
