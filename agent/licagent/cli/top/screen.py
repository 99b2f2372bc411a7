# SPDX-License-Identifier: Apache-2.0
"""`top` on a terminal. The keys are htop's where htop has one for it.

Colours are the terminal's own sixteen, so that its user's choice holds, sequences are short, and
NO_COLOR leaves none.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from dataclasses import replace
from typing import Any, ClassVar, Final

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.events import Key as KeyEvent
from textual.widgets import Input, Static

from licagent.cli.top import dialogs
from licagent.cli.top.arrange import View, arrange, matches
from licagent.cli.top.columns import columns_of
from licagent.cli.top.keys import BINDINGS, legend
from licagent.cli.top.model import Sample
from licagent.cli.top.poll import Poll
from licagent.cli.top.summary import summary
from licagent.cli.top.table import Rows, Titles
from licagent.cli.words import safe
from licagent.local.errors import LocalError
from licagent.local.usage_shapes import TOP_BY

FIRST_RATES_S: Final = 0.5
"""After the first reading rates are wanted soon, whatever the delay is."""


def run(poll: Poll, view: View, *, delay_s: float, iterations: int | None, mouse: bool) -> int:
    """Show the table until its user has seen enough; the exit status."""
    screen = Top(poll, view, delay_s=delay_s, iterations=iterations)
    screen.run(mouse=mouse)
    if screen.return_code is None:
        return 0
    return screen.return_code


class Top(App[None]):
    """The screen."""

    CSS = (
        dialogs.CSS
        + """
