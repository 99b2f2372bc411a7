# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus for tests, on a port and in a folder of its own, with the project's rules."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.system.harness.controlplane import address

ROOT: Final = Path(__file__).parents[3]
RULES: Final = ROOT / "packaging" / "prometheus"
START_S: Final = 60.0
PROGRAMS: Final = ("prometheus", "promtool")
MISSING: Final = [name for name in PROGRAMS if shutil.which(name) is None]

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(url: str, accept: str = "") -> tuple[int, str]:
    """Status and text of a page, also of one that is no 200."""
    request = urllib.request.Request(url, headers={"Accept": accept} if accept else {})
    try:
        with _opener.open(request, timeout=20) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return int(error.code), error.read().decode()


class Prometheus:
    """Scrapes targets, by job, and runs the rules as often."""

    def __init__(self, jobs: Mapping[str, list[str]], *, every_s: int = 1) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="prometheus-test-"))
        self.address = address()
        self._jobs = jobs
        self._every = f"{every_s}s"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        config = {
            "global": {
                "scrape_interval": self._every,
                "scrape_timeout": self._every,
                "evaluation_interval": self._every,
            },
            "rule_files": [f"{RULES}/*.rules.yml"],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": targets}]}
                for job, targets in self._jobs.items()
            ],
        }
        file = self.folder / "prometheus.yml"
        file.write_text(json.dumps(config))  # which is YAML, too
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={file}",
                    f"--storage.tsdb.path={self.folder / 'data'}",
                    f"--web.listen-address={self.address}",
                    "--log.level=warn",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError):
                if get(f"http://{self.address}/-/ready")[0] == 200:
                    return self
            alive = self._process.poll() is None and time.monotonic() < end
            if not alive:
                words = (self.folder / "log").read_text(errors="replace")[-3000:]
                self.close()
                raise AssertionError(f"Prometheus does not start: {words}")
            time.sleep(0.05)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it and remove what it wrote."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- asking

    def api(self, path: str, **parameters: str) -> Any:
        """What the API answers; AssertionError with its words for an error."""
        query = urllib.parse.urlencode(parameters)
        status, text = get(f"http://{self.address}/api/v1/{path}?{query}")
        body = json.loads(text)
        assert status == 200, (path, parameters, body)
        return body["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Series and their values now."""
        found = self.api("query", query=expression)
        if found["resultType"] == "scalar":
            return [({}, float(found["result"][1]))]
        return [(row["metric"], float(row["value"][1])) for row in found["result"]]

    def alerts(self, name: str) -> set[str]:
        """In which states an alert is now: pending, firing."""
        return {row["state"] for row in self.api("alerts")["alerts"] if _is(row, name)}


def _is(row: dict[str, Any], name: str) -> bool:
    return bool(row["labels"]["alertname"] == name)


def promtool(*words: str, stdin: str = "") -> str:
    """What promtool finds wrong with a page or file; "" if nothing."""
    done = subprocess.run(
        ["promtool", *words], input=stdin, capture_output=True, text=True, check=False, timeout=60
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr
