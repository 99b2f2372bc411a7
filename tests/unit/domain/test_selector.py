# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licagent.domain.selector import Selector, SelectorError, SelectorKind, parse

DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("unix:uid:0", SelectorKind.UID, "0"),
        ("unix:uid:4294967294", SelectorKind.UID, "4294967294"),
        ("unix:user:postgres", SelectorKind.USER, "postgres"),
        ("unix:user:svc$", SelectorKind.USER, "svc$"),
        ("unix:gid:100", SelectorKind.GID, "100"),
        ("unix:group:backup", SelectorKind.GROUP, "backup"),
        ("unix:path:/usr/bin/curl", SelectorKind.PATH, "/usr/bin/curl"),
        ("unix:path:/opt/a:b c", SelectorKind.PATH, "/opt/a:b c"),
        (f"unix:sha256:{DIGEST.upper()}", SelectorKind.SHA256, DIGEST),
        ("systemd:unit:etl@1.service", SelectorKind.UNIT, "etl@1.service"),
        ("systemd:unit:session-2.scope", SelectorKind.UNIT, "session-2.scope"),
        ("systemd:slice:batch.slice", SelectorKind.SLICE, "batch.slice"),
        ("cgroup:path:/batch/etl", SelectorKind.CGROUP, "/batch/etl"),
        ("container:id:4F1C00112233", SelectorKind.CONTAINER, "4f1c00112233"),
        ("host", SelectorKind.HOST, ""),
    ],
)
def test_understands(text: str, kind: SelectorKind, value: str) -> None:
    assert parse(text) == Selector(kind, value)


@pytest.mark.parametrize(
    ("text", "part", "suggestion"),
    [
        ("unix:usr:bob", "usr", "unix:user:bob"),
        ("unx:uid:1", "unx", "unix:uid"),
        ("uid:1000", "uid", "unix:uid:1000"),
        ("host:", "", 'write "host"'),
        ("", "", '"host"'),
        ("unix:uid:", "unix:uid:", "unix:uid:1000"),
        ("unix:uid:-1", "-1", "decimal"),
        ("unix:uid:01", "01", "decimal"),
        ("unix:uid:٣", "٣", "decimal"),
        ("unix:uid:4294967295", "4294967295", "4294967294"),
        ("unix:uid:bob", "bob", "unix:user:bob"),
        ("unix:user:1000", "1000", "unix:uid:1000"),
        ("unix:user:a b", "a b", "getent"),
        ("unix:path:bin/curl", "bin/curl", "/..."),
        ("unix:path:/usr//bin/../bin/curl", "/usr//bin/../bin/curl", "unix:path:/usr/bin/curl"),
        ("unix:path:/usr/bin/", "/usr/bin/", "unix:path:/usr/bin"),
        ("unix:path:/", "/", "file"),
        ("unix:path:/a\0b", "/a\0b", ""),
        ("unix:sha256:abc", "abc", "sha256sum"),
        ("systemd:unit:etl", "etl", "etl.service"),
        ("systemd:unit:a@.service", "a@.service", "a@NAME.service"),
        ("systemd:unit:batch.slice", "batch.slice", "systemd:slice:batch.slice"),
        ("systemd:unit:backup.timer", "backup.timer", ".service"),
        ("systemd:slice:etl.service", "etl.service", "systemd:unit:etl.service"),
        ("systemd:slice:-.slice", "-.slice", '"host"'),
        ("cgroup:path:/", "/", '"host"'),
        ("cgroup:path:/sys/fs/cgroup/a", "/sys/fs/cgroup/a", "cgroup:path:/a"),
        ("container:id:web", "web", "docker ps"),
        ("container:id:4f1c", "4f1c", "docker ps"),
    ],
)
def test_names_the_bad_part_and_suggests(text: str, part: str, suggestion: str) -> None:
    with pytest.raises(SelectorError) as caught:
        parse(text)
    assert caught.value.part == part
    assert suggestion in caught.value.suggestion


@given(st.text() | st.tuples(st.sampled_from(list(SelectorKind)), st.text()).map(":".join))
def test_raises_nothing_else_and_one_spelling_parses_to_itself(text: str) -> None:
    try:
        selector = parse(text)
    except SelectorError:
        return
    assert parse(str(selector)) == selector
