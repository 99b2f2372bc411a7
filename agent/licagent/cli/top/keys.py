# SPDX-License-Identifier: Apache-2.0
"""The keys of `top` and what they do: htop's, where htop has one for it."""

from __future__ import annotations

from typing import Final

from textual.binding import Binding

_FAR: Final = 10_000_000

_ACTIONS: Final = ()

BINDINGS: Final = (
    *(Binding(keys, action, "", show=False) for keys, action in _ACTIONS),
    # Before the screen's own, which would move the focus.
    Binding("tab", "turn(1)", "", show=False, priority=True),
    Binding("shift+tab", "turn(-1)", "", show=False, priority=True),
)
"""Of the screen; dialogs and the prompt have their own."""
