# SPDX-License-Identifier: Apache-2.0
"""What must survive a crash, in a database: catalog, hosts, keys, licenses, audit log."""
