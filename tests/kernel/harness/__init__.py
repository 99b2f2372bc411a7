# SPDX-License-Identifier: Apache-2.0
"""What kernel tests stand on: cgroups, network namespaces, servers that record, programs."""
