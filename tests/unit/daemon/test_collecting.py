# SPDX-License-Identifier: Apache-2.0
"""Garbage collection rests while a policy is compiled, and only then."""

from __future__ import annotations

import gc

import pytest

from licagent.daemon.policy.keeper import no_garbage_collection


def test_no_collection_inside_and_some_after() -> None:
    with no_garbage_collection():
        before = gc.get_stats()[0]["collections"]
        kept = [[index] for index in range(50_000)]
        assert gc.get_stats()[0]["collections"] == before
    assert gc.isenabled()
    assert len(kept) == 50_000


def test_an_error_inside_leaves_it_on() -> None:
    with pytest.raises(ValueError, match="bad policy"), no_garbage_collection():
        raise ValueError("bad policy")
    assert gc.isenabled()


def test_whoever_turned_it_off_keeps_it_off() -> None:
    gc.disable()
    try:
        with no_garbage_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
