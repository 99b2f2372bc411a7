# SPDX-License-Identifier: Apache-2.0
"""The documentation as tests read it: pages, links, anchors, blocks of commands and of data.

A block of commands (```sh) is run by tests/system/test_pages.py, unless a comment in the lines
before it says why not:

    <!-- not run: it takes a terminal -->

or that its commands may end with another status than 0:

    <!-- may fail: the status of doctor says what it found -->

A block of data (```toml) may have a name, so that the commands after it find it as a file:

    <!-- file: orders.toml -->

What a ```text block after commands shows must be printed by them; `...` stands for anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
_FENCE: Final = re.compile(r"^ *```(.*)$")
_SAID: Final = re.compile(r"^ *<!-- (not run|may fail|file): (.+?) -->$")
_LINK: Final = re.compile(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)")
_OUTSIDE: Final = frozenset({"build", "dist", "node_modules"})


@dataclass(frozen=True, slots=True)
class Block:
    """What stands between two fences."""

    kind: str  # sh, text, toml...; "" where the fence says nothing
    text: str  # without the indentation of the fence
    line: int  # of the opening fence, 1 and up
    not_run: str = ""  # why it is not
    may_fail: str = ""  # why its commands may
    file: str = ""  # its name, for data


def pages() -> list[Path]:
    """Every page of the repository, in order."""
    return sorted(_below(ROOT))


def _below(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.suffix == ".md":
            yield path
        elif path.is_dir() and path.name[0] != "." and path.name not in _OUTSIDE:
            yield from _below(path)


def name_of(page: Path) -> str:
    """Its path from the repository's root."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The blocks of a page. ValueError where a fence is not closed."""
    found: list[Block] = []
    said: dict[str, str] = {}
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    for number, line in lines:
        if comment := _SAID.match(line):
            said[comment[1]] = comment[2]
        elif fence := _FENCE.match(line):
            inside = _until_fence(lines, page, number)
            indent = len(line) - len(line.lstrip())
            text = "".join(
                f"{each[min(indent, len(each) - len(each.lstrip())) :]}\n" for each in inside
            )
            block = Block(
                fence[1].strip(),
                text,
                number,
                not_run=said.get("not run", ""),
                may_fail=said.get("may fail", ""),
                file=said.get("file", ""),
            )
            found.append(block)
            said = {}
        elif line.strip():
            said = {}
    return found


def _until_fence(lines: Iterator[tuple[int, str]], page: Path, number: int) -> Iterator[str]:
    for _, line in lines:
        if _FENCE.match(line):
            return
        yield line
    raise ValueError(f"{name_of(page)}:{number}: the block is not closed")


def prose(page: Path) -> str:
    """The page without its blocks."""
    kept, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if _FENCE.match(line):
            inside = not inside
        elif not inside:
            kept.append(line)
    return "\n".join(kept) + "\n"


def links(page: Path) -> list[str]:
    """What it links to, pictures included; not what stands in code."""
    return _LINK.findall(re.sub(r"`[^`\n]*`", "", prose(page)))


def anchors(page: Path) -> set[str]:
    """Names of its headings as links say them: lower case, hyphens, without punctuation."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+)$", prose(page), re.MULTILINE):
        shown = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")
        count = 1
        name = slug
        while name in found:
            name, count = f"{slug}-{count}", count + 1
        found.add(name)
    found |= set(re.findall(r'<a (?:id|name)="([^"]+)"', prose(page)))
    return found


def matches(wanted: str, printed: str) -> bool:
    """Whether some line is as wanted, where `...` and the width of gaps may be anything."""
    pattern = re.escape(wanted.strip()).replace(re.escape("..."), ".*")
    pattern = re.sub(r"(?:\\ )+", r"\\s+", pattern)
    return any(re.fullmatch(pattern, line.strip()) for line in printed.splitlines())
