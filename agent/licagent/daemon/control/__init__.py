# SPDX-License-Identifier: Apache-2.0
"""The agent under a control plane: joining, the link, what comes over it, and leaving."""
