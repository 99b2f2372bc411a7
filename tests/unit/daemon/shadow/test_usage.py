# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import tomllib

from licagent.daemon.shadow.usage import suggestion


def test_what_is_suggested_can_be_pasted() -> None:
    for executable in ("/usr/bin/curl", '/tmp/a "quoted" \\ name', "/tmp/\n[[binding]]"):
        text = suggestion("orders", "alice", executable, "")
        (binding,) = tomllib.loads(text)["binding"]
        assert binding["selectors"] == [f"unix:path:{executable}", "unix:user:alice"]
    assert 'selectors = ["host"]' in suggestion("orders", "", "", "")
