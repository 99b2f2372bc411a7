# SPDX-License-Identifier: Apache-2.0
"""Enrolment by files, for hosts with no network: everything a host needs in one bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from licplane.errors import ExitCode, PlaneError
from licplane.issuer.authority import Issued
from licplane.issuer.keyring import Keyring
from licplane.issuer.peerkeys import key_fingerprint, read_csr
from licplane.service import payloads
from licplane.service.access import Permission, require
from licplane.service.answers import OfflineAdmission, ViewState
from licplane.service.core import Core
from licplane.service.enrolment import certificate_row
from licplane.service.machines import checked, new_host
from licplane.service.replica import Replica
from licplane.service.requests import Change, Machine
from licplane.service.streams import Streams, assignment
from licplane.service.texts import check_labels, refuse
from licplane.service.values import SERVED, Actor, HostStatus
from licplane.service.work import Work, canonical, run_once
from licplane.store.host_model import Host, HostCounters
from lictoken import base64url
from lictoken.sealed import Seal, SealPurpose

TTL_MAX_S: Final = 366 * 86_400


class Offline:
    """Admitting hosts by files."""

    def __init__(self, core: Core, replica: Replica, streams: Streams) -> None:
        self._core = core
        self._replica = replica
        self._streams = streams

    def admit(
        self,
        actor: Actor,
        change: Change,
        *,
        csr: bytes,
        machine: Machine,
        labels: Mapping[str, str],
        certificate_ttl_s: int,
        lease_ttl_s: int,
        nonce: bytes,
    ) -> OfflineAdmission:
        """See Plane.admit_offline."""
        require(actor, Permission.CHANGE_HOSTS)
        key = read_csr(csr)
        fingerprint = key_fingerprint(key)
        wanted = check_labels(labels)
        told = checked(machine)
        for what, ttl_s in (("certificate", certificate_ttl_s), ("lease", lease_ttl_s)):
            if not 60 <= ttl_s <= TTL_MAX_S:
                raise refuse(f"The {what} would last {ttl_s} s", f"Choose 60 s to {TTL_MAX_S} s")
        if len(nonce) > 64:
            raise refuse("The request's nonce is too long", "Make it with `licagent enroll`")

        self._core.check_looked_at()

        def body(work: Work) -> tuple[Host, Issued, bytes]:
            host = _admitted(work, told, fingerprint, wanted)
            issued = self._core.authority().issue_host(
                host.host_id, key, certificate_ttl_s, work.now_ms
            )
            work.transaction.add_certificate(certificate_row(issued, host.host_id))
            known = work.transaction.counters(host.host_id)
            counter = self._core.counters().following(host.host_id, known)
            work.transaction.clear_counters(host.host_id)
            work.transaction.swap_counters(None, HostCounters(host.host_id, counter))
            return host, issued, counter

        host, issued, counter = run_once(self._core, actor, change, body)
        if change.dry_run:
            return OfflineAdmission("", b"", 0)
        check = self._replica.refresh()
        if not check.intact:
            raise PlaneError(
                ExitCode.INTERNAL,
                f"The catalog was altered outside licplane: {check.problem}",
                "Restore the database from a backup",
            )
        state = self._replica.snapshot(host.view)
        sealer = self._core.current_sealer()
        now_ms = self._core.now_ms()
        manifest = sealer.seal(
            SealPurpose.SNAPSHOT,
            payloads.manifest(host.view, state.revision, state.digest, state.count, now_ms),
        )
        # For any boot: a host with no network cannot ask again after each.
        lease = self._streams.lease_for(host, fingerprint, "", nonce, lease_ttl_s)
        with self._core.store.reading() as reader:
            trust = Keyring(reader).trust().to_bytes()
        bundle = {
            "schema_version": 1,
            "host_id": host.host_id,
            "certificate_chain": [base64url.encode(issued.der)],
            "ca_certificates": [
                base64url.encode(one) for one in self._core.authorities().certificates
            ],
            "trust": base64url.encode(trust),
            "assignment": _sealed(assignment(self._core, host)),
            "counter": base64url.encode(counter),
            "manifest": _sealed(manifest),
            "lease": _sealed(lease),
            "objects": _objects(state),
            "control_address": self._core.settings.control_address,
            "public_address": self._core.settings.public_address,
        }
        text = canonical(bundle).encode() + b"\n"
        return OfflineAdmission(host.host_id, text, issued.not_after_unix_ms)


def _admitted(work: Work, machine: Machine, fingerprint: bytes, labels: dict[str, str]) -> Host:
    """The host of this key, made if there is none; its labels are what is asked for now."""
    known = work.transaction.host_of_key(fingerprint)
    on_machine = work.transaction.hosts_on_machine(machine.machine_id)
    if any(one.status is HostStatus.BANNED for one in on_machine) or (
        known is not None and known.status not in SERVED
    ):
        raise PlaneError(
            ExitCode.REFUSED,
            "The host is evicted, banned or cloned",
            "Reactivate it first: `licplane host activate HOST`",
        )
    if known is not None and dict(known.labels) == labels:
        host = known
    elif known is not None:
        host = work.transaction.put_host(
            Host(
                known.host_id, machine.hostname or known.hostname, known.status, labels,
                known.machine_id, known.key_fingerprint, known.assignment_sequence + 1,
                known.enrolled_at_unix_ms, known.join_token, machine.agent_version,
                machine.kernel_release,
            )
        )  # fmt: skip
    else:
        host = work.transaction.put_host(new_host(machine, fingerprint, labels, work.now_ms, ""))
    work.audit(
        "host.admit",
        host.host_id,
        {"hostname": host.hostname, "labels": labels, "key": fingerprint.hex()},
    )
    return host


def _sealed(seal: Seal) -> dict[str, str]:
    return {
        "payload": base64url.encode(seal.payload),
        "kid": seal.kid,
        "signature": base64url.encode(seal.signature),
    }


def _objects(state: ViewState) -> list[dict[str, object]]:
    return [
        {
            "kind": one.kind.value,
            "name": one.name,
            "revision": one.revision,
            "payload": base64url.encode(one.payload),
        }
        for one in state.objects
    ]
