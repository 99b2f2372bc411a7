# SPDX-License-Identifier: Apache-2.0
"""A real daemon on a cgroup subtree, a state folder and a bpffs of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from licagent.local.client import LocalClient
from licagent.local.errors import LocalError
from lictoken.claims import AUDIENCE, Entitlement, License, LicenseScope
from lictoken.keys import SigningKey
from lictoken.sign import sign_license
from lictoken.trust import TrustedKey, TrustStore

READY: Final = frozenset({"enforcing", "degraded"})
"""States of `status` in which the whole policy is in the kernel's tables."""


class AgentUnderTest:
    """`licagent daemon`, driven from outside: files, signals and the local socket."""

    def __init__(self, folder: Path, cgroup_root: Path, bpffs_dir: Path, loader: str = "auto"):
        self.folder = folder
        self.cgroup_root = cgroup_root
        self.bpffs_dir = bpffs_dir
        self.loader = loader
        self.started_ns = 0  # CLOCK_REALTIME of the last start
        self._process: subprocess.Popen[bytes] | None = None
        self._key = SigningKey.create("bench")
        self._numbers = 0
        self._config = folder / "etc"
        for name in ("licenses", "policy.d"):
            (self._config / name).mkdir(parents=True)
        trust = TrustStore([TrustedKey.of(self._key.public_key, "bench")])
        (self._config / "trust.jwks").write_bytes(trust.to_bytes())
        settings = {
            "mode": "enforce",
            "config_dir": self._config,
            "state_dir": folder / "state",
            "runtime_dir": folder / "run",
            "bpffs_dir": bpffs_dir,
            "cgroup_root": cgroup_root,
            "loader": loader,
        }
        lines = [f"{key} = {json.dumps(str(value))}\n" for key, value in settings.items()]
        (folder / "agent.toml").write_text("".join(lines), encoding="utf-8")

    @property
    def pid(self) -> int:
        """The daemon's process id. RuntimeError if it does not run."""
        if self._process is None:
            raise RuntimeError("the agent was not started")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the daemon was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What the daemon wrote, the last 4,000 characters."""
        path = self.folder / "daemon.log"
        return path.read_text(encoding="utf-8", errors="replace")[-4000:] if path.exists() else ""

    def issue(self, jti: str, resources: list[str]) -> None:
        """Put a license of six hours for these resources into the licenses folder."""
        self._numbers += 1
        now_s = int(time.time())
        license = License(
            jti=jti,
            issuer="bench",
            subject="bench",
            audience=AUDIENCE,
            number=self._numbers,
            generation=1,
            issued_at_s=now_s,
            not_before_s=now_s - 60,
            expires_at_s=now_s + 6 * 3600,
            scope=LicenseScope(org="bench"),
            entitlements=tuple(
                Entitlement(name, actions=("connect", "bind")) for name in resources
            ),
        )
        path = self._config / "licenses" / f"{jti}.lic"
        path.write_text(sign_license(license, self._key), encoding="ascii")

    def policy(self, toml_text: str, name: str = "bench") -> None:
        """Put a policy file in place, for the next start."""
        (self._config / "policy.d" / f"{name}.toml").write_text(toml_text, encoding="utf-8")

    def start(self, timeout_s: float = 120.0) -> None:
        """Start the daemon and wait until it enforces. RuntimeError with its log if it does not."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LICAGENT_")}
        environment["LICAGENT_CONFIG"] = str(self.folder / "agent.toml")
        program = Path(sys.executable).with_name("licagent")
        with (self.folder / "daemon.log").open("ab") as log:
            self.started_ns = time.time_ns()
            self._process = subprocess.Popen(
                [str(program), "daemon"], env=environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + timeout_s
        while True:
            if self._process.poll() is not None:
                raise RuntimeError(f"the daemon ended with {self._process.returncode}:\n{self.log}")
            try:
                if self.status()["state"] in READY:
                    return
            except LocalError:
                pass
            if time.monotonic() > deadline:
                raise RuntimeError(f"the daemon is not ready after {timeout_s} s:\n{self.log}")
            time.sleep(0.05)

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """One method of the local API."""
        client = LocalClient(self.folder / "run" / "licagent.sock", timeout_s=120.0)
        return client.call(method, params)

    def status(self) -> dict[str, Any]:
        """The daemon's status."""
        return self.call("status")

    def revoke(self, jti: str) -> None:
        """Revoke a license; returns when the daemon says that it is done."""
        self.call("license.revoke", id=jti, reason="bench")

    def stop(self) -> None:
        """End the daemon (SIGTERM). What it pinned stays; `Places.drop_bpffs` removes that."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None
