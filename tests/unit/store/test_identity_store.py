# SPDX-License-Identifier: Apache-2.0
"""The identity on disk."""

from __future__ import annotations

from dataclasses import replace

import pytest

from licagent.domain.catalog import SignedBytes
from licagent.domain.hostidentity import Identity
from licagent.store.errors import DocumentDamaged, StoreError
from licagent.store.identity import IdentityStore
from licagent.store.statedir import StateDir

WHO = Identity(
    key_pem=b"-----BEGIN PRIVATE KEY-----\nsecret\n",
    host_id="h",
    certificate_chain=(b"\0leaf", b"\1"),
    ca_certificates=(b"root",),
    trust=b"{}",
    assignment=SignedBytes(b"p", "k", b"\xff"),
    counter=b"\2" * 32,
    control_address="a:1",
    public_address="a:2",
    not_after_unix_ms=7,
)


@pytest.fixture
def state(tmp_path):
    with StateDir(tmp_path / "state") as found:
        yield found


def test_what_is_saved_is_read_by_the_next_one(state):
    store = IdentityStore(state)
    assert store.load() is None
    store.save(WHO)
    assert IdentityStore(state).load() == WHO
    assert (state.path / "identity.json").stat().st_mode & 0o777 == 0o600


def test_only_who_knows_the_newest_may_replace_it(state):
    store = IdentityStore(state)
    store.save(WHO)
    other = replace(WHO, host_id="other")
    store.save(other)  # enrolled again meanwhile
    assert not store.replace(WHO, replace(WHO, counter=b"\3" * 32))
    assert IdentityStore(state).load() == other
    assert store.replace(other, replace(other, counter=b"\3" * 32))
    assert IdentityStore(state).load().counter == b"\3" * 32


def test_a_key_waits_for_the_end_of_its_enrolment(state):
    store = IdentityStore(state)
    assert store.pending_key() is None
    store.keep_pending_key(b"key")
    assert IdentityStore(state).pending_key() == b"key"
    store.drop_pending_key()
    assert store.pending_key() is None


def test_damage_is_said_once_and_then_the_host_is_nobody(state):
    IdentityStore(state).save(WHO)
    path = state.path / "identity.json"
    path.write_bytes(path.read_bytes().replace(b'"host_id":"h"', b'"host_id":"g"'))
    store = IdentityStore(state)
    with pytest.raises(DocumentDamaged):
        store.load()
    assert store.load() is None


def test_a_whole_document_that_makes_no_sense_names_the_way_out(state):
    state.write_document("identity", "licagent.identity/1", {"host_id": "h"})
    with pytest.raises(StoreError, match="enroll JOIN"):
        IdentityStore(state).load()


def test_secrets_are_not_shown():
    assert "secret" not in repr(WHO)
    assert repr(WHO.counter) not in repr(WHO)
