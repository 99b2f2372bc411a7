# SPDX-License-Identifier: Apache-2.0
"""Usage records of hosts: taken in, kept, added up, asked for, and verified."""
