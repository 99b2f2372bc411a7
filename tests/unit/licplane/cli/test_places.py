# SPDX-License-Identifier: Apache-2.0
"""Where commands work, and with which credential files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from licplane.cli.credentials import read_credentials, token_file_text
from licplane.cli.output import safe
from licplane.errors import ExitCode, PlaneError

KEY = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
LEAF = "-----BEGIN CERTIFICATE-----\nBBBB\n-----END CERTIFICATE-----\n"
ROOT = "-----BEGIN CERTIFICATE-----\nCCCC\n-----END CERTIFICATE-----\n"


def private(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--identity", "x", "host", "list"), "--server"),
        (("--server", "h:1", "host", "list"), "--identity"),
        (("--server", "h:1", "host", "list", "--identity", "a", "--token-file", "b"), "one of"),
        (("--server", "h:1", "--database", "sqlite:///x", "host", "list"), "excludes"),
        (("hots", "list"), "Did you mean 'host'?"),
        (("serve", "--listen", "nowhere"), "HOST:PORT"),
        (("serve", "--listen", "h:70000"), "HOST:PORT"),
        (("serve", "--lease-ttl", "1s"), "not within"),
        (("--database", "mysql://h/d", "host", "list"), "postgresql"),
    ],
)
def test_wrong_command_lines(run: Any, arguments: Any, word: str) -> None:
    result = run(*arguments, code=ExitCode.USAGE)
    assert word in result.stderr
    assert result.stdout == ""


def test_the_state_folder_by_option_before_and_after(run: Any, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    create = ("keys", "create", "--issuer", "acme", "--unencrypted")
    first = run("--state", str(one), *create).stdout.strip()
    second = run(*create, "--state", str(two)).stdout.strip()
    for folder, kid in ((one, first), (two, second)):
        listed = json.loads(run("keys", "list", "--state", str(folder), "--json").stdout)
        assert [key["kid"] for key in listed["keys"]] == [kid]
    database = f"sqlite:///{one}/licplane.db"
    listed = json.loads(
        run("--state", str(two), "--database", database, "keys", "list", "--json").stdout
    )
    assert [key["kid"] for key in listed["keys"]] == [first]


def test_the_command_line_wins_over_the_environment(
    run: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    create = ("keys", "create", "--issuer", "acme", "--unencrypted")
    kid = run(*create).stdout.strip()
    monkeypatch.setenv("LICPLANE_DATABASE", "postgresql://127.0.0.1:1/nothing")
    assert kid in run("keys", "list", "--state", os.environ["LICPLANE_STATE"]).stdout
    monkeypatch.delenv("LICPLANE_DATABASE")
    monkeypatch.setenv("LICPLANE_SERVER", "127.0.0.1:1")
    monkeypatch.setenv("LICPLANE_IDENTITY", str(tmp_path / "absent"))
    state = os.environ["LICPLANE_STATE"]
    assert kid in run("keys", "list", "--state", state).stdout
    monkeypatch.delenv("LICPLANE_SERVER")
    monkeypatch.delenv("LICPLANE_IDENTITY")
    absent = ("--identity", str(tmp_path / "absent"))
    asked = run("host", "list", "--server", "127.0.0.1:1", *absent, code=ExitCode.NOT_FOUND)
    assert "no credential file" in asked.stderr


def test_what_never_goes_over_the_network(run: Any, tmp_path: Path) -> None:
    identity = private(tmp_path / "ops.pem", KEY + LEAF + ROOT)
    remote = ("--server", "127.0.0.1:1", "--identity", str(identity))
    for command in (
        ("keys", "list"),
        ("keys", "create", "--issuer", "a", "--unencrypted"),
        ("db", "current"),
        ("serve",),
    ):
        words = run(*remote, *command, code=ExitCode.USAGE).stderr
        assert ("on its machine" in words) or ("server's machine" in words) or ("here" in words)


def test_credential_files(tmp_path: Path) -> None:
    found = read_credentials(private(tmp_path / "a", KEY + LEAF + ROOT), None)
    assert (found.private_key_pem, found.certificate_pem, found.ca_pem) == (
        KEY.encode(),
        LEAF.encode(),
        ROOT.encode(),
    )
    token = private(tmp_path / "b", token_file_text("licadm1." + "x" * 40, ROOT))
    found = read_credentials(None, token)
    assert (found.bearer, found.ca_pem) == ("licadm1." + "x" * 40, ROOT.encode())
    assert "x" * 40 not in repr(found)


@pytest.mark.parametrize("text", ["", KEY, KEY + LEAF, LEAF + ROOT, KEY + KEY + LEAF + ROOT])
def test_an_identity_that_is_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(PlaneError, match="licplane admin create") as caught:
        read_credentials(private(tmp_path / "a", text), None)
    assert caught.value.code is ExitCode.REFUSED


@pytest.mark.parametrize("text", ["", "short\n" + ROOT, "x" * 40 + "\n", "x" * 20 + " y\n" + ROOT])
def test_a_token_file_that_is_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(PlaneError, match="licplane admin create"):
        read_credentials(None, private(tmp_path / "a", text))


def test_credentials_that_others_may_read(tmp_path: Path) -> None:
    path = private(tmp_path / "a", KEY + LEAF + ROOT)
    path.chmod(0o640)
    with pytest.raises(PlaneError, match="0640") as caught:
        read_credentials(path, None)
    assert caught.value.code is ExitCode.PERMISSION
    with pytest.raises(PlaneError, match="no credential file"):
        read_credentials(tmp_path / "absent", None)


def test_strangers_cannot_write_to_the_terminal() -> None:
    assert safe("db-1\x1b[2J\u202e\n") == "db-1\\x1b[2J\\u202e\\n"
    assert safe("grün") == "grün"
