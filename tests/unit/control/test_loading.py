# SPDX-License-Identifier: Apache-2.0
"""What a host without a control plane does not pay for."""

from __future__ import annotations

import subprocess
import sys
import textwrap


def test_grpc_is_loaded_only_when_there_is_somebody_to_talk_to(tmp_path):
    program = textwrap.dedent(
        """
        import asyncio, os, sys
        from pathlib import Path
        from licagent.control import enrolment, interface, report, session
        from licagent.store.catalog import CatalogStore
        from licagent.store.identity import IdentityStore
        from licagent.store.statedir import StateDir

        def loaded():
            return sorted({"grpc", "google.protobuf", "licapi"} & sys.modules.keys())

        assert not loaded(), loaded()
        state = StateDir(sys.argv[1])

        class Nobody:
            def changed(self, state):
                pass

        link = session.ControlSession(
            IdentityStore(state),
            CatalogStore(Path(sys.argv[1]) / "catalog.db"),
            Nobody(),
            session.ControlSettings(boot_id="b", agent_version="1"),
        )
        link.boot()

        async def run():
            task = asyncio.ensure_future(link.run())
            await asyncio.sleep(0.1)
            task.cancel()

        asyncio.run(run())
        assert link.state.phase is session.ControlPhase.UNENROLLED
        assert "grpc" not in sys.modules
        from licagent.control import transport
        assert "grpc" in sys.modules
        assert os.environ["GRPC_SSL_CIPHER_SUITES"].startswith("ECDHE-RSA")
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "state")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
