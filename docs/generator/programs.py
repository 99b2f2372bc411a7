# SPDX-License-Identifier: Apache-2.0
"""Reference page, manual and shell completions of a command, made from its click commands."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
from click.shell_completion import get_completion_class

from licagent.cli.exits import EXITS
from licagent.cli.main import cli as licagent_cli
from licagent.cli.top.arrange import View
from licagent.cli.top.batch import as_object
from licagent.cli.top.model import compare, read_snapshot
from licagent.domain.config_reader import SETTINGS
from licplane.cli.framework import EXITS as PLANE_EXITS
from licplane.cli.main import cli as licplane_cli

ROOT: Final = Path(__file__).resolve().parents[2]
EXAMPLES: Final = ROOT / "docs" / "reference" / "examples"
VERBATIM: Final = "\b"
REGENERATE: Final = "generated from the commands by docs/build_reference.py; do not edit"

PROGRAMS: Final = frozenset({"licagent", "licplane"})
"""What examples in help texts begin with; other texts that stand as they are show data."""

ITEMS: Final = frozenset({"events"})
"""Commands whose JSON is one object a line."""

Rows = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Program:
    """A command and what its manual says beside its commands."""

    name: str
    cli: click.Group
    purpose: str
    exits: Mapping[int, str]
    variables: Rows
    files: Rows
    notes: tuple[str, ...]
    examples: bool = False  # JSON answers are in EXAMPLES

    @property
    def root(self) -> click.Context:
        """The context of the command itself."""
        return click.Context(self.cli, info_name=self.name, **self.cli.context_settings)


LICAGENT: Final = Program(
    name="licagent",
    cli=licagent_cli,
    purpose="infrastructure as a licensed resource",
    exits={int(status): meaning for status, meaning in EXITS.items()},
    variables=(
        ("LICAGENT_CONFIG", "the settings file"),
        *(
            (f"LICAGENT_{key.upper()}", f"the setting {key}; wins over the file")
            for key in SETTINGS
        ),
    ),
    files=(
        ("/etc/licagent/agent.toml", "settings"),
        ("/etc/licagent/licenses/*.lic", "licenses"),
        ("/etc/licagent/policy.d/*.toml", "resources and bindings"),
        ("/etc/licagent/trust.jwks", "the issuers' public keys"),
        ("/var/lib/licagent", "identity, revocations, the ledger of usage, events"),
        ("/sys/fs/bpf/licagent", "pinned programs and tables"),
        ("/run/licagent/licagent.sock", "the daemon's socket: root, and group licagent to read"),
    ),
    notes=(
        "Reading needs root or membership of the group `licagent`; changing anything needs root.",
        "Data is on standard output, words are on standard error. `--json` prints one object with",
        "`schema_version`, integers in ns, s and bytes as the names say, and RFC 3339 UTC times;",
        "an error is an object with `error`: {`code`, `message`, `hint`, `details`}.",
    ),
    examples=True,
)

LICPLANE: Final = Program(
    name="licplane",
    cli=licplane_cli,
    purpose="the control plane of licagent",
    exits={int(status): meaning for status, meaning in PLANE_EXITS.items()},
    variables=(
        ("LICPLANE_STATE", "the state folder, as --state"),
        ("LICPLANE_DATABASE", "the database's URL, as --database"),
        ("LICPLANE_SERVER", "a running licplane to ask, as --server"),
        ("LICPLANE_IDENTITY", "an administrator's certificate, as --identity"),
        ("LICPLANE_TOKEN_FILE", "an administrator's token, as --token-file"),
        ("LICPLANE_PASSPHRASE", "the passphrase of the private keys"),
    ),
    files=(
        ("/etc/licplane/licplane.env", "variables for the service, LICPLANE_..."),
        ("/etc/licplane/passphrase.cred", "the passphrase for the service, encrypted"),
        ("/var/lib/licplane", "the state folder of root's and the service's licplane"),
        ("~/.local/state/licplane", "that of other users"),
    ),
    notes=(
        "Without `--server` a command works on the state folder or database of this machine, as",
        "the administrator `local:USER`; with it, as whoever the credential says, within that",
        "[role](roles.md). Data is on standard output, words are on standard error. `--json`",
        "prints one object with `schema_version`, and RFC 3339 UTC times; an error is an object",
        "with `error`: {`code`, `message`, `hint`}.",
    ),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One command as the manual tells of it."""

    path: str  # "license add"
    usage: str
    paragraphs: tuple[str, ...]
    options: tuple[tuple[str, str], ...]


def entries(program: Program) -> Iterator[Entry]:
    """Every command that does something, in the order of --help."""
    yield from _below(program.cli, program.root, "")


def _below(group: click.Group, parent: click.Context, prefix: str) -> Iterator[Entry]:
    for name in group.list_commands(parent):
        command = group.get_command(parent, name)
        if command is None:
            raise LookupError(name)
        context = click.Context(command, info_name=name, parent=parent)
        if isinstance(command, click.Group):
            if command.invoke_without_command:
                yield _entry(command, context, f"{prefix}{name}")
            yield from _below(command, context, f"{prefix}{name} ")
            continue
        yield _entry(command, context, f"{prefix}{name}")


