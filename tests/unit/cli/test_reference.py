# SPDX-License-Identifier: Apache-2.0
"""The generated pages are those of the commands as they are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from licagent.cli.main import COMMANDS

ROOT = Path(__file__).parents[3]


def test_the_generated_files_are_current():
    script = ROOT / "docs" / "build_reference.py"
    result = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_the_manual_page_is_good_roff():
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    page = ROOT / "packaging" / "man" / "licagent.1"
    result = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", page], capture_output=True, text=True, check=True
    )
    assert result.stderr == ""
    text = re.sub(".\x08", "", result.stdout)  # bold is a letter struck twice
    for name in COMMANDS:
        assert f"licagent {name}" in text


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("licagent st", "status"),
        ("licagent license re", "revoke"),
        ("licagent events --f", "--follow"),
    ],
)
def test_bash_completes_commands_and_options(tmp_path, words, offered):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    program = tmp_path / "licagent"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m licagent.cli.main "$@"\n')
    program.chmod(0o755)
    script = (
        f'source "{ROOT}/packaging/completions/licagent.bash"\n'
        f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
        '_licagent_completion licagent\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run(
        [bash, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    assert offered in result.stdout.split()
