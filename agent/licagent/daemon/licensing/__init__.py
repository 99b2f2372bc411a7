# SPDX-License-Identifier: Apache-2.0
"""The licenses of a host: from files and a control plane, judged by its clock, leases and facts."""
