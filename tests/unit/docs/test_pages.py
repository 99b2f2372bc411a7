# SPDX-License-Identifier: Apache-2.0
"""What the pages link to and tell to type exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from licagent.cli.main import cli
from licagent.domain.policy import parse_policy
from licplane.cli.main import cli as licplane

ROOT = Path(__file__).parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

every_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)


def fences(page: Path, kind: str) -> list[str]:
    return re.findall(rf"^ *```{kind}\n(.*?)^ *```$", page.read_text(), re.DOTALL | re.MULTILINE)


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def commands(page: Path) -> list[list[str]]:
    """Every `licagent` and `licplane` line: of the blocks, and in code within the text."""
    lines = "".join(fences(page, "sh")).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`((?:licagent|licplane) [^`|]+)`", page.read_text())
    found = []
    for line in lines:
        text = line.strip()
        if re.match(r"(licagent|licplane) [a-z-]", text) and "..." not in text:
            found.append(shlex.split(text, comments=True))
    return found


@every_page
def test_commands_and_options_exist(page: Path) -> None:
    for words in commands(page):
        command: click.Command = cli if words[0] == "licagent" else licplane
        rest = words[1:]
        while isinstance(command, click.Group) and rest:
            if command.invoke_without_command and rest[0].startswith("-"):
                break  # options of the group itself
            found = command.get_command(click.Context(command), rest[0])
            assert found is not None, words
            command, rest = found, rest[1:]
        known = {"-h", "--help", "--version"}
        for parameter in command.params:
            known |= {*parameter.opts, *parameter.secondary_opts}
        for word in rest[: rest.index("--")] if "--" in rest else rest:
            if re.match(r"-{1,2}[a-z]", word):
                assert word in known, (words, word)


@every_page
def test_policies_in_the_text_are_policies(page: Path) -> None:
    for text in fences(page, "toml"):
        if "[[resource]]" in text:
            parse_policy([(page.name, text)])
