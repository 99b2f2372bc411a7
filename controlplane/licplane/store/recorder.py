# SPDX-License-Identifier: Apache-2.0
"""Writing what comes often and concerns one host: no place in the catalog's order, no audit.

On PostgreSQL these transactions run beside one another and beside those of Store.transaction().
"""

from __future__ import annotations

from licplane.store.billing_records import BillingWrites
from licplane.store.copying import CopyWrites
from licplane.store.deliveries import DeliveryRecords
from licplane.store.identities import IdentityRecords
from licplane.store.reader import Reader
from licplane.store.shadow_use import ShadowRecords
from licplane.store.usage_records import UsageRecords
from licplane.store.usage_retention import RetentionRecords
from licplane.store.usage_rollups import RollupRecords


class Recorder(
    ShadowRecords,
    IdentityRecords,
    UsageRecords,
    RollupRecords,
    RetentionRecords,
    BillingWrites,
    DeliveryRecords,
    CopyWrites,
    Reader,
):
    """A transaction for what hosts send. Made by Store.recording(); kept if its block ends well."""
