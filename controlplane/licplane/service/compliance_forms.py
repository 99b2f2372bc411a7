# SPDX-License-Identifier: Apache-2.0
"""The compliance report as a table for spreadsheets, and as a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from licplane.service.usage.export import safe_cell
from licplane.store.money_schema import METERS


def report_csv(report: Mapping[str, Any]) -> str:
    """The report as one table: a section, who, what, and the quantity of each meter."""
    file = io.StringIO()
    columns = (
        "section",
        "license",
        "state",
        "resource",
        "unit",
        "user",
        "executable",
        "host",
        "what",
        "since",
        "until",
        "count",
        *METERS,
    )
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\r\n")
    writer.writeheader()

    def line(section: str, used: Sequence[Mapping[str, Any]] = (), **cells: object) -> None:
        row = {name: safe_cell(str(value)) for name, value in cells.items() if value is not None}
        writer.writerow(
            {"section": section, **row, **{one["meter"]: one["quantity"] for one in used}}
        )

    for one in report["licensed"]:
        line(
            "licensed",
            one["used"],
            license=one["license"],
            state=one["state"],
            resource=" ".join(one["resources"]),
            unit=" ".join(one["units"]),
            user=" ".join(one["users"]),
            since=one["first"],
            until=one["last"],
        )
    for one in report["without_license"]:
        line(
            "without license",
            one["used"],
            resource=one["resource"],
            unit=one["unit"],
            user=one["user"],
            executable=one["executable"],
            host=one["hostname"] or one["host_id"],
            since=one["since"],
            until=one["last"],
        )
    for one in report["shadow_uses"]:
        line(
            "without binding",
            resource=one["resource"],
            unit=one["selector"],
            user=one["user"],
            executable=one["executable"],
            since=one["since"],
            until=one["last"],
            count=one["uses"],
        )
    for one in report["drift"]:
        line(
            "drift",
            host=one["hostname"] or one["host_id"],
            what=one["what"],
            since=one["since"],
            until=one["until"],
        )
    for one in report["gaps"]:
        count = one["last_sequence"] - one["first_sequence"] + 1
        line("lost", host=one["hostname"] or one["host_id"], what=one["reason"], count=count)
    for one in report["alarms"]:
        line(
            "alarm",
            host=one["hostname"] or one["host_id"],
            what=f"{one['code']}: {one['detail']}",
            since=one["since"],
            until=one["last"],
            count=one["count"],
        )
    return file.getvalue()


def report_html(report: Mapping[str, Any]) -> str:
    """The report as a page of its own, to read and to print."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("licplane.service", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("compliance.html").render(report=report)
