# SPDX-License-Identifier: Apache-2.0
"""A private key at rest opens only as it was sealed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from licplane.errors import ExitCode, PlaneError
from licplane.issuer.keyring import load_key, seal_key
from licplane.issuer.sealedkey import Cost
from licplane.store.record_model import SealedKey
from lictoken import base64url
from lictoken.keys import SigningKey

PASSPHRASE = "correct horse battery"
CHEAP = Cost(n=2**10, p=1)
KEY = SigningKey("acme", bytes(range(32)))


@pytest.fixture
def sealed() -> SealedKey:
    return seal_key(KEY, PASSPHRASE, 0, CHEAP)


def test_seal_and_open(sealed: SealedKey) -> None:
    assert load_key(sealed, PASSPHRASE) == KEY
    again = seal_key(KEY, PASSPHRASE, 0, CHEAP)
    assert json.loads(again.document)["sealed"] != json.loads(sealed.document)["sealed"]


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("issuer", "evil", ExitCode.PERMISSION),  # bound in: it no longer opens
        ("kid", "a" * 43, ExitCode.PERMISSION),
        ("n", 2**11, ExitCode.PERMISSION),
        ("n", 2**40, ExitCode.INTERNAL),  # would ask for all memory
        ("n", "many", ExitCode.INTERNAL),
        ("sealed", "AAAA", ExitCode.PERMISSION),
        ("sealed", "!", ExitCode.INTERNAL),
        ("nonce", "", ExitCode.INTERNAL),
        ("encryption", "rot13", ExitCode.INTERNAL),
    ],
)
def test_a_changed_key_does_not_open(
    sealed: SealedKey, name: str, value: object, code: ExitCode
) -> None:
    document = json.dumps({**json.loads(sealed.document), name: value})
    with pytest.raises(PlaneError) as caught:
        load_key(replace(sealed, document=document), PASSPHRASE)
    assert caught.value.code is code


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 1}'])
def test_a_damaged_key(sealed: SealedKey, text: str) -> None:
    with pytest.raises(PlaneError, match="damaged"):
        load_key(replace(sealed, document=text), PASSPHRASE)


def test_a_clear_key_under_another_kid() -> None:
    row = seal_key(SigningKey("acme", bytes(32)), None, 0, None)
    other = row.document.replace(base64url.encode(bytes(32)), "A" * 42 + "E")
    with pytest.raises(PlaneError, match="does not match its kid"):
        load_key(replace(row, document=other), None)
