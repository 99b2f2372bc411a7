#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0

"""Writes what is generated from the code: reference pages, manual, completions.

Run it after a change to a command, hook, reason, setting or map. With --check it changes nothing
and ends with 1 if a file is not what it would write; a test runs it so.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
from click.shell_completion import get_completion_class
from generator import pages

from licagent.cli.exits import EXITS
from licagent.cli.main import cli
from licagent.domain.config import SETTINGS

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the formula of kernel memory is the bench's
EXAMPLES: Final = ROOT / "docs" / "reference" / "examples"
REGENERATE: Final = "generated from the commands by docs/build_reference.py; do not edit"

COMPLETIONS: Final = {"bash": "licagent.bash", "zsh": "_licagent", "fish": "licagent.fish"}

ITEMS: Final = frozenset({"events"})
"""Commands whose JSON is one object a line."""

FILES: Final = (
    ("/etc/licagent/agent.toml", "settings"),
    ("/etc/licagent/licenses/*.lic", "licenses"),
    ("/etc/licagent/policy.d/*.toml", "resources and bindings"),
    ("/etc/licagent/trust.jwks", "the issuers' public keys"),
    ("/run/licagent/licagent.sock", "the daemon's socket: root, and group licagent to read"),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One command as the manual tells of it."""

    path: str  # "license add"
    usage: str
    paragraphs: tuple[str, ...]
    options: tuple[tuple[str, str], ...]


def entries() -> Iterator[Entry]:
    """Every command that does something, in the order of --help."""
    yield from _below(cli, _root(), "")


def _below(group: click.Group, parent: click.Context, prefix: str) -> Iterator[Entry]:
    for name in group.list_commands(parent):
        command = group.get_command(parent, name)
        if command is None:
            raise LookupError(name)
        context = click.Context(command, info_name=name, parent=parent)
        if isinstance(command, click.Group):
            yield from _below(command, context, f"{prefix}{name} ")
            continue
        yield Entry(
            f"{prefix}{name}",
            " ".join(command.collect_usage_pieces(context)),
            _paragraphs(command.help or ""),
            _records(command, context),
        )


def _records(command: click.Command, context: click.Context) -> tuple[tuple[str, str], ...]:
    # Arguments stand in the usage line; newer versions of click give them a record, too.
    options = (param for param in command.get_params(context) if isinstance(param, click.Option))
    records = (option.get_help_record(context) for option in options)
    return tuple(record for record in records if record is not None)


def _paragraphs(text: str) -> tuple[str, ...]:
    return tuple(" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n"))


# -------------------------------------------------------------------------------- reference page


def reference() -> str:
    """docs/reference/commands.md."""
    lines = [
        "<!-- SPDX-License-Identifier: Apache-2.0 -->",
        f"<!-- {REGENERATE} -->",
        "# Commands of `licagent`",
        "",
        *_spaced(_paragraphs(cli.help or "")),
        "",
        "Reading needs root or membership of the group `licagent`; changing anything needs root.",
        "Data is on standard output, words are on standard error. `--json` prints one object with",
        "`schema_version`, integers in ns, s and bytes as the names say, and RFC 3339 UTC times;",
        "an error is an object with `error`: {`code`, `message`, `hint`, `details`}.",
        "",
        "## Exit status",
        "",
        "| status | meaning |",
        "|---|---|",
        *(f"| {status} | {meaning} |" for status, meaning in EXITS.items()),
        "",
        "## Options before the command",
        "",
        *_options(_global_options()),
    ]
    for entry in entries():
        lines += ["", f"## `licagent {entry.path}`", ""]
        lines += ["```", f"licagent {entry.path} {entry.usage}", "```", ""]
        lines += _spaced(entry.paragraphs)
        lines += ["", *_options(entry.options)]
        lines += _example(entry.path)
    return "\n".join(lines) + "\n"


def _global_options() -> tuple[tuple[str, str], ...]:
    return _records(cli, _root())


def _root() -> click.Context:
    return click.Context(cli, info_name="licagent", **cli.context_settings)


def _spaced(paragraphs: tuple[str, ...]) -> list[str]:
    return [line for paragraph in paragraphs for line in (paragraph, "")][:-1]