Screen { background: ansi_default; color: ansi_default; }
#summary { height: 3; }
Titles { height: 1; }
Rows { height: 1fr; background: ansi_default; }
#bottom { height: 1; }
#prompt { height: 1; display: none; border: none; background: ansi_default; padding: 0; }
"""
    )
    ENABLE_COMMAND_PALETTE = False
    ALLOW_SELECT = False
    BINDINGS: ClassVar[list[BindingType]] = [*BINDINGS]

    def __init__(
        self, poll: Poll, view: View, *, delay_s: float, iterations: int | None = None
    ) -> None:
        super().__init__(ansi_color=True)
        self.theme = "ansi-dark"
        self.animation_level = "none"
        self.view = view
        self.sample: Sample | None = None
        self._poll = poll
        self._delay_s = delay_s
        self._iterations = iterations
        self._is_ascii = "utf" not in (sys.stdout.encoding or "").lower()
        self._is_paused = False
        self._trouble = ""
        self._asking = ""
        """What the prompt is for: search or filter; "" while there is none."""
        self._searched = ""
        self._digits = ""
        self._wanted = asyncio.Event()
        self._rows, self._titles = Rows(), Titles()

    def compose(self) -> ComposeResult:
        """Summary, titles, rows, and a line of keys or a prompt."""
        yield Static("", id="summary", markup=False)
        yield self._titles
        yield self._rows
        yield Static("", id="bottom", markup=False)
        yield Input(id="prompt", compact=True)

    def on_mount(self) -> None:
        """Begin to ask."""
        self._rows.focus()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            # So that the terminal is given back as it was found.
            loop.add_signal_handler(number, self.exit, None, 128 + number)
        self.ask_for_ever()

    @work
    async def ask_for_ever(self) -> None:
        """Ask the daemon for samples. One that is away is said so, and asked again."""
        seen = 0
        while True:
            self._wanted.clear()
            await self._ask()
            seen += bool(self.sample and self.sample.interval_ns)
            if self._iterations is not None and seen > self._iterations:
                self.exit()
            is_first = self.sample is not None and not self.sample.interval_ns
            pause_s = min(FIRST_RATES_S, self._delay_s) if is_first else self._delay_s
            try:
                await asyncio.wait_for(self._wanted.wait(), pause_s)
            except TimeoutError:
                continue

    async def _ask(self) -> None:
        by = self.view.by
        try:
            sample = await asyncio.to_thread(self._poll.sample, by)
        except LocalError as error:
            self._trouble = f"{safe(error.message)}; asked again every {self._delay_s:g} s"
        else:
            self._trouble = ""
            if not self._is_paused and by == self.view.by:
                self.sample = sample
        self.show()

    # ------------------------------------------------------------------------------ drawing

    def show(self) -> None:
        """Draw what is known as the view wants it."""
        if not self._rows.is_attached:
            return  # an answer that came when the screen was being left
        if self.sample is not None and self.sample.snapshot.by == self.view.by:
            snapshot = self.sample.snapshot
            shown = arrange(self.sample.lines, self.view, is_ascii=self._is_ascii)
            self._rows.show(shown, self.view, snapshot.qualities)
            self._titles.show(self._rows.placed, self.view.sort)
            self._say("#summary", "\n".join(summary(self.sample, self.view)))
        self._say("#bottom", self._bottom())

    def _say(self, where: str, text: str | Text) -> None:
        widget = self.query_one(where, Static)
        if widget.content != text:
            widget.update(text)

    def _bottom(self) -> str | Text:
        if self._trouble:
            return f"NOT CURRENT: {self._trouble}"
        set_ = []
        if self._is_paused:
            set_.append("PAUSED")
        if self._digits:
            set_.append(f"pid {self._digits}")
        if self.view.text:
            set_.append(f"filter {self.view.text}")
        if self.view.user:
            set_.append(f"user {self.view.user}")
        if self.view.license is not None:
            set_.append(f"license {self.view.license or 'none'}")
        if self._rows.is_following:
            set_.append("following")
        if set_:
            return f"{'  '.join(set_)}  Esc Clear  F1 Help  F10 Quit"
        return legend(self.view)

    def _look(self, view: View) -> None:
        if view.by != self.view.by:
            self.sample = None
            self._wanted.set()
        self.view = view
        self.show()

    # -------------------------------------------------------------------------------- keys

    def on_key(self, event: KeyEvent) -> None:
        """Digits go to a pid, as in htop."""
        if self._asking or len(self.screen_stack) > 1:
            return
        character = event.character or ""
        if not (character.isascii() and character.isdigit()):
            self._digits = ""
            return
        self._digits = (self._digits + character)[-7:]
        for number, each in enumerate(self._rows.shown):
            if str(each.line.row.pid).startswith(self._digits):
                self._rows.move_to(number)
                break
        self.show()

    def on_resize(self) -> None:
        """The columns that fit now."""
        self.show()

    def on_titles_picked(self, event: Titles.Picked) -> None:
        """Sort by the clicked title; a second click turns the order round."""
        if event.name == self.view.sort:
            self.action_flip("is_reversed")
        else:
            self.action_sort_by(event.name)

    async def on_rows_opened(self) -> None:
        """A click on the chosen row."""
        await self.action_figures()

    def action_move(self, lines: int) -> None:
        """The cursor, up or down."""
        self._rows.move_to(self._rows.cursor + lines)

    def action_page(self, pages: int) -> None:
        """The cursor, by what fits on the screen."""
        self.action_move(pages * max(1, self._rows.size.height - 1))

    def action_flip(self, name: str) -> None:
        """Turn a flag of the view round."""
        flipped: dict[str, Any] = {name: not getattr(self.view, name)}
        self._look(replace(self.view, **flipped))

    def action_turn(self, step: int) -> None:
        """Processes, units, licenses, and round again."""
        if self._asking or len(self.screen_stack) > 1:
            return
        by = TOP_BY[(TOP_BY.index(self.view.by) + step) % len(TOP_BY)]
        self._look(replace(self.view, by=by, is_tree=self.view.is_tree and by == "process"))

    def action_tree(self) -> None:
        """Children below their parents."""
        if self.view.by == "process":
            self.action_flip("is_tree")

    def action_fold(self) -> None:
        """Hide or show the children of the chosen row."""
        chosen = self._rows.chosen
        if chosen is not None and self.view.is_tree:
            key = frozenset({chosen.line.row.key})
            self._look(replace(self.view, folded=self.view.folded ^ key))

    def action_fold_all(self) -> None:
        """Hide all children, or show them again."""
        lines = self.sample.lines if self.sample else ()
        folded = frozenset(line.row.key for line in lines)
        self._look(replace(self.view, folded=frozenset() if self.view.folded else folded))

    def action_sort_by(self, name: str) -> None:
        """Sort by a column."""
        self._look(replace(self.view, sort=name, is_reversed=False, is_tree=False))

    def action_follow(self) -> None:
        """The cursor stays with its row, or with its line."""
        self._rows.is_following = not self._rows.is_following
        self.show()

    def action_pause(self) -> None:
        """What is shown stays as it is."""
        self._is_paused = not self._is_paused
        self._wanted.set()
        self.show()

    def action_draw(self) -> None:
        """Everything anew, for a terminal on which somebody else has written."""
        self.refresh(repaint=True, layout=True)

    def action_clear(self) -> None:
        """No filter, no search."""
        if self._asking == "search":
            self._end_prompt()
            return
        if self._asking:
            self._end_prompt()
        self._digits = ""
        self._look(replace(self.view, text="", user="", license=None, pids=frozenset()))

    # ----------------------------------------------------------------------------- dialogs

    async def action_help(self) -> None:
        """The keys and the columns."""
        await self.push_screen(dialogs.Page("licagent top", dialogs.HELP))

    async def action_figures(self) -> None:
        """All of the chosen row."""
        chosen = self._rows.chosen
        if chosen is not None and self.sample is not None:
            text = dialogs.figures(chosen.line, self.sample)
            await self.push_screen(dialogs.Page("All figures", text))

    async def action_sort(self) -> None:
        """Ask for a column."""
        found = [
            (column.name, f"{column.title:<8} {column.name}") for column, _ in columns_of(self.view)
        ]
        await self.push_screen(dialogs.Choice("Sort by", found, self.view.sort), self._sorted)

    def _sorted(self, name: str | None) -> None:
        if name is not None:
            self.action_sort_by(name)

    async def action_user(self) -> None:
        """Ask for a user."""
        lines = self.sample.lines if self.sample else ()
        users = sorted({line.row.user for line in lines if line.row.user})
        found = [("", "all users"), *((user, user) for user in users)]
        await self.push_screen(dialogs.Choice("Only of", found, self.view.user), self._of_user)

    def _of_user(self, name: str | None) -> None:
        if name is not None:
            self._look(replace(self.view, user=name))

    def action_search(self) -> None:
        """Go to a row with a text; once more, to the next."""
        if self._asking == "search":
            self._find(self._rows.cursor + 1)
        else:
            self._prompt("search", self._searched)

    def action_filter(self) -> None:
        """Only rows with a text."""
        self._prompt("filter", self.view.text)

    def _prompt(self, what: str, text: str) -> None:
        self._asking = what
        prompt = self.query_one("#prompt", Input)
        prompt.placeholder = f"{what}: Enter to keep, Esc to clear"
        prompt.value = text
        self.query_one("#bottom").display = False
        prompt.display = True
        prompt.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """As it is typed."""
        if self._asking == "filter":
            self._look(replace(self.view, text=event.value))
        elif self._asking == "search":
            self._searched = event.value
            self._find(0)

    def on_input_submitted(self) -> None:
        """Kept."""
        self._end_prompt()

    def _find(self, start: int) -> None:
        """From a line on, and from the first when the last was reached."""
        shown = self._rows.shown
        for number in (*range(start, len(shown)), *range(min(start, len(shown)))):
            if self._searched and matches(shown[number].line, self._searched):
                self._rows.move_to(number)
                return

    def _end_prompt(self) -> None:
        self._asking = ""
        self.query_one("#prompt").display = False
        self.query_one("#bottom").display = True
        self._rows.focus()
        self.show()
