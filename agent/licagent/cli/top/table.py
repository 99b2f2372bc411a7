# SPDX-License-Identifier: Apache-2.0
"""The table of `top` on a terminal: draws the lines in view, and of those only what changed.

A host has ten thousand processes and a terminal fifty lines, perhaps at the end of a slow line:
a line is made when it is in view, and sent when it differs from what stands there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

from rich.segment import Segment
from rich.style import Style
from textual.events import Click
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from licagent.cli.top.arrange import Shown, View
from licagent.cli.top.columns import Placed, cells, fit, place, titles
from licagent.cli.top.model import Key

PLAIN: Final = Style()
CURSOR: Final = Style(reverse=True)
DIM: Final = Style(dim=True)
SORTED: Final = Style(bold=True)
LICENSED: Final = Style(color="green")
HEAD: Final = Style(reverse=True)
HEAD_SORTED: Final = Style(reverse=True, bold=True, underline=True)
QUIET: Final = frozenset({"0", "0.0", "-"})
"""Cells without news: drawn dim, so that the others are seen."""

Parts = tuple[tuple[str, Style], ...]


class Titles(Widget):
    """The line of titles. A click on one sorts by it."""

    class Picked(Message):
        """A title was clicked."""

        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

    def __init__(self) -> None:
        super().__init__()
        self._placed: Sequence[Placed] = ()
        self._sort = ""

    def show(self, placed: Sequence[Placed], sort: str) -> None:
        """Draw these columns, the one that is sorted by marked."""
        if (list(placed), sort) != (list(self._placed), self._sort):
            self._placed, self._sort = placed, sort
            self.refresh()

    def render_line(self, y: int) -> Strip:  # noqa: ARG002 - textual's
        """The one line."""
        segments = []
        for each, text in zip(self._placed, titles(self._placed), strict=True):
            style = HEAD_SORTED if each.column.name == self._sort else HEAD
            segments += [Segment(text, style), Segment(" ", HEAD)]
        return Strip(segments).adjust_cell_length(self.size.width, HEAD)

    def on_click(self, event: Click) -> None:
        """Sort by what was clicked."""
        left = 0
        for each in self._placed:
            left += each.width + 1
            if event.x < left:
                self.post_message(self.Picked(each.column.name))
                return


class Rows(Widget, can_focus=True):
    """The lines, one of them chosen by the cursor."""

    ALLOW_SELECT: ClassVar[bool] = False

    class Opened(Message):
        """The line under the cursor was clicked again."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: Sequence[Shown] = ()
        self._view = View()
        self._qualities: Mapping[str, str] = {}
        self._placed: Sequence[Placed] = ()
        self._drawn: dict[int, Parts] = {}
        """What stands in each line of the screen."""
        self._top = 0
        """The line that stands first."""
        self.cursor = 0
        self.is_following = False
        """Whether the cursor stays with its row; else with its line of the screen."""

    @property
    def placed(self) -> Sequence[Placed]:
        """The columns that fit."""
        return self._placed

    @property
    def chosen(self) -> Shown | None:
        """The line under the cursor."""
        return self._shown[self.cursor] if self.cursor < len(self._shown) else None

    @property
    def shown(self) -> Sequence[Shown]:
        """All lines, also those out of view."""
        return self._shown

    def show(self, shown: Sequence[Shown], view: View, qualities: Mapping[str, str]) -> None:
        """Draw these lines."""
        followed = self.chosen.line.row.key if self.is_following and self.chosen else None
        self._shown, self._view, self._qualities = shown, view, qualities
        self._layout_columns()
        if followed is None or not self.go_to(followed):
            self.move_to(self.cursor)

    def go_to(self, key: Key) -> bool:
        """Put the cursor on a row; whether it is there."""
        for number, each in enumerate(self._shown):
            if each.line.row.key == key:
                self.move_to(number)
                return True
        return False

    def move_to(self, number: int) -> None:
        """Put the cursor on a line, and scroll so that it is in view."""
        self.cursor = max(0, min(number, len(self._shown) - 1))
        height = max(1, self.size.height)
        if self.cursor < self._top:
            self._top = self.cursor
        elif self.cursor >= self._top + height:
            self._top = self.cursor - height + 1
        self._top = max(0, min(self._top, len(self._shown) - height))
        self.redraw()

    def redraw(self) -> None:
        """Send the lines that differ from what stands there."""
        for y in range(self.size.height):
            parts = self._parts(self._top + y)
            if self._drawn.get(y) != parts:
                self._drawn[y] = parts
                self.refresh(Region(0, y, self.size.width, 1))

    def on_resize(self) -> None:
        """Columns as the new width allows."""
        self._drawn.clear()
        self.show(self._shown, self._view, self._qualities)

    def on_click(self, event: Click) -> None:
        """Choose the clicked line; a chosen one is opened."""
        number = self._top + event.y
        if number == self.cursor:
            self.post_message(self.Opened())
        elif number < len(self._shown):
            self.move_to(number)

    def on_mouse_scroll_down(self) -> None:
        """Three lines down."""
        self.move_to(self.cursor + 3)

    def on_mouse_scroll_up(self) -> None:
        """Three lines up."""
        self.move_to(self.cursor - 3)

    def render_line(self, y: int) -> Strip:
        """A line of the screen."""
        parts = self._parts(self._top + y)
        self._drawn[y] = parts
        segments = [Segment(text, style) for text, style in parts]
        width = self.size.width
        is_cursor = self._top + y == self.cursor and bool(self._shown)
        return Strip(segments).adjust_cell_length(width, CURSOR if is_cursor else PLAIN)

    def _layout_columns(self) -> None:
        self._placed = place(self._view, self._qualities, max(20, self.size.width))

    def _parts(self, number: int) -> Parts:
        if number >= len(self._shown):
            empty = "nothing to show: a filter may be set, or metering may be off"
            return ((empty, DIM),) if number == 0 and not self._shown else ()
        shown = self._shown[number]
        texts = cells(shown, self._view, self._placed)
        if number == self.cursor:
            return ((fit(" ".join(texts), self.size.width), CURSOR),)
        row = shown.line.row
        if row.exited_ns or shown.is_frame:
            return ((" ".join(texts), DIM),)
        parts: list[tuple[str, Style]] = []
        for each, text in zip(self._placed, texts, strict=True):
            parts.append((f"{text} ", self._style(each.column.name, text, shown)))
        return tuple(parts)

    def _style(self, name: str, text: str, shown: Shown) -> Style:
        if text.strip() in QUIET:
            return DIM
        if name == "license" and shown.line.row.license:
            return LICENSED
        return SORTED if name == self._view.sort else PLAIN
