# SPDX-License-Identifier: Apache-2.0
"""A host whose control plane is the test itself: an agent in this process, and its catalog."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any, Final, Self

from tests.kernel.harness.agent import ISSUER, AgentUnderTest

from licagent.control.interface import Assignment, HostStatus
from licagent.daemon.agent import Agent
from licagent.domain.catalog import (
    TRUST_NAME,
    Delta,
    Kind,
    Manifest,
    ObjectChange,
    Refused,
    SignedBytes,
    ViewKey,
)
from licagent.domain.config_reader import read_config
from licagent.domain.lease import Lease, LeaseSet
from licagent.domain.replica import Replica
from lictoken.digest import DigestTree
from lictoken.trust import TrustedKey, TrustStore

_SEAL: Final = SignedBytes(b"", "", b"")
VIEW: Final = ViewKey()
LEASE_NS: Final = 600 * 1_000_000_000


class ManagedHost:
    """One agent in this process. `push` is what a control plane's delta does to it."""

    def __init__(self, settings: str = "") -> None:
        self.under_test = AgentUnderTest(settings=f'control = "off"\n{settings}')
        self.under_test.write_config()
        # Its control plane names the issuers' keys: no file needs to.
        (self.under_test.config / "trust.jwks").unlink()
        self.records: list[dict[str, Any]] = []
        self.agent = self._agent()
        self.replica = Replica(DigestTree)
        self.model: dict[tuple[Kind, str], bytes] = {}
        self.revision = 0

    def __enter__(self) -> Self:
        try:
            self.agent.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the agent and take everything away."""
        with contextlib.suppress(Exception):
            self.agent.close()
        self.under_test.close()

    def restart(self, lost: str = "") -> None:
        """End the agent and start another one on the same state.

        Its store is empty, for it was the test that delivered; `lost`: as if it were damaged.
        """
        self.agent.close()
        agent = self.agent = self._agent()
        if lost:
            agent.link.boot = lambda: agent.control.begin_without(lost)  # type: ignore[method-assign]
        agent.start()

    def _agent(self) -> Agent:
        path = self.under_test.config / "agent.toml"
        return Agent(read_config({}, path).config, notify=self.records.append)

    # --- documents

    def trust(self) -> tuple[Kind, str, bytes]:
        """The issuer's key."""
        store = TrustStore([TrustedKey.of(self.under_test.key.public_key, ISSUER)])
        return Kind.TRUST, TRUST_NAME, store.to_bytes()

    def license(self, jti: str, resources: list[str], **fields: Any) -> tuple[Kind, str, bytes]:
        """A license of the next generation."""
        return Kind.LICENSE, jti, self.under_test.token(jti, resources, **fields).encode()

    def statement(self, jti: str, action: str = "revoke") -> bytes:
        """A signed statement about a license."""
        return self.under_test.statement(jti, action).encode()

    # --- what a control plane does

    def push(
        self, *put: tuple[Kind, str, bytes], remove: tuple[tuple[Kind, str], ...] = ()
    ) -> None:
        """Deliver a change of the catalog. Raises Refused, with the model as it was."""
        model = dict(self.model)
        changes = []
        for kind, name, payload in put:
            model[kind, name] = payload
            changes.append(ObjectChange(kind, name, self.revision + 1, payload))
        for key in remove:
            del model[key]
            changes.append(ObjectChange(*key, self.revision + 1, None))
        tree = DigestTree()
        for (kind, name), payload in model.items():
            tree.put(kind, name, payload)
        manifest = Manifest(VIEW, self.revision + 1, tree.root(), len(model), _SEAL)
        reset = self.replica.manifest is None
        delta = Delta(self.replica.revision, self.revision + 1, reset, tuple(changes), manifest)
        view = self.replica.stage(delta)
        self.revision += 1
        try:
            self.agent.control.commit(self.agent.control.prepare(view))
        except Refused:
            self.replica.undo()
            raise
        self.replica.keep()
        self.model = model

    def lease(self, *jtis: str, lasts_ns: int = LEASE_NS) -> None:
        """Lease exactly these licenses."""
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        held = {jti: self.agent.licensing.held[jti].license for jti in jtis}
        leases = {jti: Lease(jti, each.number, each.generation) for jti, each in held.items()}
        self.agent.membership.set_leases(LeaseSet(leases, now_ns, now_ns + lasts_ns))

    def assign(self, status: HostStatus = HostStatus.ACTIVE, **labels: str) -> None:
        """Give the host these labels."""
        self.agent.membership.assign(Assignment("host", labels, 1, status, 0))

    def kernel_tables(self) -> dict[str, list[tuple[bytes, bytes]]]:
        """What the kernel holds of the generation in force.

        Without the generation, and without the numbers by which events name rules: they are
        names only.
        """
        writer = self.agent.kernel.tables
        generation = self.agent.kernel.control.generation
        found = {}
        for name, at, named in (
            ("networks4", 4, 0),
            ("networks6", 4, 0),
            ("ports", 4, 0),
            ("rules", 0, 4),
        ):
            found[name] = sorted(
                (key[:at] + key[at + 4 :], value[named:])
                for key, value in writer.held(name, generation)
            )
        return found


def resource(name: str, cidr: str, port: int, mode: str = "enforce") -> tuple[Kind, str, bytes]:
    """A network resource."""
    table = {
        "name": name,
        "kind": "network",
        "mode": mode,
        "destinations": [{"cidr": cidr, "ports": [str(port)]}],
    }
    return Kind.RESOURCE, name, _canonical(table)


def binding(name: str, license_: str, *selectors: str) -> tuple[Kind, str, bytes]:
    """A binding."""
    table = {"name": name, "license": license_, "selectors": list(selectors)}
    return Kind.BINDING, name, _canonical(table)


def _canonical(table: dict[str, Any]) -> bytes:
    return json.dumps(table, sort_keys=True, separators=(",", ":")).encode()


@contextlib.contextmanager
def managed_host(settings: str = "") -> Iterator[ManagedHost]:
    """A host, started; taken away at the end, also after a failure."""
    host = ManagedHost(settings)
    with host:
        yield host