def _entry(command: click.Command, context: click.Context, path: str) -> Entry:
    return Entry(
        path,
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
    return tuple(_flowed(part) for part in inspect.cleandoc(text).split("\n\n"))


def _flowed(part: str) -> str:
    """As one line, unless click was told to leave it as it is (\\b)."""
    first, _, rest = part.partition("\n")
    return f"{VERBATIM}{rest}" if first.strip() == VERBATIM else " ".join(part.split())


# -------------------------------------------------------------------------------- reference page


def reference(program: Program) -> str:
    """The reference page."""
    lines = [
        "<!-- SPDX-License-Identifier: Apache-2.0 -->",
        f"<!-- {REGENERATE} -->",
        f"# Commands of `{program.name}`",
        "",
        *_spaced(_paragraphs(program.cli.help or "")),
        "",
        *program.notes,
        "",
        "## Exit status",
        "",
        "| status | meaning |",
        "|---|---|",
        *(f"| {status} | {meaning} |" for status, meaning in program.exits.items()),
        "",
        "## Options before the command",
        "",
        *_options(_records(program.cli, program.root)),
    ]
    for entry in entries(program):
        lines += ["", f"## `{program.name} {entry.path}`", ""]
        lines += ["```", f"{program.name} {entry.path} {entry.usage}", "```", ""]
        lines += _spaced(entry.paragraphs)
        lines += ["", *_options(entry.options)]
        lines += _example(entry.path) if program.examples else []
    return "\n".join(lines) + "\n"


def _spaced(paragraphs: tuple[str, ...]) -> list[str]:
    return [line for paragraph in paragraphs for line in (*_markdown(paragraph), "")][:-1]


def _markdown(paragraph: str) -> tuple[str, ...]:
    if paragraph.startswith(VERBATIM):
        lines = paragraph.removeprefix(VERBATIM).splitlines()
        kind = "sh" if lines[0].split()[0] in PROGRAMS else "text"
        return (f"```{kind}", *lines, "```")
    return (paragraph,)


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
    text = _top() if path == "top" else file.read_text(encoding="utf-8").rstrip()
    return ["", f"{what} with `--json`:", "", "```json", text, "```"]


def _top() -> str:
    """What `top --once --json` makes of the daemon's answer, and of one 1.5 s before."""
    now = json.loads((EXAMPLES / "top.json").read_text(encoding="utf-8"))
    before = json.loads(json.dumps(now))
    before["at_boottime_ns"] -= 1_500_000_000
    for row in before["rows"]:
        row[now["columns"].index("cpu_ns")] -= 6_000_000
        row[now["columns"].index("tx_payload_bytes")] -= 420
    sample = compare(read_snapshot(before), read_snapshot(now))
    return json.dumps({"schema_version": 1, **as_object(sample, View())}, indent=2)


# ---------------------------------------------------------------------------------- manual page


def manual(program: Program) -> str:
    """The manual page, in the macros of man(7)."""
    name = program.name
    lines = [
        '.\\" SPDX-License-Identifier: Apache-2.0',
        f'.\\" {REGENERATE}',
        f'.TH {name.upper()} 1 "" "licagent" "User Commands"',
        ".SH NAME",
        f"{name} \\- {program.purpose}",
        ".SH SYNOPSIS",
        f".B {name}",
        "[\\fIoptions\\fR] \\fIcommand\\fR [\\fIarguments\\fR]",
        ".SH DESCRIPTION",
        *_roff_paragraphs(_paragraphs(program.cli.help or "")),
        ".SH OPTIONS",
        *_roff_list(_records(program.cli, program.root)),
        ".SH COMMANDS",
    ]
    for entry in entries(program):
        lines += [f".SS {name} {_roff(entry.path)} {_roff(entry.usage)}"]
        lines += [*_roff_paragraphs(entry.paragraphs), *_roff_list(entry.options)]
    statuses = tuple((str(status), meaning) for status, meaning in program.exits.items())
    lines += [".SH EXIT STATUS", *_roff_list(statuses)]
    lines += [".SH ENVIRONMENT", *_roff_list(program.variables)]
    lines += [".SH FILES", *_roff_list(program.files)]
    return "\n".join(lines) + "\n"


def _roff(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    # A line that starts with a dot or a quote would be a request.
    return re.sub(r"^([.'])", r"\\&\1", escaped, flags=re.MULTILINE)


def _roff_paragraphs(paragraphs: tuple[str, ...]) -> list[str]:
    return [line for paragraph in paragraphs for line in _roff_paragraph(paragraph)]


def _roff_paragraph(paragraph: str) -> tuple[str, ...]:
    if paragraph.startswith(VERBATIM):
        return (".PP", ".nf", *map(_roff, paragraph.removeprefix(VERBATIM).splitlines()), ".fi")
    return (".PP", _roff(paragraph))


def _roff_list(items: tuple[tuple[str, str], ...]) -> list[str]:
    return [
        line for name, text in items for line in (".TP", f".B {_roff(name)}", _roff(text) or "\\&")
    ]


# ---------------------------------------------------------------------------------- completions


def completions(program: Program) -> dict[str, str]:
    """The completion scripts by file name. What they offer is asked of the command itself."""
    name = program.name
    files = {"bash": f"{name}.bash", "zsh": f"_{name}", "fish": f"{name}.fish"}
    return {file: _completion(program, shell) for shell, file in files.items()}


def _completion(program: Program, shell: str) -> str:
    kind = get_completion_class(shell)
    if kind is None:
        raise LookupError(shell)
    variable = f"_{program.name.upper()}_COMPLETE"
    script = kind(program.cli, {}, program.name, variable).source().strip()
    comment = f"# SPDX-License-Identifier: Apache-2.0\n# {REGENERATE}"
    if script.startswith("#compdef"):  # zsh reads it on the first line only
        first, _, rest = script.partition("\n")
        return f"{first}\n{comment}\n{rest}\n"
    return f"{comment}\n{script}\n"
