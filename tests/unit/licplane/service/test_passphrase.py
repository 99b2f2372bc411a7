# SPDX-License-Identifier: Apache-2.0
"""All keys under another passphrase: all or none, on both databases, under processes that run."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from tests.unit.licplane.service.world import (
    CHEAP,
    PASSPHRASE,
    ROOT,
    SETTINGS,
    World,
    binding,
    license,
    resource,
)

from licplane.errors import Conflict, ExitCode, PlaneError
from licplane.issuer.keyring import Keys, open_keys, seal_key
from licplane.issuer.resealing import resealed
from licplane.issuer.sealedkey import is_encrypted
from licplane.service.plane import Plane
from licplane.service.requests import Change
from licplane.store.database import Store
from licplane.store.record_model import KeyKind, SealedKey
from lictoken.keys import SigningKey

pytest_plugins = ["tests.support.postgres"]

NEW = "another horse battery"


def rows(store: Store) -> tuple[SealedKey, ...]:
    with store.reading() as reader:
        return (*reader.keys(KeyKind.ISSUER), *reader.keys(KeyKind.AUTHORITY))


def opened(store: Store, words: str) -> Keys:
    with store.reading() as reader:
        return open_keys(reader, lambda: words)


def test_every_key_opens_with_the_new_one_alone(both: World) -> None:
    before = rows(both.store)
    assert len(before) >= 2
    old_keys = opened(both.store, PASSPHRASE)
    count, left = both.plane.change_passphrase(ROOT, Change(), old=PASSPHRASE, new=NEW)
    assert (count, left) == (len(before), ())
    after = rows(both.store)
    for one, other in zip(before, after, strict=True):
        assert replace(one, document="") == replace(other, document="")
        assert one.document != other.document
        assert is_encrypted(other.document)
    with pytest.raises(PlaneError) as error:
        opened(both.store, PASSPHRASE)
    assert error.value.code is ExitCode.PERMISSION
    new_keys = opened(both.store, NEW)
    assert new_keys.signing == old_keys.signing
    assert new_keys.counted == old_keys.counted
    assert set(new_keys.authorities) == set(old_keys.authorities)
    # What has them open goes on; what opens them now, too.
    both.apply(resource(), binding(), license())
    later = Plane(both.store, new_keys, SETTINGS, now_ms=both.clock, cost=CHEAP)
    assert later.refresh().problem == ""
    assert later.verify_audit(ROOT).problems == ()
    [entry] = [one for one in later.list_audit(ROOT, 0, 1000) if one.action == "key.passphrase"]
    assert NEW not in str(entry)
    with pytest.raises(PlaneError, match="under another passphrase"):
        later.create_key(ROOT, Change(), issuer="acme", passphrase=PASSPHRASE)
    later.create_key(ROOT, Change(), issuer="acme", passphrase=NEW)


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("not the passphrase", NEW, ExitCode.PERMISSION),
        (PASSPHRASE, "short", ExitCode.REFUSED),
        (PASSPHRASE, PASSPHRASE, ExitCode.USAGE),
    ],
)
def test_what_is_refused_changes_nothing(both: World, old: str, new: str, code: ExitCode) -> None:
    before = rows(both.store)
    with pytest.raises(PlaneError) as error:
        both.plane.change_passphrase(ROOT, Change(), old=old, new=new)
    assert error.value.code is code
    assert rows(both.store) == before


def test_all_or_none(both: World) -> None:
    """A key that is damaged, beside others that are not."""
    with both.store.transaction() as transaction:
        [authority] = transaction.keys(KeyKind.AUTHORITY)
        transaction.put_key(replace(authority, document='{"encryption": "rot13"}'))
    before = rows(both.store)
    with pytest.raises(PlaneError) as error:
        both.plane.change_passphrase(ROOT, Change(), old=PASSPHRASE, new=NEW)
    assert error.value.code is ExitCode.INTERNAL
    assert rows(both.store) == before
    with both.store.transaction() as transaction:
        transaction.put_key(authority)
    assert opened(both.store, PASSPHRASE).signing


def test_a_key_that_was_made_meanwhile_is_not_left_behind(both: World) -> None:
    with both.store.reading() as reader:
        made = resealed(reader, PASSPHRASE, NEW, CHEAP)
    both.plane.create_key(ROOT, Change(), issuer="acme", passphrase=PASSPHRASE)
    before = rows(both.store)
    with pytest.raises(Conflict), both.store.transaction() as transaction:
        made.put(transaction)
    assert rows(both.store) == before


def test_a_key_under_a_third_one_stays_and_is_named(both: World) -> None:
    stray = SigningKey.create("acme")
    with both.store.transaction() as transaction:
        transaction.put_key(seal_key(stray, "a third one's words", both.clock(), CHEAP))
    count, left = both.plane.change_passphrase(ROOT, Change(), old=PASSPHRASE, new=NEW)
    assert left == (stray.kid,)
    assert count == len(rows(both.store)) - 1
    assert stray.kid in opened(both.store, "a third one's words").signing


def test_a_running_server_is_told(both: World, caplog: pytest.LogCaptureFixture) -> None:
    """Whether it can open the keys another time; those that it has stay good either way."""
    words = [PASSPHRASE]

    def again() -> Keys:
        return opened(both.store, words[0])

    server = Plane(both.store, again(), SETTINGS, now_ms=both.clock, cost=CHEAP, reopen=again)
    with caplog.at_level(logging.INFO, "licplane.keys"):
        server.roots_changed_ms()
        both.plane.change_passphrase(ROOT, Change(), old=PASSPHRASE, new=NEW)
        server.roots_changed_ms()
        server.roots_changed_ms()
        assert [one.levelname for one in caplog.records] == ["WARNING"]  # once
        assert "start it anew" in caplog.text
        words[0] = NEW + " 2"
        both.clock.now_ms += 1
        both.plane.change_passphrase(ROOT, Change(), old=NEW, new=words[0])
        server.roots_changed_ms()
        assert caplog.records[-1].levelname == "INFO"
    assert server.refresh().problem == ""
