# SPDX-License-Identifier: Apache-2.0
"""licplane in a folder of its own, run in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from licplane.cli.main import cli

Run = Callable[..., Result]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "state"
    for name in [*os.environ, "CREDENTIALS_DIRECTORY"]:
        if name.startswith("LICPLANE_") or name == "CREDENTIALS_DIRECTORY":
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LICPLANE_STATE", str(folder))
    return folder


@pytest.fixture
def run(state: Path) -> Run:
    """Runs one command; `code` is the exit code it must have, None for any."""

    def invoke(*arguments: str, code: int | None = 0, **more: Any) -> Result:
        result = CliRunner().invoke(cli, arguments, **more)
        assert code in (None, result.exit_code), (result.stdout, result.stderr, result.exception)
        return result

    return invoke


@pytest.fixture
def kid(run: Run) -> str:
    """An issuer `acme` with one unencrypted key."""
    return run("keys", "create", "--issuer", "acme", "--unencrypted").stdout.strip()


@pytest.fixture
def issue(run: Run, kid: str) -> Callable[..., dict[str, Any]]:
    """Issues a license and gives the JSON object back."""

    def make(jti: str = "acme-orders", *arguments: str, expires: str = "+90d") -> dict[str, Any]:
        base = ["license", "issue", "--id", jti, "--subject", "Acme Ltd", "--org", "acme"]
        more = ["--resource", "orders-db", "--expires", expires, "--json", *arguments]
        document: dict[str, Any] = json.loads(run(*base, *more).stdout)
        return document

    return make
