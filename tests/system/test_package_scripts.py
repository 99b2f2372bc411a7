# SPDX-License-Identifier: Apache-2.0
"""What the packages' scripts have systemd do, and in which order.

They run in a copy of this machine's file system in which `systemctl` is a program that writes down
what it is asked; tests/vm/test_package.py has a systemd that does it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.root_copy import RootCopy

PACKAGING = Path(__file__).parents[2] / "packaging"

SYSTEMCTL = """#!/bin/sh
echo "$@" >>/run/said
case " $* " in
    *' --quiet is-enabled '*) grep -q enabled /run/enabled ;;
    *' is-enabled '*) cat /run/enabled ;;
    *' --quiet is-active '*) test -e /run/active ;;
    *' is-active '*) if test -e /run/active; then echo active; else echo inactive; false; fi ;;
esac
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[RootCopy]:
    """A machine under systemd, on which the service is on and runs."""
    made = RootCopy(tmp_path)
    made.run(
        "mkdir -p /run/systemd/system && touch /run/active && echo enabled >/run/enabled && "
        # Containers have one that forbids to start anything.
        "rm -f /usr/sbin/policy-rc.d /usr/bin/systemctl && "
        f"cat >/usr/bin/systemctl <<'END'\n{SYSTEMCTL}END\n"
        "chmod 0755 /usr/bin/systemctl"
    )
    yield made
    made.close()


def of_deb(name: str) -> str:
    """A Debian package's script, without what debhelper adds."""
    return (PACKAGING / "deb" / name).read_text()


def of_rpm(section: str) -> str:
    """A scriptlet of the .rpm."""
    spec = (PACKAGING / "rpm/licagent.spec").read_text()
    found = re.search(rf"^%{section}\n(.*?)(?=^%)", spec, re.MULTILINE | re.DOTALL)
    assert found, section
    return found[1]


def done(copy: RootCopy, script: str, *arguments: str) -> tuple[list[str], str]:
    """What the script has systemd change, and what it says."""
    copy.run(f"cat >/tmp/script <<'END'\n{script}\nEND\n: >/run/said")
    told = copy.run(f"sh /tmp/script {' '.join(arguments)}")
    asked = copy.run("cat /run/said").splitlines()
    changes = [re.sub(r"--(system|quiet|no-reload) ", "", each) for each in asked]
    return [each for each in changes if not each.startswith("is-")], told


def test_removing_the_control_plane_stops_it_first(copy: RootCopy) -> None:
    """Purging deletes keys and database, and the user whom it runs as."""
    stops = [["stop licplane.service licplane-migrate.service"]]
    stops += [["disable --now licplane.service", "stop licplane-migrate.service"]]
    assert [
        done(copy, of_deb("licplane.prerm"), "remove")[0],
        done(copy, of_rpm("preun -n licplane"), "0")[0],
    ] == stops
    assert done(copy, of_deb("licplane.prerm"), "upgrade", "0.2.0")[0] == []
    assert done(copy, of_rpm("preun -n licplane"), "1")[0] == []


def test_an_upgrade_of_the_control_plane_starts_it_by_its_new_unit(copy: RootCopy) -> None:
    deb = done(copy, of_deb("licplane.postinst"), "configure", "0.1.0")
    assert deb == (["daemon-reload", "restart licplane.service"], "")
    rpm = done(copy, of_rpm("posttrans -n licplane"))
    assert rpm == (["daemon-reload", "try-restart licplane.service"], "")


def test_what_was_stopped_stays_so_and_its_unit_is_the_new_one(copy: RootCopy) -> None:
    copy.run("rm /run/active")
    done(copy, of_deb("licplane.prerm"), "upgrade", "0.2.0")
    assert done(copy, of_deb("licplane.postinst"), "configure", "0.1.0")[0] == ["daemon-reload"]
    assert "No such" in copy.run("ls /run/licplane.stays-down", check=False)


def test_a_first_installation_says_nothing_of_a_server_that_nobody_has_enabled(
    copy: RootCopy,
) -> None:
    copy.run("rm /run/active; echo off >/run/enabled")
    assert done(copy, of_deb("licplane.postinst"), "configure") == (["daemon-reload"], "")
