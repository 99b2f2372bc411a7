# SPDX-License-Identifier: Apache-2.0
"""A host in a machine that is licensed by the test: its issuer, its files, its commands."""

from __future__ import annotations

import json
import os
import time
from typing import Any, Final

from tests.vm.machine import Machine, Ran
from tests.vm.states import START_S

from lictoken.claims import AUDIENCE, Entitlement, License, LicenseScope
from lictoken.keys import SigningKey
from lictoken.sign import sign_license
from lictoken.trust import TrustedKey, TrustStore

ISSUER: Final = "test-issuer"
CONFIG: Final = "/etc/licagent"


class LicensedHost:
    """The agent of an installed machine, with an issuer that it trusts."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.key = SigningKey.create(ISSUER)
        self._numbers: dict[str, int] = {}

    def set_up(self, mode: str = "enforce", settings: str = "") -> None:
        """Trust the issuer and take the mode; the daemon is started again."""
        trust = TrustStore([TrustedKey.of(self.key.public_key, ISSUER)])
        self.machine.write(f"{CONFIG}/trust.jwks", trust.to_bytes().decode())
        self.machine.write(f"{CONFIG}/agent.toml", f'mode = "{mode}"\n{settings}\n')
        # These came by no command of ours: a test that cuts the power is about what does.
        self.machine.run("sync")
        self.machine.run("systemctl restart licagent.service", timeout=START_S)

    def token(
        self,
        jti: str,
        resources: list[str],
        *,
        expires_in_s: float = 86_400,
        actions: tuple[str, ...] = ("connect", "bind"),
        now_s: float | None = None,
        generation: int = 1,
        **fields: Any,
    ) -> str:
        """The text of a license; `now_s` is the guest's wall clock where it is not this one's.

        A further generation of a license keeps its number, as a renewal does.
        """
        now = now_s or time.time()
        found = License(
            jti=jti,
            issuer=ISSUER,
            subject="tests",
            audience=AUDIENCE,
            number=self._numbers.setdefault(jti, len(self._numbers) + 1),
            generation=generation,
            issued_at_s=int(now) - 60,
            not_before_s=int(now) - 60,
            expires_at_s=int(now + expires_in_s + 0.999),
            scope=LicenseScope(org="tests"),
            entitlements=tuple(Entitlement(name, actions) for name in resources),
            **fields,
        )
        return sign_license(found, self.key)

    def license(self, jti: str, resources: list[str], **fields: Any) -> None:
        """Issue a license and install it by `licagent license add`."""
        token = self.token(jti, resources, **fields)
        self.machine.run("licagent license add - --timeout 100", stdin=token)

    def policy(self, text: str) -> None:
        """Put a policy in force by `licagent policy apply`."""
        self.machine.write("/root/test.toml", text)
        self.machine.run("licagent policy apply /root/test.toml --timeout 150", timeout=180)

    def status(self) -> dict[str, Any]:
        """`licagent status --json`, also where it is degraded."""
        ran = self.machine.run("licagent status --json --timeout 100", check=False)
        found: dict[str, Any] = json.loads(ran.stdout)
        return found

    def events(self) -> list[dict[str, Any]]:
        """The daemon's events, oldest first."""
        ran = self.machine.run("licagent events --json --limit 10000 --timeout 60")
        return [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]


def resource(
    name: str, port: int, *selectors: str, jti: str = "", cidr: str = "127.0.0.1/32"
) -> str:
    """Policy: a network resource that is enforced, and a binding for it if there are selectors."""
    text = f'[[resource]]\nname = "{name}"\nkind = "network"\nmode = "enforce"\n'
    text += f'destinations = [{{ cidr = "{cidr}", ports = ["{port}"], protocol = "tcp" }}]\n'
    return text + (binding(jti or name, *selectors) if selectors else "")


def binding(jti: str, *selectors: str) -> str:
    """Policy: the selectors, all of which must hold, and the license they are tied to."""
    return f"[[binding]]\nlicense = {json.dumps(jti)}\nselectors = {json.dumps(list(selectors))}\n"


DIAL: Final = (
    "import errno,socket,sys\n"
    "try:\n"
    " socket.create_connection((sys.argv[1],int(sys.argv[2])),60).close(); print('connected')\n"
    "except OSError as error:\n"
    " print(errno.errorcode.get(error.errno,str(error)))\n"
)
"""A program that says how connecting went: "connected", or the error's name."""


def refusal(name: str) -> str:
    """What a refused program sees on the chosen kernel: before 5.18 it is EPERM for any reason."""
    return "EPERM" if os.environ.get("LICAGENT_VM_KERNEL") == "5.10" else name


DENIED: Final = refusal("ENOKEY")
EXPIRED: Final = refusal("EKEYEXPIRED")
REVOKED: Final = refusal("EKEYREVOKED")


def dial(port: int, address: str = "127.0.0.1") -> str:
    """The shell command that connects: it prints "connected", or the error's name."""
    return f"/usr/bin/python3 /usr/local/bin/dial {address} {port}"


def put_dial(machine: Machine) -> None:
    """Install what `dial` runs, and a server on 127.0.0.1 for it: port 7001 to 7009."""
    machine.write("/usr/local/bin/dial", DIAL, mode=0o755)
    machine.write(
        "/usr/local/bin/listen",
        "#!/usr/bin/python3\nimport select,socket\n"
        "all=[socket.create_server(('0.0.0.0',port)) for port in range(7001,7010)]\n"
        "while True:\n"
        "  for each in select.select(all,[],[])[0]: each.accept()[0].close()\n",
        mode=0o755,
    )
    machine.run("systemd-run --quiet --unit=listen /usr/local/bin/listen")
    machine.wait_for("ss -Hltn sport = :7009 | grep -q .")


def said(ran: Ran) -> str:
    """What a dialling command said, as one word."""
    return ran.stdout.strip()
