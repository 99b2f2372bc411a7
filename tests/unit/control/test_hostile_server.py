# SPDX-License-Identifier: Apache-2.0
"""What a broken or hostile server can make of a host's session: nothing but another try."""

from __future__ import annotations

import pytest

from licagent.control.interface import ControlPhase
from licapi.control.v1 import common_pb2, sync_pb2


@pytest.mark.parametrize(
    "first",
    [
        {"delta": sync_pb2.Delta(reset=True)},
        {"welcome": sync_pb2.Welcome(counter=b"short")},
        {},
        {
            "revocations": sync_pb2.Revocations(
                objects=[common_pb2.Object(kind=4, name="r", payload=b"x" * (5 << 20))]
            )
        },
    ],
    ids=["no welcome", "short counter", "empty", "oversized"],
)
async def test_a_bad_beginning_is_another_try(plane, folder, kernel, run_host, first):
    identity = folder.enrolled(plane.control)
    host = run_host()
    peer = await plane.stream()
    await peer.send(**first)
    again = await plane.stream()
    assert again.hello.counter == identity.counter
    assert kernel.log == []
    await again.welcome()
    await host.until(lambda: host.session.state.phase is ControlPhase.CONNECTED)


async def test_messages_of_a_later_version_are_passed_over(plane, model, folder, run_host):
    folder.enrolled(plane.control)
    run_host()
    peer = await plane.stream()
    await peer.welcome()
    # A field that this version does not know is a message without content.
    await peer.outgoing.put(sync_pb2.ServerMessage.FromString(b"\x08\x05\xca\x3e\x02hi"))
    model.change((1, "db", b"{}"))
    await peer.push(model.parts(0))
    assert (await peer.receive("ack")).revision == 1


async def test_a_delta_without_end_is_refused(plane, folder, kernel, run_host, monkeypatch):
    monkeypatch.setattr("licagent.control.stream.DeltaParts", _small)
    folder.enrolled(plane.control)
    run_host()
    peer = await plane.stream()
    await peer.welcome()
    for number in range(4):
        await peer.send(
            delta=sync_pb2.Delta(
                to_revision=1,
                reset=True,
                more=True,
                objects=[common_pb2.Object(kind=1, name=f"n{number}", revision=1)],
            )
        )
    nack = await peer.receive("nack")
    assert nack.reason == sync_pb2.NACK_REASON_KERNEL
    assert "narrower scope" in nack.detail
    assert kernel.log == []


def _small():
    from licagent.domain.delta_parts import DeltaParts

    return DeltaParts(objects_max=2)


async def test_many_messages_that_wait_cut_the_link_and_come_again(plane, folder, kernel, run_host):
    """A server that pushes without waiting must not keep a revocation waiting."""
    import asyncio

    model = plane.model
    folder.enrolled(plane.control)
    run_host()
    peer = await plane.stream()
    await peer.welcome()
    kernel.gate = asyncio.Event()
    for number in range(80):
        model.change((1, f"n{number}", b"{}"))
        await peer.push(model.parts(number))
    await peer.gone.wait()
    kernel.gate.set()
    again = await plane.stream()
    assert again.hello.revision == 1
    await again.welcome()
    await again.push(model.parts(1))
    assert (await again.receive("ack")).revision == 80
    assert kernel.objects == model.live()
