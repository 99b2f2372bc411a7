# SPDX-License-Identifier: Apache-2.0
"""The check of the ledger of usage as the local API and the command line tell it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from licagent.local.errors import ErrorCode, LocalError
from licagent.store.errors import StoreError
from licagent.store.filelayer import OsFiles
from licagent.store.ledger_recovery import Chain, recover
from licagent.store.ledger_types import Gap
from licagent.store.ledger_verify import verify_folder

if TYPE_CHECKING:
    from licagent.local.usage_shapes import EpochRow, GapRow, VerifyResult


def verified(folder: Path) -> VerifyResult:
    """Read the ledger in `folder` and check all of it; changes nothing, and needs no daemon.

    Blocks for as long as the disk takes: megabytes a second are checked, not gigabytes.
    LocalError NOT_FOUND if there is no ledger, PERMISSION if it cannot be read.
    """
    try:
        if not folder.is_dir():
            raise LocalError(
                ErrorCode.NOT_FOUND,
                f"there is no ledger of usage in {folder}",
                "it is made when the daemon first meters; state_dir is in the settings",
            )
        report = verify_folder(folder)
        chains = recover(OsFiles(), folder).chains
    except (StoreError, OSError) as error:
        raise LocalError(ErrorCode.PERMISSION, str(error), "read it as root") from error
    newest = max(chains, default=0)
    problems = [*report.problems, *map(_lacking, report.gaps)]
    return {
        "good": report.is_intact,
        "folder": str(folder),
        "segments": report.segments,
        "frames": report.frames,
        "batches": report.batches,
        "records": report.records,
        "epochs": [_epoch(chains[epoch], epoch == newest) for epoch in sorted(chains)],
        "gaps": [gap_row(gap) for gap in report.gaps],
        "problems": problems,
    }


def _lacking(gap: Gap) -> str:
    return f"records {gap.first} to {gap.last} of epoch {gap.epoch} are {gap.reason}"


def gap_row(gap: Gap) -> GapRow:
    """A gap as the local API has it."""
    return {
        "epoch": str(gap.epoch),
        "first": gap.first,
        "last": gap.last,
        "reason": gap.reason,
    }


def _epoch(chain: Chain, is_current: bool) -> EpochRow:
    last = chain.next_sequence - 1
    return {
        "epoch": str(chain.epoch),
        "public_key": chain.public_key.hex(),
        "first": chain.dropped + 1 if last > chain.dropped else 0,
        "last": last,
        "acknowledged": chain.acked,
        "is_current": is_current,
    }
