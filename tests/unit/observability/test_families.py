# SPDX-License-Identifier: Apache-2.0
"""Metrics as values: names, bounds, sums; and as the text that Prometheus reads."""

from __future__ import annotations

import re

import pytest

from licagent.daemon.metrics.families import FAMILIES, SERIES_MAX
from licagent.observability.exposition import exposition
from licagent.observability.families import OTHER, Admitted, Family, Readings, table

FEW = table(
    (
        Family("licagent_made_total", "counter", "Made.", ("license",), "2 licenses"),
        Family("licagent_end_timestamp_seconds", "gauge", "End.", ("license",), "2 licenses"),
        Family("licagent_up", "gauge", "Up."),
    )
)


@pytest.mark.parametrize(
    ("name", "kind", "labels", "bound"),
    [
        ("licagent_made", "counter", (), ""),
        ("licagent_made_total", "gauge", (), ""),
        ("licagent-made", "gauge", (), ""),
        ("licagent_up", "gauge", ("license",), ""),
        ("licagent_up", "gauge", (), "2"),
    ],
)
def test_a_metric_that_breaks_the_conventions_is_refused(
    name: str, kind: str, labels: tuple[str, ...], bound: str
) -> None:
    with pytest.raises(ValueError, match=name):
        Family(name, kind, "Words.", labels, bound)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two metrics"):
        table((FEW["licagent_up"], FEW["licagent_up"]))


def test_every_metric_of_the_agent_has_base_units_and_no_label_without_end() -> None:
    units = re.compile(r"(milli|micro|nano|kilo|mega|minutes|hours|days|percent|_ms|_ns)")
    for name, family in FAMILIES.items():
        assert name.startswith("licagent_")
        assert not units.search(name), name
        assert not {"pid", "address", "executable", "user"} & set(family.labels), name
        assert "timestamp" not in name or name.endswith("_timestamp_seconds"), name


def test_who_was_let_in_keeps_his_series() -> None:
    admitted = Admitted(2, [("old",)])
    assert admitted.of("a") == ("a",)
    assert admitted.of("b") == (OTHER,)
    assert admitted.of("a") == ("a",)
    assert admitted.of("old") == ("old",)
    pairs = Admitted(0)
    assert pairs.of("a", "b") == (OTHER, OTHER)
    assert SERIES_MAX == 200  # what the reference page and the alert rules were written for


def test_series_add_up_and_a_wrong_one_is_a_mistake() -> None:
    readings = Readings(FEW)
    readings.put("licagent_made_total", 2, "other")
    readings.put("licagent_made_total", 3, "other")
    readings.lowest("licagent_end_timestamp_seconds", 7, "other")
    readings.lowest("licagent_end_timestamp_seconds", 5, "other")
    readings.lowest("licagent_end_timestamp_seconds", 6, "other")
    assert readings.of("licagent_made_total") == {("other",): 5}
    assert readings.of("licagent_end_timestamp_seconds") == {("other",): 5}
    with pytest.raises(KeyError):
        readings.put("licagent_new_total", 1)
    with pytest.raises(ValueError, match="labels"):
        readings.put("licagent_made_total", 1)


def test_the_text_is_the_librarys_in_both_formats() -> None:
    readings = Readings(FEW)
    readings.put("licagent_made_total", 2, 'a "b"\\\n')
    readings.put("licagent_up", True)
    text, content_type = exposition(readings, with_process=False)
    assert content_type.startswith("text/plain; version=0.0.4")
    assert b'licagent_made_total{license="a \\"b\\"\\\\\\n"} 2.0\n' in text
    assert b"licagent_up 1.0\n" in text
    assert b"licagent_end" not in text, "what has no value is absent, not zero"
    asked = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.1"
    text, content_type = exposition(readings, asked)
    assert content_type.startswith("application/openmetrics-text")
    assert b"process_start_time_seconds" in text
    assert text.endswith(b"# EOF\n")
    wrong = "application/openmetrics-text;version=nonsense"
    assert exposition(readings, wrong)[1].startswith("text/plain")
