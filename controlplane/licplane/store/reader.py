# SPDX-License-Identifier: Apache-2.0
"""Reading: one consistent snapshot of the database from the first read to the last.

Lists are sorted by their keys and paged by them: give the last key of a page as `after`. A limit
of 0 is none. Text that no database could hold raises PlaneError USAGE, also in a search.
"""

from __future__ import annotations

from licplane.store.billed_usage import BilledReads
from licplane.store.billing_records import BillingReads
from licplane.store.catalog import CatalogReads
from licplane.store.copying import CopyReads
from licplane.store.deliveries import DeliveryReads
from licplane.store.fleet_counts import FleetCountReads
from licplane.store.hosts import HostReads
from licplane.store.identities import IdentityReads
from licplane.store.journal import JournalReads
from licplane.store.shadow_use import ShadowReads
from licplane.store.signing import SigningReads
from licplane.store.usage_reading import UsageReads
from licplane.store.usage_retention import RetentionReads
from licplane.store.usage_sums import SumReads


class Reader(
    CatalogReads,
    HostReads,
    FleetCountReads,
    ShadowReads,
    IdentityReads,
    SigningReads,
    JournalReads,
    UsageReads,
    SumReads,
    BilledReads,
    DeliveryReads,
    RetentionReads,
    BillingReads,
    CopyReads,
):
    """What a transaction sees. Made by Store.reading()."""
