# SPDX-License-Identifier: Apache-2.0
"""`licplane price`, `licplane trigger` and `licplane budget`: what bills and alerts go by."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from licplane.cli.changes import change_options, show_change
from licplane.cli.framework import json_option, print_json, wants_json
from licplane.cli.money import changing_money, reading_money
from licplane.cli.output import show_fields, show_table
from licplane.cli.place import place_options
from licplane.cli.yaml_text import yaml_documents
from licplane.errors import ExitCode, PlaneError
from licplane.service.requests import Change, Document

_MOST_BYTES: Final = 4 * 2**20
_KINDS: Final = ("plan", "trigger", "budget")


def read_billing(file: Path) -> list[Document]:
    """The plans, triggers and budgets in a file (TOML, YAML or JSON), each a list at the top."""
    if str(file) == "-":
        data = sys.stdin.buffer.read(_MOST_BYTES + 1)
    elif not file.exists():
        raise PlaneError(ExitCode.NOT_FOUND, f"There is no file {file}", "Check the path")
    else:
        with file.open("rb") as source:
            data = source.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise _refused(f"{file} has more than 4 MiB", "Split it")
    try:
        text = data.decode()
        roots = [tomllib.loads(text)] if file.suffix == ".toml" else yaml_documents(str(file), text)
        found = [one for root in roots for one in _documents(file, root)]
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise _refused(
            f"{file} cannot be read: {error}", "Save it as TOML, YAML or JSON"
        ) from error
    if not found:
        raise _refused(f"{file} declares nothing", "Write [[plan]], [[trigger]] or [[budget]]")
    return found


def _documents(file: Path, root: object) -> Iterator[Document]:
    if root is None:
        return
    if not isinstance(root, dict):
        raise _refused(f"{file}: the top is no table", "Write [[plan]], [[trigger]], [[budget]]")
    for kind, items in root.items():
        if kind not in _KINDS or not isinstance(items, list):
            raise _refused(
                f"{file}: {str(kind)[:40]!r} is none of plan, trigger and budget, each a list",
                "Write [[plan]], [[trigger]] or [[budget]]",
            )
        for at, item in enumerate(items):
            name = item.get("name") if isinstance(item, dict) else None
            if not isinstance(name, str) or not name:
                raise _refused(f"{file}: {kind}[{at}] has no name", 'Add name = "..."')
            try:
                text = json.dumps(item, ensure_ascii=False, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise _refused(
                    f"{file}: {kind} {name} has a value that is no text, number or list",
                    "Write numbers of money and units in quotes",
                ) from error
            yield Document(kind, name, text)


def _group(word: str, kind: str, text: str) -> click.Group:
    @click.group(word, help=text)
    def group() -> None:
        """Replaced by `text`."""

    @group.command(
        "apply", help=f"Put what FILE declares in force: {kind}s, and what else is in it."
    )
    @click.argument("file", type=click.Path(allow_dash=True, path_type=Path))
    @change_options
    @json_option
    def apply(change: Change, passphrase_file: Path | None, file: Path) -> None:
        documents = read_billing(file)
        with changing_money(passphrase_file) as backend:
            try:
                result = backend.apply_billing(change, documents)
            except PlaneError as error:
                if error.code is not ExitCode.USAGE:
                    raise
                raise PlaneError(ExitCode.REFUSED, error.message, error.hint) from error
        show_change(result, f"Applied {len(documents)} documents.")

    @group.command("list", help=f"List the {kind}s.")
    @place_options
    @json_option
    def list_() -> None:
        with reading_money() as backend:
            found = backend.billing_documents(kind)
        if wants_json():
            print_json({f"{kind}s": [_json(one) for one in found]})
            return
        show_table(
            ("NAME", "WHAT", ">VERSION"),
            [(one.name, _summary(kind, json.loads(one.json)), one.revision) for one in found],
            empty=f"There are no {kind}s. `licplane {word} apply FILE` puts some in force.",
        )

    @group.command("show", help=f"Show the {kind} NAME.")
    @click.argument("name", metavar="NAME")
    @place_options
    @json_option
    def show(name: str) -> None:
        with reading_money() as backend:
            found = [one for one in backend.billing_documents(kind) if one.name == name]
        if not found:
            raise PlaneError(
                ExitCode.NOT_FOUND, f"There is no {kind} {name}", f"`licplane {word} list`"
            )
        if wants_json():
            print_json({kind: _json(found[0])})
            return
        document: dict[str, Any] = json.loads(found[0].json)
        pairs = [(key, _value(value)) for key, value in document.items()]
        show_fields([*pairs, ("version", found[0].revision), ("etag", found[0].etag)])

    @group.command("remove", help=f"Take the {kind} NAME out of force; its versions are kept.")
    @click.argument("name", metavar="NAME")
    @change_options
    @json_option
    def remove(change: Change, passphrase_file: Path | None, name: str) -> None:
        with changing_money(passphrase_file) as backend:
            result = backend.apply_billing(change, [Document(kind, name, "")], delete=True)
        show_change(result, f"Removed {kind} {name}.")

    return group


def _json(one: Document) -> dict[str, object]:
    return {
        "name": one.name,
        "version": one.revision,
        "etag": one.etag,
        "document": json.loads(one.json),
    }


def _summary(kind: str, value: dict[str, Any]) -> str:
    if kind == "plan":
        items = ", ".join(str(one.get("name")) for one in value.get("item", []))
        return f"{value.get('currency')} per {value.get('period', 'month')}: {items}"
    if kind == "trigger":
        levels = ", ".join(map(str, value.get("thresholds", [])))
        return f"{'+'.join(value.get('meters', []))} at {levels} {value.get('unit', '')}".strip()
    unit = f"of plan {value['plan']}" if "plan" in value else value.get("unit", "")
    return f"{value.get('amount')} {unit}".strip()


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _refused(message: str, hint: str) -> PlaneError:
    return PlaneError(ExitCode.REFUSED, message, hint)


price = _group("price", "plan", "Show and change price plans: what usage costs.")
trigger = _group(
    "trigger", "trigger", "Show and change triggers: who is told when usage passes a threshold."
)
budget = _group("budget", "budget", "Show and change budgets, and where they will end.")


@trigger.command("deliveries")
@click.option(
    "--status",
    "state",
    type=click.Choice(["waiting", "delivered", "failed"]),
    help="Only those.",
)
@click.option("--name", default="", metavar="NAME", help="Of this trigger or budget.")
@place_options
@json_option
def deliveries(state: str | None, name: str) -> None:
    """Show what was told to whom, or is being tried, newest first."""
    with reading_money() as backend:
        found = backend.deliveries(state or "", name)
    if wants_json():
        print_json(found)
        return
    show_table(
        ("CREATED", "NAME", "SUBJECT", "TO", "STATE", ">TRIES", "PROBLEM"),
        [
            (
                one["created_at"],
                one["name"],
                one["event"].get("subject", ""),
                one["target"] or one["channel"],
                one["state"],
                one["attempts"],
                one["problem"] or "-",
            )
            for one in found["deliveries"]
        ],
        empty="Nothing was told yet.",
    )


@budget.command("status")
@click.argument("name", metavar="NAME", default="")
@click.option("--days", is_flag=True, help="What was left at the end of each day.")
@place_options
@json_option
def status(name: str, *, days: bool) -> None:
    """Show what is used of budgets, and the forecast with its interval."""
    with reading_money() as backend:
        found = backend.budgets(name)["budgets"]
    if wants_json():
        print_json({"budgets": found})
        return
    show_table(
        (
            "BUDGET",
            "PERIOD",
            ">AMOUNT",
            ">USED",
            ">%",
            ">FORECAST",
            "80 % INTERVAL",
            "USED UP",
            "IN",
        ),
        [
            (
                one["budget"],
                one["period"],
                one["amount"],
                one["used"],
                one["used_percent"],
                one["expected"],
                f"{one['low']} to {one['high']}" if one["low"] is not None else "(too few days)",
                one["exhausted_at"] or "-",
                one["unit"],
            )
            for one in found
        ],
        empty="There are no budgets. `licplane budget apply FILE` puts some in force.",
    )
    if days:
        for one in found:
            click.echo(f"\n{one['budget']}:")
            show_table(("DAY", ">LEFT"), [(line["day"], line["left"]) for line in one["burn_down"]])
