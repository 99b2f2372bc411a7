# SPDX-License-Identifier: Apache-2.0
"""Executables by their path: what each way to run a program counts as.

The table in docs/reference/identity.md gives these answers; each test is one of its rows.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Final

import pytest
from tests.kernel.harness.dial import answer_of, dialer, install
from tests.kernel.harness.subjects import NO_LICENSE, Rules, path_of, sha256, until
from tests.support.hanging import hanging_filesystem

pytest_plugins = ["tests.kernel.harness.fixtures"]

NOBODY: Final = 65534


def test_the_program_at_the_path(by_path: Rules, dial: Path, other: Path) -> None:
    assert answer_of(by_path.cgroup, dial, by_path.to) == "OK"
    assert answer_of(by_path.cgroup, other, by_path.to) == NO_LICENSE


def test_a_copy_has_the_content_and_not_the_path(by_path: Rules, dial: Path) -> None:
    copy = Path(shutil.copy2(dial, dial.with_name("copy")))

    assert answer_of(by_path.cgroup, copy, by_path.to) == NO_LICENSE
    by_path.allow(sha256(dial))
    until("OK", by_path, copy)


def test_a_program_that_was_renamed_has_the_content_and_not_the_path(
    by_path: Rules, dial: Path
) -> None:
    digest = sha256(dial)
    renamed = dial.rename(dial.with_name("renamed"))

    assert answer_of(by_path.cgroup, renamed, by_path.to) == NO_LICENSE
    by_path.allow(digest)
    until("OK", by_path, renamed)


@pytest.mark.parametrize("name", ["as-it-is", "/usr/bin/curl", ""])
def test_argv0_plays_no_part(name: str, by_path: Rules, dial: Path, other: Path) -> None:
    def called(program: Path, name: str) -> list[str]:
        return ["/bin/bash", "-c", 'exec -a "$0" "$1"', name, str(program)]

    assert answer_of(by_path.cgroup, called(dial, name), by_path.to) == "OK"
    assert answer_of(by_path.cgroup, called(other, str(dial)), by_path.to) == NO_LICENSE


def test_symbolic_links_are_followed(by_path: Rules, dial: Path, other: Path) -> None:
    link = dial.with_name("link")
    link.symlink_to(dial)
    assert answer_of(by_path.cgroup, link, by_path.to) == "OK"

    by_path.allow(path_of(link))
    assert answer_of(by_path.cgroup, dial, by_path.to) == "OK"
    assert answer_of(by_path.cgroup, other, by_path.to) == NO_LICENSE


def mounted(what: Path, over: Path) -> list[str]:
    script = 'mount --bind "$1" "$2" && exec "$2"'
    return ["unshare", "--mount", "sh", "-c", script, "sh", str(what), str(over)]


def test_a_bind_mount_over_the_path_is_known_by_where_it_comes_from(
    by_path: Rules, dial: Path, other: Path
) -> None:
    assert answer_of(by_path.cgroup, mounted(other, dial), by_path.to) == NO_LICENSE
    assert answer_of(by_path.cgroup, mounted(dial, other), by_path.to) == "OK"


def test_a_bind_mount_of_the_folder_shows_the_same_programs(by_path: Rules, dial: Path) -> None:
    elsewhere = dial.with_name("elsewhere")
    elsewhere.mkdir()
    script = 'mount --bind "$1" "$2" && exec "$2/dial"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(dial.parent), str(elsewhere)]

    assert answer_of(by_path.cgroup, command, by_path.to) == "OK"


def test_a_hard_link_has_the_content_and_not_the_path(by_path: Rules, dial: Path) -> None:
    link = dial.with_name("hard-link")
    link.hardlink_to(dial)

    assert answer_of(by_path.cgroup, link, by_path.to) == NO_LICENSE
    assert answer_of(by_path.cgroup, dial, by_path.to) == "OK"
    by_path.allow(sha256(dial))
    until("OK", by_path, link)


def test_an_overwritten_program_keeps_its_path(by_path: Rules, dial: Path, other: Path) -> None:
    dial.write_bytes(other.read_bytes())

    assert answer_of(by_path.cgroup, dial, by_path.to) == "OK"


def test_a_package_upgrade_keeps_the_path_and_changes_the_content(
    by_path: Rules, dial: Path
) -> None:
    with dialer(by_path.cgroup, dial, by_path.to) as running:
        before = running.ask()
        install(dial, variant="upgraded")

        assert (before, running.ask()) == ("OK", "OK")
        assert answer_of(by_path.cgroup, dial, by_path.to) == "OK"
        by_path.allow(sha256(dial))
        until("OK", by_path, dial)
        assert running.ask() == NO_LICENSE, "it still runs the old content"


def test_the_folder_may_be_replaced_by_an_upgrade(by_path: Rules, dial: Path) -> None:
    old = dial.parent.with_name(dial.parent.name + "-old")
    dial.parent.rename(old)
    try:
        dial.parent.mkdir(mode=0o755)
        shutil.copy2(old / "dial", dial)

        # The daemon looks for such folders every few seconds.
        until("OK", by_path, dial)
        assert answer_of(by_path.cgroup, old / "dial", by_path.to) == NO_LICENSE
    finally:
        shutil.rmtree(old)


def test_a_program_that_began_before_its_folder_was_known_is_known_later(
    by_path: Rules, dial: Path
) -> None:
    """As a service does that starts as soon as its file system is mounted."""
    old = dial.parent.with_name(dial.parent.name + "-old")
    dial.parent.rename(old)
    try:
        dial.parent.mkdir(mode=0o755)
        shutil.copy2(old / "dial", dial)
        with dialer(by_path.cgroup, dial, by_path.to) as running:
            running.until("OK")
    finally:
        shutil.rmtree(old)


def test_a_program_on_a_filesystem_that_hangs_holds_up_no_revocation(
    rules: Rules, dial: Path, folder: Path
) -> None:
    far = folder / "far"
    far.mkdir()
    with hanging_filesystem(far):
        near_license, _far_license = rules.allow_each(
            ((path_of(dial),), {}), ((path_of(far / "program"),), {})
        )
        assert answer_of(rules.cgroup, dial, rules.to) == "OK"
        checks = rules.agent.call("doctor")["checks"]
        told = [row for row in checks if row["name"] == "selector" and str(far) in row["detail"]]
        assert "does not answer" in told[0]["detail"]

        rules.agent.revoke(near_license)
        assert answer_of(rules.cgroup, dial, rules.to) == "EKEYREVOKED"


def test_a_script_is_its_interpreter(rules: Rules, dial: Path) -> None:
    script = dial.with_name("script")
    script.write_text(f"#!{dial}\n")
    script.chmod(0o755)

    rules.allow(path_of(script))
    assert answer_of(rules.cgroup, script, rules.to) == NO_LICENSE
    rules.allow(path_of(dial))
    assert answer_of(rules.cgroup, script, rules.to) == "OK"


@pytest.fixture
def dynamic(folder: Path) -> Path:
    return install(folder / "dial-dynamic", "dial-dynamic")


def test_a_preloaded_library_acts_as_the_program(rules: Rules, dynamic: Path) -> None:
    library = install(dynamic.with_name("preload.so"), "preload")
    rules.allow(path_of(dynamic))

    preload = (f"LD_PRELOAD={library}",)
    with dialer(rules.cgroup, ["/usr/bin/env", *preload, str(dynamic)], rules.to) as running:
        of_the_library, of_the_program = running.answer(), running.ask()
    rules.allow(path_of(library))
    with dialer(rules.cgroup, ["/usr/bin/env", *preload, str(dynamic)], rules.to) as running:
        named = running.answer()

    assert of_the_library == of_the_program == "OK"
    assert named == NO_LICENSE


def test_the_dynamic_linker_as_a_launcher_is_the_dynamic_linker(
    rules: Rules, dynamic: Path
) -> None:
    found = re.search(rb"/lib[\w./-]*/ld-[\w.-]+", dynamic.read_bytes())
    assert found is not None, "it names no dynamic linker"
    linker = Path(found[0].decode())
    command = [str(linker), str(dynamic)]

    rules.allow(path_of(dynamic))
    as_program = answer_of(rules.cgroup, command, rules.to)
    rules.allow(path_of(linker))
    as_linker = answer_of(rules.cgroup, command, rules.to)

    assert answer_of(rules.cgroup, dynamic, rules.to) == NO_LICENSE
    assert (as_program, as_linker) == (NO_LICENSE, "OK")


@pytest.mark.parametrize("selector", [path_of, sha256])
def test_children_and_threads_are_what_their_process_is(
    selector: object, rules: Rules, dial: Path
) -> None:
    assert callable(selector)
    rules.allow(selector(dial))
    with dialer(rules.cgroup, dial, rules.to) as running:
        running.until("OK")

        assert running.ask("fork") == "OK"
        assert running.ask("thread") == "OK"


@pytest.mark.parametrize("how", ["exec", "fexec"])
def test_a_process_becomes_what_it_runs(how: str, by_path: Rules, dial: Path, other: Path) -> None:
    with dialer(by_path.cgroup, dial, by_path.to) as running:
        answers = [running.ask()]
        running.become(f"{how} {other}")
        answers.append(running.ask())
        running.become(f"{how} {dial}")
        answers.append(running.ask())

    assert answers == ["OK", NO_LICENSE, "OK"]


def test_a_setuid_program_is_used_by_who_started_it(rules: Rules, dial: Path) -> None:
    install(dial, mode=0o4755)

    rules.allow(path_of(dial), f"unix:uid:{NOBODY}")
    as_caller = answer_of(rules.cgroup, dial, rules.to, uid=NOBODY)
    rules.allow(path_of(dial), "unix:uid:0")
    as_owner = answer_of(rules.cgroup, dial, rules.to, uid=NOBODY)

    assert (as_caller, as_owner) == ("OK", NO_LICENSE)


def test_a_process_that_was_there_before_the_policy_is_known(rules: Rules, dial: Path) -> None:
    rules.agent.policy("")
    with dialer(rules.cgroup, dial, rules.to) as running:
        assert running.ask() == "OK", "nothing is licensed yet"

        rules.allow(path_of(dial))
        by_path = running.ask()
        rules.allow(sha256(dial))
        running.until("OK")
        rules.allow("unix:path:/nowhere/else")
        elsewhere = running.ask()

    assert (by_path, elsewhere) == ("OK", NO_LICENSE)


def test_a_path_longer_than_the_kernels_table_matches_nothing(rules: Rules, folder: Path) -> None:
    """The kernel cuts names at 63 bytes: no selector may stand for what is cut there."""
    short, exact = install(folder / ("n" * 62)), install(folder / ("n" * 63))
    longer = install(folder / ("n" * 63 + "-and-more"))

    rules.allow(path_of(exact))
    checks = rules.agent.call("doctor")["checks"]
    assert answer_of(rules.cgroup, longer, rules.to) == NO_LICENSE
    assert [row for row in checks if row["name"] == "selector" and "62" in row["detail"]], checks
    rules.allow(path_of(short))
    assert answer_of(rules.cgroup, short, rules.to) == "OK"
