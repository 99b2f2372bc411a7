# SPDX-License-Identifier: Apache-2.0
"""What the machine says: processes, cgroups, executables, sockets, namespaces, posture.

An adapter: it imports `licagent.domain` and nothing else of ours. `pyroute2` costs about
25 MB of resident memory, so only `netlink` functions import it, when they are called.
"""
