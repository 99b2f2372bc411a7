# SPDX-License-Identifier: Apache-2.0
"""The reference control plane. So far: keys, and licenses issued from the command line."""
