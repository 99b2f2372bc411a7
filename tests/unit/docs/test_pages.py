# SPDX-License-Identifier: Apache-2.0
"""What the pages link to, show and tell to type exists, and reads as what it is said to be."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import click
import pytest
import yaml
from tests.support.pages import ROOT, Block, anchors, blocks, links, name_of, pages, prose

from licagent.cli.main import cli
from licagent.domain.config_reader import SETTINGS, parse_config
from licagent.domain.policy import parse_policy
from licplane.cli.billing_documents import read_billing
from licplane.cli.declared import read_declared
from licplane.cli.main import cli as licplane
from licplane.service.billing.reading import READERS, parsed
from licplane.service.declared import read_documents
from licplane.service.requests import Document

PAGES = pages()
KINDS = {
    "sh",
    "text",
    "toml",
    "json",
    "yaml",
    "ini",
    "",
    "c",
    "python",
    "promql",
    "ruby",
}

TELLING = {".py", ".service", ".socket", ".yml", ".toml", ".env", ".j2"}

every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def fences(page: Path, kind: str) -> Iterator[Block]:
    return (block for block in blocks(page) if block.kind == kind)


# ------------------------------------------------------------------------------------- links


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        if anchor:
            assert target.suffix == ".md", link
            assert anchor in anchors(target), (link, sorted(anchors(target)))


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        paths = (link.partition("#")[0] for link in links(page) if "://" not in link)
        waiting += [(page.parent / unquote(path)).resolve() for path in paths if path]
    assert [name_of(page) for page in PAGES if page not in reached] == []


@every_page
def test_headings_are_one_title_and_parts_in_order(page: Path) -> None:
    levels = [len(marks) for marks in re.findall(r"^(#{1,6}) ", prose(page), re.MULTILINE)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


# ---------------------------------------------------------------------------------- commands


def commands(page: Path) -> Iterator[list[str]]:
    """Every `licagent` and `licplane` line: of the blocks, and in code within the text."""
    lines = "".join(block.text for block in fences(page, "sh"))
    in_text = re.findall(r"`((?:licagent|licplane) [^`|]+)`", page.read_text(encoding="utf-8"))
    return split([*lines.replace("\\\n", " ").splitlines(), *in_text])


def split(lines: list[str]) -> Iterator[list[str]]:
    """The words of those lines that are commands of ours, and whole."""
    for line in lines:
        text = re.sub(r"^(?:[A-Z_]+=\S+ |sudo |until |if )+", "", line.strip())
        if re.match(r"(licagent|licplane) [a-z-]", text) and "..." not in text:
            words = shlex.split(text, comments=True)
            ends = (at for at, word in enumerate(words) if re.match(r"[|>&]|\d?>", word))
            yield words[: next(ends, len(words))]


@every_page
def test_commands_and_options_exist(page: Path) -> None:
    for words in commands(page):
        check_command(words)


@pytest.mark.parametrize("folder", ["agent", "controlplane", "token", "packaging", "systemd"])
def test_commands_that_programs_tell_to_type_exist(folder: str) -> None:
    files = [file for file in (ROOT / folder).rglob("*") if file.suffix in TELLING]
    assert files
    for file in files:
        text = re.sub(r"[\"']\n\s*f?[\"']", "", file.read_text(encoding="utf-8"))  # joined
        for words in split(re.findall(r"`((?:licagent|licplane) [^`|\n]+)`", text)):
            if "{" not in words[1]:
                check_command([re.sub(r"\{.*?\}", "X", word) for word in words])


def check_command(words: list[str]) -> None:
    """It, and each of its options, is one that the program knows."""
    command: click.Command = cli if words[0] == "licagent" else licplane
    rest = words[1:]
    while isinstance(command, click.Group) and rest:
        if rest[0].startswith("-"):
            break  # options of the group itself
        found = command.get_command(click.Context(command), rest[0])
        assert found is not None, words
        command, rest = found, rest[1:]
    known = {"-h", "--help", "--version"}
    for parameter in command.params:
        known |= {*parameter.opts, *parameter.secondary_opts}
    for word in rest[: rest.index("--")] if "--" in rest else rest:
        if re.match(r"-{1,2}[a-z]", word):
            assert word.partition("=")[0] in known, (words, word)


@every_page
def test_what_dev_is_told_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    told_by_help = (ROOT / "dev").read_text(encoding="utf-8").partition("COMMAND [ARGUMENTS]")[2]
    known = set(re.findall(r"^  ([a-z-]+)(?: |$)", told_by_help, re.MULTILINE))
    told = re.findall(r"(?:^|[`(|] ?)\./dev ([a-z-]+)", text, re.MULTILINE)
    assert set(told) <= known, set(told) - known


@every_page
def test_shell_blocks_are_shell(page: Path) -> None:
    for block in fences(page, "sh"):
        if "..." in block.text or "<" in block.text.replace("<<", "").replace(" <", ""):
            continue  # with something left out, or to be filled in
        done = subprocess.run(
            ["bash", "-n"], input=block.text, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{name_of(page)}:{block.line}: {done.stderr}"


# -------------------------------------------------------------------------------------- data


@every_page
def test_blocks_are_of_a_known_kind(page: Path) -> None:
    for block in blocks(page):
        assert block.kind in KINDS, f"{name_of(page)}:{block.line}: {block.kind}"


@every_page
def test_json_in_the_text_is_json(page: Path) -> None:
    for block in fences(page, "json"):
        json.loads(block.text)


@every_page
def test_toml_in_the_text_is_what_our_readers_take(page: Path, tmp_path: Path) -> None:
    for block in fences(page, "toml"):
        root = tomllib.loads(block.text)
        tables = set(root)
        if tables & {*READERS}:
            read_prices(block.text, tmp_path)
        elif tables & {"resource", "binding", "license"}:
            if "license" not in tables:
                parse_policy([(page.name, block.text)])
            if all("name" in each for each in root.get("binding", ())):  # a host's need none
                read_catalog(block.text, tmp_path, "toml")
        else:
            assert tables <= set(SETTINGS), f"{name_of(page)}:{block.line}: {tables}"
            parse_config(block.text, page.name, {})


@every_page
def test_yaml_in_the_text_is_what_its_readers_take(page: Path, tmp_path: Path) -> None:
    for block in fences(page, "yaml"):
        found = yaml.safe_load(block.text)
        if isinstance(found, dict) and set(found) & {"resource", "binding", "license"}:
            read_catalog(block.text, tmp_path, "yaml")


@every_page
def test_units_in_the_text_have_sections(page: Path) -> None:
    for block in fences(page, "ini"):
        reader = configparser.RawConfigParser(strict=False)
        reader.optionxform = str  # type: ignore[assignment,method-assign]
        reader.read_string(block.text)
        assert set(reader.sections()) <= {"Unit", "Service", "Install", "Socket", "Timer"}


def read_catalog(text: str, folder: Path, ending: str) -> None:
    """As `licplane apply -f` reads it."""
    file = folder / f"text.{ending}"
    file.write_text(text, encoding="utf-8")
    read = read_declared([file])
    assert read
    read_documents([Document(one.kind, one.name, json.dumps(one.document)) for one in read], 0)


def read_prices(text: str, folder: Path) -> None:
    """As `licplane price apply` reads it."""
    file = folder / "prices.toml"
    file.write_text(text, encoding="utf-8")
    read = read_billing(file)
    assert read
    for one in read:
        READERS[one.kind](parsed(one.json))


# ------------------------------------------------------------------------------------- words


@every_page
def test_no_page_tells_of_this_machine(page: Path) -> None:
    assert f"{ROOT}/" not in page.read_text(encoding="utf-8")


def test_every_command_to_type_is_run_or_says_why_not() -> None:
    from tests.system.test_pages import SCENARIOS

    run = {f"docs/{page}" for scenario in SCENARIOS for page in scenario.pages}
    for folder in ("how-to", "operations"):
        for page in sorted((ROOT / "docs" / folder).glob("*.md")):
            left = [block.line for block in fences(page, "sh") if not block.not_run]
            assert not left or name_of(page) in run, f"{name_of(page)}: lines {left}"


def test_what_pages_tell_ansible_exists() -> None:
    """Playbooks by name, and every variable of the inventory that a page shows."""
    collection = ROOT / "packaging" / "ansible"
    known = set()
    for spec in collection.glob("roles/*/meta/argument_specs.yml"):
        for entry in yaml.safe_load(spec.read_text(encoding="utf-8"))["argument_specs"].values():
            known |= set(entry.get("options", {}))
    for file in collection.glob("playbooks/*.yml"):
        known |= set(re.findall(r"\blicagent_\w+", file.read_text(encoding="utf-8")))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"ansible-playbook licagent\.fleet\.(\w+)", text):
            assert (collection / "playbooks" / f"{name}.yml").exists(), f"{name_of(page)}: {name}"
        for block in fences(page, "yaml"):
            found = yaml.safe_load(block.text)
            for group in found.values() if isinstance(found, dict) else ():
                told = group.get("vars", {}) if isinstance(group, dict) else {}
                assert set(told) <= known, f"{name_of(page)}:{block.line}: {set(told) - known}"
