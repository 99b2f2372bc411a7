# SPDX-License-Identifier: Apache-2.0
"""How a host gets its identity, and keeps it."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from typing import Final

from licplane.errors import Conflict, ExitCode, PlaneError, Unauthenticated
from licplane.issuer.authority import Issued
from licplane.issuer.keyring import Keyring
from licplane.issuer.peerkeys import key_fingerprint, read_csr, signed_by
from licplane.service.answers import Enrolled
from licplane.service.core import Core
from licplane.service.counters import holds
from licplane.service.machines import checked, new_host
from licplane.service.requests import EnrollRequest, Machine, ReenrollRequest
from licplane.service.streams import assignment, host_of, mark_cloned
from licplane.service.texts import TOKEN_ID, host_id_of
from licplane.service.values import SERVED, Actor, HostStatus, Identity, Role
from licplane.service.work import Work, perform_once
from licplane.store.host_model import Host, HostCounters
from licplane.store.identity_model import Certificate, JoinToken
from licplane.store.reader import Reader
from licplane.store.recorder import Recorder

CLOCK_TOLERANCE_MS: Final = 5 * 60_000
MENDING_MS: Final = 3_600_000
"""So long after a host came in, an old counter at re-enrolment is refused and proves nothing:
a clone that was told to enrol anew goes on trying until somebody does it."""
_SECRET_MAX: Final = 128
_NEW_KEY: Final = "Make a key of its own with `licagent enroll --new JOIN`"


class Enrolment:
    """Enroll, Renew and Reenroll."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def enroll(self, request: EnrollRequest) -> Enrolled:
        """See Plane.enroll."""
        key = read_csr(request.csr)
        fingerprint = key_fingerprint(key)
        machine = checked(request.machine)
        with self._core.store.reading() as reader:
            token = self._token(reader, request)
            known = reader.host_of_key(fingerprint)
        if known is not None and known.status in SERVED:
            return self._again(known, token, machine, request.csr)

        def body(work: Work) -> tuple[Host, Issued]:
            host = self._admit(work, token, fingerprint, machine)
            issued = self._core.authority().issue_host(
                host.host_id, key, self._core.settings.host_certificate_ttl_s, work.now_ms
            )
            work.transaction.add_certificate(certificate_row(issued, host.host_id))
            known = work.transaction.counters(host.host_id)
            counter = self._core.counters().following(host.host_id, known)
            work.transaction.clear_counters(host.host_id)
            work.transaction.swap_counters(None, HostCounters(host.host_id, counter))
            return host, issued

        actor = Actor(f"join-token:{token.token_id}", Role.HOST)
        host, issued = perform_once(self._core, actor, body)
        with self._core.store.reading() as reader:
            counters = reader.counters(host.host_id)
        counter = counters.current if counters else b""
        return self._answer(host, issued, counter, changed=True)

    def renew(self, identity: Identity, csr: bytes, counter: bytes) -> Enrolled:
        """See Plane.renew."""
        if identity.role is not Role.HOST or identity.status not in SERVED:
            raise _out(identity.status)
        with self._core.store.reading() as reader:
            host = host_of(reader, identity.host_id)
            known = reader.counters(host.host_id)
        if host.status not in SERVED:
            raise _out(host.status)
        if known is not None and not self._shows(host.host_id, known, counter):
            raise Conflict(
                "The counter is not the newest one this host was given",
                "Open a sync stream: it tells whether another machine has this identity",
            )
        return self._certify(host, csr, _newest(known, counter))

    def reenroll(self, request: ReenrollRequest) -> Enrolled:
        """See Plane.reenroll."""
        refusal = Unauthenticated(
            "The host cannot be enrolled again",
            "Enrol it with a join token: `licagent enroll JOIN`",
        )
        host_id = host_id_of(request.host_id)
        if host_id is None or len(request.signature) > 128:
            raise refusal
        key = read_csr(request.csr)
        now_ms = self._core.now_ms()
        if abs(now_ms - request.signed_at_unix_ms) > CLOCK_TOLERANCE_MS:
            raise Unauthenticated(
                "The request was signed more than 5 minutes away from the server's clock",
                "Set this host's clock (NTP), and try again",
            )
        signed = b"\0".join(
            (
                b"licagent-reenroll-v1",
                request.host_id.encode(),
                str(request.signed_at_unix_ms).encode(),
                request.csr,
            )
        )
        if not signed_by(key, request.signature, signed):
            raise refusal
        with self._core.store.recording() as recorder:
            host = recorder.host(host_id)
            if host is None or host.key_fingerprint != key_fingerprint(key):
                raise refusal
            if host.status not in SERVED:
                raise _out(host.status)
            until_ms = request.signed_at_unix_ms + 2 * CLOCK_TOLERANCE_MS
            if not recorder.spend(hashlib.sha256(signed).digest(), until_ms):
                raise refusal
            known = recorder.counters(host_id)
        if known is not None and not self._shows(host_id, known, request.counter):
            if now_ms - host.enrolled_at_unix_ms < MENDING_MS:
                raise refusal  # the other one of two clones, which is not mended yet
            mark_cloned(self._core, host_id, "an old counter was shown at re-enrolment")
            raise _out(HostStatus.CLONED)
        return self._certify(host, request.csr, _newest(known, request.counter))

    def _shows(self, host_id: str, known: HostCounters, counter: bytes) -> bool:
        """Whether the counter is the host's newest, or one we made and the database forgot."""
        ahead = self._core.counters().is_ahead
        return holds(known, counter) or ahead(host_id, counter, known)

    def _token(self, reader: Reader, request: EnrollRequest) -> JoinToken:
        """The join token that the request proves to have; used up and expired ones too."""
        refusal = Unauthenticated(
            "The join token is not valid",
            "Ask for a new one: `licplane token create`",
        )
        if not TOKEN_ID.fullmatch(request.token_id) or len(request.token_secret) > _SECRET_MAX:
            raise refusal
        token = reader.join_token(request.token_id)
        given = hashlib.sha256(request.token_secret.encode("utf-8", "replace")).digest()
        if token is None or not hmac.compare_digest(token.secret_hash, given):
            raise refusal
        return token

    def _again(self, host: Host, token: JoinToken, machine: Machine, csr: bytes) -> Enrolled:
        """The same key once more: the same host, and nothing changes but its certificate."""
        if host.join_token != token.token_id:
            self._check_usable(token)
        if machine.machine_id != host.machine_id and machine.machine_id and host.machine_id:
            raise PlaneError(
                ExitCode.REFUSED, "This key belongs to a host on another machine", _NEW_KEY
            )
        with self._core.store.recording() as recorder:
            counter = self._pending(recorder, host.host_id)
        return self._certify(host, csr, counter)

    def _pending(self, recorder: Recorder, host_id: str) -> bytes:
        """A counter for a host that may have lost the last answer: sent again until it is kept."""
        known = recorder.counters(host_id)
        if known is not None and known.pending:
            return known.pending
        counter = self._core.counters().following(host_id, known)
        current = known.current if known is not None else counter
        if not recorder.swap_counters(known, HostCounters(host_id, current, counter)):
            raise PlaneError(
                ExitCode.BUSY, "The host is connecting at this moment", "Try again in a second"
            )
        return counter

    def _admit(self, work: Work, token: JoinToken, fingerprint: bytes, machine: Machine) -> Host:
        """A new host, or one that was out and comes back with a new token."""
        known = work.transaction.host_of_key(fingerprint)
        machines = work.transaction.hosts_on_machine(machine.machine_id)
        on_machine = [one for one in (known, *machines) if one is not None]
        if any(one.status is HostStatus.BANNED for one in on_machine):
            raise _out(HostStatus.BANNED)
        if known is not None and known.status in SERVED:
            raise PlaneError(
                ExitCode.BUSY, "The host is being enrolled now", "Try again in a second"
            )
        if known is not None and known.join_token == token.token_id:
            raise PlaneError(
                ExitCode.REFUSED,
                f"The host is {known.status.word}, and this join token let it in before",
                "Ask for a new join token: `licplane token create`",
            )
        self._check_usable(token)
        self._core.check_looked_at()
        if not work.transaction.use_join_token(token.token_id, work.now_ms):
            raise _used_up()
        if known is None:
            host = new_host(machine, fingerprint, dict(token.labels), work.now_ms, token.token_id)
        else:
            host = replace(
                known,
                status=HostStatus.ACTIVE,
                labels=dict(token.labels) or dict(known.labels),
                hostname=machine.hostname,
                machine_id=machine.machine_id or known.machine_id,
                assignment_sequence=known.assignment_sequence + 1,
                enrolled_at_unix_ms=work.now_ms,
                join_token=token.token_id,
                agent_version=machine.agent_version,
                kernel_release=machine.kernel_release,
            )
            work.transaction.revoke_certificates(host.host_id, work.now_ms)
        host = work.transaction.put_host(host)
        work.audit(
            "host.enroll" if known is None else "host.return",
            host.host_id,
            {
                "hostname": host.hostname,
                "machine_id": host.machine_id,
                "labels": dict(host.labels),
                "join_token": token.token_id,
                "key": fingerprint.hex(),
            },
        )
        return host

    def _check_usable(self, token: JoinToken) -> None:
        if token.expires_at_unix_ms <= self._core.now_ms() or token.uses >= token.uses_max:
            raise _used_up()

    def _certify(self, host: Host, csr: bytes, counter: bytes) -> Enrolled:
        """A new certificate for the host's own key."""
        key = read_csr(csr)
        if key_fingerprint(key) != host.key_fingerprint:
            raise PlaneError(
                ExitCode.REFUSED, "The request is for another key than the host's", _NEW_KEY
            )
        ttl_s = self._core.settings.host_certificate_ttl_s
        issued = self._core.authority().issue_host(host.host_id, key, ttl_s, self._core.now_ms())
        with self._core.store.recording() as recorder:
            recorder.add_certificate(certificate_row(issued, host.host_id))
        return self._answer(host, issued, counter, changed=False)

    def _answer(self, host: Host, issued: Issued, counter: bytes, *, changed: bool) -> Enrolled:
        with self._core.store.reading() as reader:
            trust = Keyring(reader).trust().to_bytes()
        return Enrolled(
            host_id=host.host_id,
            certificate_chain=(issued.der,),
            ca_certificates=self._core.authorities().certificates,
            trust=trust,
            assignment=assignment(self._core, host),
            counter=counter,
            changed=changed,
            not_after_unix_ms=issued.not_after_unix_ms,
            control_address=self._core.settings.control_address,
        )


def _newest(known: HostCounters | None, shown: bytes) -> bytes:
    """The counter that the host should hold now."""
    if known is None:
        return b""
    return (known.pending or known.current) if holds(known, shown) else shown


def certificate_row(issued: Issued, host_id: str = "") -> Certificate:
    """What the store keeps of a certificate."""
    return Certificate(
        fingerprint=issued.fingerprint,
        serial=issued.serial,
        subject=issued.subject,
        key_fingerprint=issued.key_fingerprint,
        not_before_unix_ms=issued.not_before_unix_ms,
        not_after_unix_ms=issued.not_after_unix_ms,
        host_id=host_id,
    )


def _used_up() -> Unauthenticated:
    return Unauthenticated(
        "The join token is not valid", "Ask for a new one: `licplane token create`"
    )


def _out(status: HostStatus | None) -> PlaneError:
    word = status.word if status is not None else "unknown"
    return PlaneError(
        ExitCode.REFUSED,
        f"The host is {word}",
        "Ask an administrator of the control plane",
    )
