# SPDX-License-Identifier: Apache-2.0
"""A real agent for tests: the daemon as a child process, on a cgroup subtree of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from licagent.host.cgroups import CgroupTree, find_mount
from licagent.kernel.bpffs import PinFolder
from licagent.local.client import LocalClient
from licagent.local.errors import LocalError
from lictoken.claims import AUDIENCE, Entitlement, License, LicenseScope
from lictoken.keys import SigningKey
from lictoken.revocation import Revocation, RevocationAction, sign_revocation
from lictoken.sign import sign_license
from lictoken.trust import TrustedKey, TrustStore

ISSUER: Final = "test-issuer"
_SERIAL: Final = itertools.count(1)
_START_TIMEOUT_S: Final = 180.0
_COVERED_TIMEOUT_S: Final = 60.0
_UNCOVERED: Final = "interfaces are still being covered"
ANSWER_S: Final = 20.0
"""A command waits 2 s; here other tests and emulated machines may want the processors, too."""


def _ours(key: str) -> bool:
    return key.startswith("LICAGENT_TEST_")


class AgentUnderTest:
    """One installation: its folders, its issuer, its daemon."""

    def __init__(
        self,
        *,
        mode: str = "enforce",
        loader: str | None = None,
        settings: str = "",
        cgroup: Path | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="licagent-test-"))
        name = f"lictest-{os.getpid()}-{next(_SERIAL)}"
        self.cgroup = cgroup or find_mount() / name
        self.cgroup.mkdir(exist_ok=True)
        self.bpffs = self.folder / "bpf"
        self.config = self.folder / "etc"
        self.key = SigningKey.create(ISSUER)
        self.loader = loader or os.environ.get("LICAGENT_TEST_LOADER", "prebuilt")
        for part in ("licenses", "policy.d"):
            (self.config / part).mkdir(parents=True)
        trust = TrustStore([TrustedKey.of(self.key.public_key, ISSUER)])
        (self.config / "trust.jwks").write_bytes(trust.to_bytes())
        self.settings = settings
        self.mode = mode
        self.process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self._generations: dict[str, int] = {}
        self._numbered: dict[str, int] = {}

    # --- life

    @property
    def environment(self) -> dict[str, str]:
        """The environment of commands that ask this agent."""
        # LICAGENT_* are settings to the agent, and it refuses those it does not know.
        kept = {key: value for key, value in os.environ.items() if not _ours(key)}
        return {**kept, "LICAGENT_CONFIG": str(self.config / "agent.toml")}

    def write_config(self) -> None:
        """Write agent.toml."""
        text = (
            f'mode = "{self.mode}"\nconfig_dir = "{self.config}"\n'
            f'state_dir = "{self.folder / "state"}"\nruntime_dir = "{self.folder / "run"}"\n'
            f'bpffs_dir = "{self.bpffs}"\ncgroup_root = "{self.cgroup}"\n'
            f'loader = "{self.loader}"\n{self.settings}\n'
        )
        (self.config / "agent.toml").write_text(text, encoding="utf-8")

    def start(self, *, wait: bool = True) -> None:
        """Start the daemon, and wait until it answers."""
        self.write_config()
        self.spawn()
        if wait:
            self.wait_ready()

    def spawn(self, module: str = "licagent.daemon.main", **more: str) -> subprocess.Popen[bytes]:
        """Start the daemon with agent.toml as it stands, and `more` in its environment."""
        with (self.folder / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module],
                env={**self.environment, **more},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        return self.process

    def wait_ready(self) -> None:
        """Return when the daemon answers. AssertionError with its log if it ended."""
        end = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < end:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"the daemon ended: {self.log()}")
            with contextlib.suppress(LocalError, OSError):
                self.call("config.check")
                return
            time.sleep(0.02)
        raise AssertionError(f"the daemon does not answer: {self.log()}")

    def answers(self) -> bool:
        """Whether the daemon answers now."""
        try:
            self.call("config.check")
        except (LocalError, OSError):
            return False
        return True

    def log(self) -> str:
        """The end of the daemon's log."""
        return (self.folder / "daemon.log").read_text(errors="replace")[-4000:]

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self.process = None
        return status

    def close(self) -> None:
        """Stop everything and leave nothing behind. Safe after any failure."""
        try:
            self.stop()
        except (subprocess.TimeoutExpired, OSError):
            self.kill()
        PinFolder(self.bpffs).remove()
        if self.cgroup.exists():
            with contextlib.suppress(OSError):
                (self.cgroup / "cgroup.kill").write_text("1")
            for _ in range(100):
                try:
                    for folder in sorted(
                        (path for path in self.cgroup.rglob("*") if path.is_dir()), reverse=True
                    ):
                        folder.rmdir()
                    self.cgroup.rmdir()
                    break
                except OSError:
                    time.sleep(0.02)
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- asking

    def _client(self) -> LocalClient:
        return LocalClient(self.folder / "run" / "licagent.sock", ANSWER_S)

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """Ask the daemon."""
        return self._client().call(method, params)

    def events(self, **params: object) -> list[dict[str, Any]]:
        """Events so far."""
        return list(self._client().stream("events", {"limit": 10_000, **params}))  # type: ignore[arg-type]

    def last_event(self) -> int:
        """The newest event's sequence number; 0 where there is none yet."""
        return max((event["seq"] for event in self.events(limit=1)), default=0)

    def counters(self) -> list[dict[str, Any]]:
        """Exact counters."""
        return list(self.call("status")["counters"])

    def count(self, **wanted: object) -> int:
        """Sum of the counters with these values."""
        return sum(
            int(row["count"])
            for row in self.counters()
            if all(row[key] == value for key, value in wanted.items())
        )

    def coverage(self) -> list[dict[str, Any]]:
        """The coverage table, once the first round over the host's interfaces has ended."""
        end = time.monotonic() + _COVERED_TIMEOUT_S
        while True:
            rows = list(self.call("doctor")["coverage"])
            if not any(_UNCOVERED in str(row["detail"]) for row in rows):
                return rows
            assert time.monotonic() < end, rows
            time.sleep(0.05)

    # --- licensing

    def token(
        self,
        jti: str,
        resources: list[str],
        *,
        expires_in_s: float = 3600,
        starts_in_s: float = -60,
        actions: tuple[str, ...] = ("connect", "bind"),
        **fields: Any,
    ) -> str:
        """The text of a fresh license."""
        now = time.time()
        number = self._numbered.setdefault(jti, next(self._numbers))
        generation = fields.pop("generation", self._generations.get(jti, 0) + 1)
        self._generations[jti] = generation
        found = License(
            jti=jti,
            issuer=ISSUER,
            subject="tests",
            audience=AUDIENCE,
            number=fields.pop("number", number),
            generation=generation,
            issued_at_s=int(now) - 60,
            not_before_s=int(now + starts_in_s),
            expires_at_s=int(now + expires_in_s + 0.999),
            scope=fields.pop("scope", LicenseScope(org="tests")),
            entitlements=fields.pop(
                "entitlements", tuple(Entitlement(name, actions) for name in resources)
            ),
            **fields,
        )
        return sign_license(found, self.key, foreign_conditions=True)

    def issue(self, jti: str, resources: list[str], **fields: Any) -> dict[str, Any]:
        """Issue a license and add it; with no daemon, only its file."""
        text = self.token(jti, resources, **fields)
        if self.process is None:
            (self.config / "licenses" / f"{jti}.lic").write_text(text)
            return {}
        return self.call("license.add", text=text)

    def revoke(self, jti: str) -> dict[str, Any]:
        """Revoke on this host."""
        return self.call("license.revoke", id=jti, reason="test")

    def statement(self, jti: str, action: str, generation: int | None = None) -> str:
        """A signed statement about a license."""
        return sign_revocation(
            Revocation(
                jti=f"statement-{next(self._numbers)}",
                issuer=ISSUER,
                audience=AUDIENCE,
                issued_at_s=int(time.time()) - 1,
                license=jti,
                action=RevocationAction(action),
                generation=generation or self._generations.get(jti, 1),
                reason="test",
            ),
            self.key,
        )

    def policy(self, text: str) -> dict[str, Any]:
        """Put a policy in force."""
        if self.process is None:
            (self.config / "policy.d" / "test.toml").write_text(text)
            return {}
        return self.call("policy.apply", files=[{"name": "test.toml", "text": text}])

    def tree(self) -> CgroupTree:
        """The enforced subtree."""
        return CgroupTree.open(self.cgroup)
