# SPDX-License-Identifier: Apache-2.0
"""Small programs, one a route by which bytes could reach a server past the agent's hooks."""
