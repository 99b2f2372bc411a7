# SPDX-License-Identifier: Apache-2.0
"""Licenses that root adds, removes and revokes over the local socket. On the kernel thread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from licagent.daemon.licensing.reports import cut_of, license_row
from licagent.local.errors import ErrorCode, LocalError
from licagent.store.errors import StoreError
from licagent.store.licenses import LicenseNotAccepted
from lictoken.errors import TokenError

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent
    from licagent.local.methods import Params
    from licagent.local.peer import Peer


def add(agent: Agent, params: Params, peer: Peer) -> Mapping[str, object]:
    """Take a license on behalf of `peer`. LocalError where it is refused."""
    try:
        agent.licensing.load_trust()  # its key may have come since the last reading
        found, _path, changed = agent.licensing.store(params["text"].encode())
    except (TokenError, StoreError) as error:
        raise _refused(error) from error
    agent.write_licenses()
    if changed:
        agent.emit(
            "license",
            f"license {found.jti} (generation {found.generation}) added by uid {peer.uid}",
            license=found.jti,
            by=f"uid {peer.uid}",
        )
        # A policy that was refused for want of this license may be good now, and
        # rules follow what the license entitles.
        agent.policy.load()
    result = license_row(agent, found, {})
    judgement = agent.licensing.judge(found)
    warnings = [agent.policy.problem] if agent.policy.problem else []
    if not judgement.valid:
        warnings.append(f"{judgement.detail} [{judgement.state.value}]; {judgement.hint}")
    return {
        "schema_version": 1,
        "changed": changed,
        **result,
        "generation": found.generation,
        "warnings": warnings,
    }


def remove(agent: Agent, params: Params, peer: Peer) -> Mapping[str, object]:
    """Forget a license, and end what used it. LocalError where it would come again."""
    jti = params["id"]
    held = agent.licensing.held.get(jti)
    if held is not None and held.managed:
        raise LocalError(
            ErrorCode.REFUSED,
            f"license {jti} comes from the control plane, which would deliver it again",
            f"end it there: licplane license revoke {jti}; or here: licagent license revoke {jti}",
        )
    if not agent.licensing.forget(jti):
        return {"schema_version": 1, "id": jti, "changed": False}
    agent.last_cut = []
    agent.write_licenses()
    count = cut_of(agent, jti)
    agent.emit(
        "license",
        f"license {jti} removed by uid {peer.uid}",
        license=jti,
        by=f"uid {peer.uid}",
        sockets_cut=count,
    )
    # As the next start would find it: a binding to this license is a problem now.
    agent.policy.load()
    return {
        "schema_version": 1,
        "id": jti,
        "changed": True,
        "sockets_cut": count,
        "warnings": [agent.policy.problem] if agent.policy.problem else [],
    }


def revoke(agent: Agent, params: Params, peer: Peer) -> Mapping[str, object]:
    """Revoke, suspend or reinstate a license. LocalError where that is refused."""
    agent.last_cut = []
    by = f"uid {peer.uid}"
    try:
        # The kernel comes first, then the sockets, then the disk: the answer waits for
        # all three, and without an answer nobody was told that it is done.
        with agent.records.batch():
            jti, reason, action, changed = _revoked(agent, params, by)
            agent.write_few([jti])
    except (TokenError, StoreError) as error:
        raise _refused(error) from error
    count = 0
    if changed:
        count = cut_of(agent, jti)
        agent.emit(
            "license",
            f"license {jti} {action} by {by}: {reason}",
            license=jti,
            by=by,
            reason_text=reason,
            sockets_cut=count,
        )
    return {
        "schema_version": 1,
        "id": jti,
        "changed": changed,
        "action": action,
        "sockets_cut": count,
    }


def _revoked(agent: Agent, params: Params, by: str) -> tuple[str, str, str, bool]:
    """License, reason, what was done in a word, and whether it is news; on record, not yet in
    the kernel."""
    if params["statement"]:
        agent.licensing.load_trust()
        found, changed = agent.licensing.take_statement(params["statement"].encode(), by)
        words = {"revoke": "revoked", "suspend": "suspended"}
        return found.license, found.reason, words.get(found.action.value, "reinstated"), changed
    jti, reason = params["id"], params["reason"]
    if jti not in agent.licensing.held and not agent.records.newest_generation(jti):
        raise LocalError(
            ErrorCode.NOT_FOUND,
            f"no license {jti!r} is known here",
            "list them: licagent license list",
        )
    return jti, reason, "revoked", agent.licensing.revoke_here(jti, reason, by)


def _refused(error: TokenError | StoreError) -> LocalError:
    if isinstance(error, TokenError):
        return LocalError(
            ErrorCode.REFUSED,
            f"{error.detail} [{error.refusal.value}]",
            str(error.next_step),
            {"refusal": error.refusal.value},
        )
    refusal = error.refusal if isinstance(error, LicenseNotAccepted) else type(error).__name__
    return LocalError(ErrorCode.REFUSED, f"{error} [{refusal}]", "", {"refusal": refusal})
