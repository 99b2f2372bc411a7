# SPDX-License-Identifier: Apache-2.0
"""Readings as Prometheus and OpenMetrics text, written by the official client library.

The library is loaded by the first scrape: an agent that serves no metrics does without its 5 MB.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from licagent.observability.families import Readings

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


class _Collector:
    """What the library's encoders ask for: something with `collect`."""

    def __init__(self, readings: Readings, *, with_process: bool) -> None:
        self._readings = readings
        self._with_process = with_process

    def collect(self) -> Iterator[Metric]:
        """The metrics, in the order of their table."""
        from prometheus_client import CollectorRegistry, ProcessCollector
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for family, series in self._readings:
            of_kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            # The library takes a counter's name without _total, and says it again itself.
            found = of_kind(family.name.removesuffix("_total"), family.help, labels=family.labels)
            for labels, value in series.items():
                found.add_metric(labels, value)
            yield found
        if self._with_process:
            # CPU, memory, descriptors and start of this process, named as everybody's.
            yield from ProcessCollector(registry=CollectorRegistry()).collect()


def exposition(
    readings: Readings, accept: str = "", *, with_process: bool = True
) -> tuple[bytes, str]:
    """The text, and its Content-Type: OpenMetrics where `accept` asks for it, else Prometheus'.

    `with_process`: with `process_*` of the calling process.
    """
    from prometheus_client.exposition import (
        CONTENT_TYPE_PLAIN_0_0_4,
        choose_encoder,
        generate_latest,
    )

    try:
        encoder, content_type = choose_encoder(accept)
    except (ValueError, TypeError):  # a version that is no number: as if none was asked for
        encoder, content_type = generate_latest, CONTENT_TYPE_PLAIN_0_0_4
    return encoder(_Collector(readings, with_process=with_process)), content_type
