# SPDX-License-Identifier: Apache-2.0
"""What must survive a crash: keys, trust file, registry."""
