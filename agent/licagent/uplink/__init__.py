# SPDX-License-Identifier: Apache-2.0
"""The agent's way out: a process with a network and no rights, for one with rights and no network.

Where LICAGENT_UPLINK names its socket, the daemon opens no connection of its own.
"""