def _options(options: tuple[tuple[str, str], ...]) -> list[str]:
    rows = [f"| `{_cell(names)}` | {_cell(text)} |" for names, text in options]
    return ["| option | |", "|---|---|", *rows]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _example(path: str) -> list[str]:
    name = "run-prepare" if path == "run" else path.replace(" ", "-")
    file = EXAMPLES / f"{name}.json"
    if path in ("run", "license add") or not file.exists():
        return []
    what = "One line" if path in ITEMS else "An answer"
    text = file.read_text(encoding="utf-8").rstrip()
    return ["", f"{what} with `--json`:", "", "```json", text, "```"]


# ---------------------------------------------------------------------------------- manual page


def manual() -> str:
    """packaging/man/licagent.1, in the macros of man(7)."""
    lines = [
        '.\\" SPDX-License-Identifier: Apache-2.0',
        f'.\\" {REGENERATE}',
        '.TH LICAGENT 1 "" "licagent" "User Commands"',
        ".SH NAME",
        "licagent \\- infrastructure as a licensed resource",
        ".SH SYNOPSIS",
        ".B licagent",
        "[\\fIoptions\\fR] \\fIcommand\\fR [\\fIarguments\\fR]",
        ".SH DESCRIPTION",
        *_roff_paragraphs(_paragraphs(cli.help or "")),
        ".SH OPTIONS",
        *_roff_list(_global_options()),
        ".SH COMMANDS",
    ]
    for entry in entries():
        lines += [f".SS licagent {_roff(entry.path)} {_roff(entry.usage)}"]
        lines += [*_roff_paragraphs(entry.paragraphs), *_roff_list(entry.options)]
    statuses = tuple((str(status), meaning) for status, meaning in EXITS.items())
    variables = (
        ("LICAGENT_CONFIG", "the settings file"),
        *(
            (f"LICAGENT_{key.upper()}", f"the setting {key}; wins over the file")
            for key in SETTINGS
        ),
    )
    lines += [".SH EXIT STATUS", *_roff_list(statuses)]
    lines += [".SH ENVIRONMENT", *_roff_list(variables)]
    lines += [".SH FILES", *_roff_list(FILES)]
    return "\n".join(lines) + "\n"


def _roff(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    # A line that starts with a dot or a quote would be a request.
    return re.sub(r"^([.'])", r"\\&\1", escaped, flags=re.MULTILINE)


def _roff_paragraphs(paragraphs: tuple[str, ...]) -> list[str]:
    return [line for paragraph in paragraphs for line in (".PP", _roff(paragraph))]


def _roff_list(items: tuple[tuple[str, str], ...]) -> list[str]:
    return [
        line for name, text in items for line in (".TP", f".B {_roff(name)}", _roff(text) or "\\&")
    ]


# ---------------------------------------------------------------------------------- completions


def completion(shell: str) -> str:
    """The completion script of a shell. What it offers is asked of the command when it runs."""
    kind = get_completion_class(shell)
    if kind is None:
        raise LookupError(shell)
    script = kind(cli, {}, "licagent", "_LICAGENT_COMPLETE").source().strip()
    comment = f"# SPDX-License-Identifier: Apache-2.0\n# {REGENERATE}"
    if script.startswith("#compdef"):  # zsh reads it on the first line only
        first, _, rest = script.partition("\n")
        return f"{first}\n{comment}\n{rest}\n"
    return f"{comment}\n{script}\n"


# ----------------------------------------------------------------------------------------- main


def outputs() -> dict[Path, str]:
    """Every generated file and its text."""
    packaging = ROOT / "packaging"
    return {
        ROOT / "docs" / "reference" / "commands.md": reference(),
        ROOT / "docs" / "reference" / "hooks.md": pages.hooks(),
        ROOT / "docs" / "reference" / "reasons.md": pages.reasons(),
        ROOT / "docs" / "reference" / "settings.md": pages.settings(),
        ROOT / "docs" / "reference" / "limits.md": pages.limits(),
        packaging / "man" / "licagent.1": manual(),
        **{packaging / "completions" / name: completion(sh) for sh, name in COMPLETIONS.items()},
    }


def main() -> int:
    """Write the files, or with --check name those that differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, name what differs")
    check = parser.parse_args().check
    stale = []
    for path, text in outputs().items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.relative_to(ROOT))
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for path in stale:
        sys.stderr.write(
            f"{path}: {'out of date, run docs/build_reference.py' if check else 'written'}\n"
        )
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
