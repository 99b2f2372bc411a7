# SPDX-License-Identifier: Apache-2.0
"""What is on the disk from before, verified again: the host goes on with it before the network."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from licagent.control import hostkey
from licagent.control.interface import (
    Assignment,
    CatalogStorage,
    ControlSettings,
    IdentityStorage,
)
from licagent.control.leases import opened_leases
from licagent.control.trust import as_then, opened, rotated, trust_of
from licagent.control.wire import assignment as parse_assignment
from licagent.control.wire import manifest as parse_manifest
from licagent.domain.catalog import (
    TRUST_NAME,
    Delta,
    Kind,
    NackReason,
    ObjectChange,
    Refused,
    StoredCatalog,
)
from licagent.domain.hostidentity import Identity
from licagent.domain.lease import NO_LEASES, LeaseHolder, LeaseSet
from licagent.domain.replica import Replica
from lictoken.digest import DigestTree
from lictoken.sealed import SealPurpose
from lictoken.trust import TrustStore

_log: Final = logging.getLogger(__name__)

_ENROLL: Final = "`licagent enroll --again JOIN`"
_AGAIN: Final = "The control plane sends it again once there is a link"


@dataclass(frozen=True, slots=True)
class Kept:
    """What was found to be good."""

    identity: Identity
    assignment: Assignment
    trust: TrustStore
    replica: Replica
    leases: LeaseSet
    problems: tuple[str, ...]


def read_kept(
    identities: IdentityStorage, catalogs: CatalogStorage, settings: ControlSettings
) -> tuple[Kept | None, tuple[str, ...]]:
    """What is kept, and what of it was refused; None on a host that is not enrolled. Blocking.

    Nothing that is wrong on the disk keeps the host from going on: it costs what it is about.
    """
    problems: list[str] = []
    try:
        identity = identities.load()
    except Exception as error:  # noqa: BLE001 -- damaged, unreadable, of a later version
        return None, (f"this host's identity is refused: {error}",)
    if identity is None:
        return None, ()
    try:
        trust = trust_of(identity.trust)
        assignment = parse_assignment(
            opened(SealPurpose.ASSIGNMENT, identity.assignment, as_then(trust))
        )
        if assignment.host_id != identity.host_id:
            raise Refused(NackReason.NOT_OURS, f"it names the host {assignment.host_id}")
    except Refused as error:
        problem = f"this host's assignment is refused: {error}. Enrol it again: {_ENROLL}"
        return None, (problem,)
    replica = Replica(DigestTree)
    try:
        stored = catalogs.load()
        if stored is not None:
            trust = _restore(replica, stored, identity, trust)
    except Exception as error:  # noqa: BLE001 -- damaged, unreadable, altered
        problems.append(f"the stored catalog is refused: {error}. {_AGAIN}")
        replica = Replica(DigestTree)
    leases = NO_LEASES
    try:
        kept = catalogs.load_leases()
        if kept is not None:
            holder = LeaseHolder(
                identity.host_id, hostkey.fingerprint(identity.key_pem), settings.boot_id
            )
            leases = opened_leases(kept, holder, as_then(trust), settings)
    except Refused as error:
        if error.reason is not NackReason.NOT_OURS:  # of the boot before: nothing is wrong
            problems.append(f"the stored leases are refused: {error}. {_AGAIN}")
    except Exception as error:  # noqa: BLE001 -- as above
        problems.append(f"the stored leases are refused: {error}. {_AGAIN}")
    found = Kept(identity, assignment, trust, replica, leases, tuple(problems))
    return found, found.problems


def _restore(
    replica: Replica, stored: StoredCatalog, identity: Identity, trust: TrustStore
) -> TrustStore:
    """Put what is stored on an empty copy; the trust afterwards. Raises Refused."""
    if stored.host_id != identity.host_id:
        raise Refused(
            NackReason.NOT_OURS,
            f"it is of the host {stored.host_id}, and this one is {identity.host_id} now",
        )
    payload = opened(SealPurpose.SNAPSHOT, stored.manifest, as_then(trust))
    manifest = parse_manifest(payload, stored.manifest)
    changes = tuple(
        ObjectChange(each.kind, each.name, each.revision, each.payload) for each in stored.objects
    )
    replica.stage(Delta(0, manifest.revision, True, changes, manifest))
    replica.keep()
    keys = replica.objects.get((Kind.TRUST, TRUST_NAME))
    return trust if keys is None else rotated(trust, trust_of(keys.payload))
