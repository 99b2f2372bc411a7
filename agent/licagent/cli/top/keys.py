# SPDX-License-Identifier: Apache-2.0
"""The keys of `top` and what they do: htop's, where htop has one for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.text import Text
from textual.binding import Binding

from licagent.cli.top.arrange import View

_FAR: Final = 10_000_000
"""Lines: more than a host has processes."""

_ACTIONS: Final[Sequence[tuple[str, str]]] = (
    ("q,f10,ctrl+c", "quit"),
    ("ctrl+z", "suspend_process"),
    ("ctrl+l", "draw"),
    ("f1,h,question_mark", "help"),
    ("f3,slash", "search"),
    ("f4,backslash", "filter"),
    ("f5,t", "tree"),
    ("f6,greater_than_sign,less_than_sign,full_stop,comma", "sort"),
    ("P", "sort_by('cpu')"),
    ("M", "sort_by('mem')"),
    ("T", "sort_by('time')"),
    ("N", "sort_by('pid')"),
    ("I", "flip('is_reversed')"),
    ("a", "flip('totals')"),
    ("w", "flip('wire')"),
    ("x", "flip('exited')"),
    ("K", "flip('kernel_threads')"),
    ("u", "user"),
    ("F", "follow"),
    ("p,Z", "pause"),
    ("space,plus,minus", "fold"),
    ("asterisk", "fold_all"),
    ("enter", "figures"),
    ("escape", "clear"),
    ("up,k,ctrl+p", "move(-1)"),
    ("down,j,ctrl+n", "move(1)"),
    ("pageup", "page(-1)"),
    ("pagedown", "page(1)"),
    ("home", f"move(-{_FAR})"),
    ("end", f"move({_FAR})"),
)

BINDINGS: Final = (
    *(Binding(keys, action, "", show=False) for keys, action in _ACTIONS),
    # Before the screen's own, which would move the focus.
    Binding("tab", "turn(1)", "", show=False, priority=True),
    Binding("shift+tab", "turn(-1)", "", show=False, priority=True),
)
"""Of the screen; dialogs and the prompt have their own."""

_NEXT: Final = {"process": "Units", "unit": "Licenses", "license": "Processes"}


def legend(view: View) -> Text:
    """The last line while nothing else has to be said: keys, and what they do now."""
    pairs = (
        ("F1", "Help"),
        ("F3", "Search"),
        ("F4", "Filter"),
        ("F5", "List" if view.is_tree else "Tree"),
        ("F6", "SortBy"),
        ("Tab", _NEXT[view.by]),
        ("a", "Rates" if view.totals else "Totals"),
        ("F10", "Quit"),
    )
    parts = [part for key, label in pairs for part in (key, (f"{label} ", "reverse"))]
    return Text.assemble(*parts)
