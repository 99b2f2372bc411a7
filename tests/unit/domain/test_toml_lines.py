# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from licagent.domain.toml_lines import LineIndex, Path

TEXT = '''\
# [[binding]] in a comment
[[resource]]
name = """
[[binding]]
"""
"quoted" = 'x # no comment'   # a comment
list = [
  1.5,
  { a = 1, b = [
      "x",
  ] },
]
sub.key = 1979-05-27 07:32:00
[resource.table]
deep = 1

[[resource]]
name = "two"
  [[ binding ]]
license = "a"
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("resource", 0), 2),
        (("resource", 0, "name"), 3),
        (("resource", 0, "quoted"), 6),
        (("resource", 0, "list"), 7),
        (("resource", 0, "list", 0), 8),
        (("resource", 0, "list", 1), 9),
        (("resource", 0, "list", 1, "b", 0), 10),
        (("resource", 0, "sub", "key"), 13),
        (("resource", 0, "table"), 14),
        (("resource", 0, "table", "deep"), 15),
        (("resource", 1), 17),
        (("resource", 1, "name"), 18),
        (("resource", 1, "absent"), 17),
        (("binding", 0, "license"), 20),
        (("nothing",), 1),
    ],
)
def test_finds_the_line(path: Path, line: int) -> None:
    assert LineIndex(TEXT).line(path) == line


def test_headers_are_not_found_in_strings() -> None:
    assert LineIndex(TEXT).tables("binding", 1) == [19]
    assert LineIndex(TEXT).tables("resource", 2) == [2, 17]


def test_tables_written_inline() -> None:
    text = 'binding = [\n  { license = "a" },\n  { license = "b" },\n]\n'
    assert LineIndex(text).tables("binding", 2) == [2, 3]


def test_windows_line_ends() -> None:
    assert LineIndex("[[a]]\r\nx = 1\r\n[[a]]\r\n").tables("a", 2) == [1, 3]
