# SPDX-License-Identifier: Apache-2.0
"""What --help, the manual and completion offer."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete

from licplane.cli.framework import EXITS
from licplane.cli.main import COMMANDS, cli

ROOT = Path(__file__).parents[4]


def offered(words: str, incomplete: str) -> list[str]:
    shell = ShellComplete(cli, {}, "licplane", "_LICPLANE_COMPLETE")
    return [one.value for one in shell.get_completions(words.split(), incomplete)]


def test_help_lists_commands_and_exit_statuses_without_loading_them(run: Any) -> None:
    text = run("--help").stdout
    for name, (_, line) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line[:30])}", text, re.MULTILINE)
    for status in EXITS:
        assert re.search(rf"^  {status:d} ", text, re.MULTILINE)
    script = (
        "import sys; sys.argv = ['licplane', '--help']\n"
        "from licplane.cli.main import main\n"
        "try: main()\n"
        "finally: print(*sorted({'grpc', 'sqlalchemy', 'yaml'} & set(sys.modules)), 'loaded')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1].split() == ["loaded"]


def test_completion_knows_what_the_store_has(run: Any, fleet: Any, documents: Path) -> None:
    host_id = fleet.join("db-1", org="acme")
    run("apply", "-f", str(documents))
    token = run("token", "list").stdout.splitlines()[1].split()[0]
    assert offered("host show", "d")[:1] == ["db-1"]
    assert host_id in offered("host evict", host_id[:4])
    assert offered("resource show", "") == ["orders-db"]
    assert offered("binding delete", "") == ["orders"]
    assert offered("license revoke", "acme") == ["acme-orders"]
    assert token in offered("token delete", "")
    assert offered("--server h:1 --identity x host show", "") == []
    assert "--prune" in offered("apply", "--p")


def test_the_manual_page_is_good_roff() -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    page = ROOT / "packaging" / "man" / "licplane.1"
    words = ["groff", "-man", "-ww", "-Tutf8", str(page)]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    assert result.stderr == ""
    text = re.sub(".\x08", "", result.stdout)
    for name in COMMANDS:
        assert f"licplane {name}" in text
