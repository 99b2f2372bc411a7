# SPDX-License-Identifier: Apache-2.0
"""State that must survive a crash: documents, numbers, license records, clock, events.

An adapter: it imports `licagent.domain` and nothing else of ours.
"""
