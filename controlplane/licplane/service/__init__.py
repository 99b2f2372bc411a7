# SPDX-License-Identifier: Apache-2.0
"""What the control plane does, behind its API and its commands. Knows no gRPC."""
