# SPDX-License-Identifier: Apache-2.0
"""The wire API, generated from the .proto files beside it: `./dev proto`."""
