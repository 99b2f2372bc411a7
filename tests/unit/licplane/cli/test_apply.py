# SPDX-License-Identifier: Apache-2.0
"""`licplane apply`, `resource` and `binding`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from licplane.cli.changes import EXIT_DIFFERENT
from licplane.errors import ExitCode


def names(run: Any, kind: str) -> list[str]:
    return [one["name"] for one in json.loads(run(kind, "list", "--json").stdout)[f"{kind}s"]]


def standing(run: Any, jti: str) -> str:
    shown = run("license", "show", jti, "--json").stdout
    return str(json.loads(shown)["license"]["state"])


def test_applied_twice_it_changes_nothing(run: Any, fleet: Any, documents: Path) -> None:
    first = run("apply", "-f", str(documents))
    for line in ("create resource orders-db", "create binding orders", "create license acme-order"):
        assert line in first.stdout
    assert "3 created" in first.stderr
    assert (names(run, "resource"), names(run, "binding")) == (["orders-db"], ["orders"])
    before = json.loads(run("license", "show", "acme-orders", "--json").stdout)
    second = run("apply", "-f", str(documents))
    assert "No change: there is nothing to do" in second.stderr
    assert second.stdout == ""
    document = json.loads(run("apply", "-f", str(documents), "--json").stdout)
    assert (document["schema_version"], document["changed"]) == (1, False)
    assert {one["action"] for one in document["differences"]} <= {"none"}
    assert json.loads(run("license", "show", "acme-orders", "--json").stdout) == before


def test_a_dry_run_shows_the_diff_and_does_nothing(run: Any, fleet: Any, documents: Path) -> None:
    run("apply", "-f", str(documents))
    file = documents / "orders.yaml"
    file.write_text(file.read_text().replace("mode: enforce", "mode: observe"))
    arguments = ("apply", "-f", str(documents))
    dry = run(*arguments, "--dry-run")
    assert "update resource orders-db" in dry.stdout
    changed = [line for line in dry.stdout.splitlines() if line.startswith(("+", "-"))]
    assert any("observe" in line for line in changed)
    assert any("enforce" in line for line in changed)
    assert "Dry run" in dry.stderr
    run(*arguments, "--dry-run", "--exit-code", code=EXIT_DIFFERENT)
    assert "enforce" in run("resource", "show", "orders-db").stdout
    run(*arguments, "--exit-code", code=EXIT_DIFFERENT)
    assert "observe" in run("resource", "show", "orders-db").stdout
    run(*arguments, "--exit-code")
    run(*arguments, "--exit-code", "--dry-run")


def test_prune_only_when_told(run: Any, fleet: Any, documents: Path) -> None:
    run("apply", "-f", str(documents))
    rest = documents / "orders.yaml"
    rest.write_text("resource:\n- {name: web, kind: service, ports: ['443']}\n")
    run("apply", "-f", str(documents))
    assert names(run, "resource") == ["orders-db", "web"]
    dry = run("apply", "-f", str(documents), "--prune", "--dry-run").stdout
    assert "delete resource orders-db" in dry
    assert "acme-orders" in dry
    assert standing(run, "acme-orders") == "active"
    run("apply", "-f", str(documents), "--prune")
    assert (names(run, "resource"), names(run, "binding")) == (["web"], [])
    assert standing(run, "acme-orders") == "revoked"


def test_nothing_declared_prunes_nothing(run: Any, fleet: Any, documents: Path) -> None:
    run("apply", "-f", str(documents))
    (documents / "orders.yaml").write_text("# nothing\n")
    refused = run("apply", "-f", str(documents), "--prune", code=ExitCode.REFUSED)
    assert "would delete everything" in refused.stderr
    assert names(run, "resource") == ["orders-db"]


def test_one_mistake_and_nothing_is_changed(run: Any, fleet: Any, documents: Path) -> None:
    (documents / "more.toml").write_text(
        '[[resource]]\nname = "web"\nkind = "service"\nprots = ["443"]\n'
    )
    refused = run("apply", "-f", str(documents), code=ExitCode.REFUSED)
    assert "prots" in refused.stderr
    assert "did you mean ports?" in refused.stderr
    assert names(run, "resource") == []
    assert json.loads(run("license", "list", "--json").stdout)["licenses"] == []


def test_from_standard_input(run: Any, fleet: Any, documents: Path) -> None:
    text = (documents / "orders.yaml").read_text()
    assert "3 created" in run("apply", "-f", "-", input=text).stderr


def test_a_request_id_is_done_once(run: Any, fleet: Any, documents: Path) -> None:
    arguments = ("apply", "-f", str(documents), "--request-id", "deploy-17", "--json")
    first = json.loads(run(*arguments).stdout)
    run("resource", "delete", "orders-db")
    again = json.loads(run(*arguments).stdout)
    assert again["revision"] == first["revision"]
    assert names(run, "resource") == []


def test_one_document_at_a_time(run: Any, fleet: Any, tmp_path: Path) -> None:
    file = tmp_path / "web.toml"
    file.write_text('[[resource]]\nname = "web"\nkind = "service"\nports = ["443"]\n')
    run("resource", "put", str(file))
    shown = json.loads(run("resource", "show", "web", "--json").stdout)["resource"]
    assert shown["document"]["ports"] == ["443"]
    table = run("resource", "list").stdout.splitlines()
    assert table[1].split()[:2] == ["web", "service"]
    file.write_text(file.read_text().replace("443", "444"))
    run("resource", "put", str(file), "--etag", "stale", code=ExitCode.REFUSED)
    run("resource", "put", str(file), "--etag", shown["etag"])
    run("binding", "put", str(file), code=ExitCode.REFUSED)
    near = run("resource", "delete", "wep", code=ExitCode.NOT_FOUND)
    assert "did you mean web?" in near.stderr
    run("resource", "delete", "web", "--dry-run")
    assert names(run, "resource") == ["web"]
    run("resource", "delete", "web")
    assert names(run, "resource") == []
    assert "licplane apply" in run("resource", "list").stderr


@pytest.mark.parametrize("option", ["--etag=x"])
def test_an_etag_is_for_one_thing(run: Any, fleet: Any, documents: Path, option: str) -> None:
    run("apply", "-f", str(documents), option, code=ExitCode.USAGE)
