# SPDX-License-Identifier: Apache-2.0
"""What can be judged without a daemon: policy files, licenses, settings, this host's basics."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from licagent.cli.files import read_text
from licagent.cli.session import refused
from licagent.local.errors import ErrorCode, LocalError

if TYPE_CHECKING:
    from licagent.domain.config import AgentConfig
    from lictoken.claims import License


@dataclass(frozen=True, slots=True)
class Licenses:
    """The license files of a folder: those that verify, and why the others do not."""

    known: Mapping[str, License]  # by jti; of two generations the newer
    problems: Sequence[Mapping[str, object]]  # file, message, suggestion


def policy_files(directory: Path) -> list[Path]:
    """The policy's files in the order the daemon reads them. LocalError if unreadable."""
    try:
        return sorted(path for path in directory.iterdir() if path.suffix == ".toml")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise LocalError(ErrorCode.PERMISSION, f"{directory}: {error.strerror}") from error


def read_policy_files(paths: Sequence[Path]) -> list[tuple[str, str]]:
    """Name and text of each, as `parse_policy` takes them."""
    from licagent.domain.policy import FILE_BYTES_MAX

    return [(str(path), read_text(path, FILE_BYTES_MAX)) for path in paths]


def read_licenses(config: AgentConfig) -> Licenses:
    """Verify every *.lic of the configuration as the daemon does, its clock aside."""
    from lictoken.errors import TokenError
    from lictoken.trust import TrustStore
    from lictoken.verify import read_license_file, verify_license

    known: dict[str, License] = {}
    problems: list[Mapping[str, object]] = []
    try:
        paths = sorted(config.licenses_dir.glob("*.lic"))
        trust = TrustStore.load(config.trust_path) if paths else TrustStore()
    except TokenError as error:
        return Licenses({}, [_license_problem(config.trust_path, error)])
    for path in paths:
        try:
            license_ = verify_license(read_license_file(path), trust)
        except TokenError as error:
            problems.append(_license_problem(path, error))
            continue
        other = known.get(license_.jti)
        if other is None or other.generation < license_.generation:
            known[license_.jti] = license_
    return Licenses(known, problems)


def _license_problem(path: Path, error: Any) -> Mapping[str, object]:
    return {
        "file": str(path),
        "line": 0,
        "key": "",
        "message": f"{error.detail} [{error.refusal.value}]",
        "suggestion": error.next_step,
    }


def check_policy(
    files: Sequence[tuple[str, str]], licenses: Licenses, config: AgentConfig
) -> dict[str, Any]:
    """What the files describe together, in numbers. LocalError REFUSED with every problem."""
    from licagent.domain.compiler import compile_policy
    from licagent.domain.failsafe import failsafe_entries, read_resolvers
    from licagent.domain.policy import PolicyError, parse_policy

    try:
        policy = parse_policy(files, licenses.known)
        tables = compile_policy(
            policy,
            licenses.known,
            _Numbers(),
            _uid,
            failsafe_entries(config.failsafe, read_resolvers()),
            groups=_gid,
        )
    except PolicyError as error:
        raise refused("the policy is refused", error.problems) from error
    return {
        "ok": True,
        "files": [name for name, _ in files],
        "resources": len(policy.resources),
        "bindings": len(policy.bindings),
        "rules": len(tables.rules),
        "warnings": list(licenses.problems),
    }


class _Numbers:
    """Numbers that last as long as this check (the daemon's own are kept on disk)."""

    def __init__(self) -> None:
        self._given: dict[tuple[str, str], int] = {}

    def number(self, space: str, name: str) -> int:
        """The number of `name`: the same each time it is asked for."""
        return self._given.setdefault((space, name), len(self._given) + 1)


def _uid(name: str) -> int | None:
    import pwd

    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _gid(name: str) -> int | None:
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def host_checks(config: AgentConfig) -> list[dict[str, object]]:
    """The checks of `doctor` that need no daemon: name, ok, detail, hint."""
    return [_root(), _btf(), _cgroup2(), _bpffs(config), _trust(config), _state(config)]


def _check(name: str, ok: bool, detail: str, hint: str = "") -> dict[str, object]:
    return {"name": name, "ok": ok, "detail": detail, "hint": "" if ok else hint}


def _root() -> dict[str, object]:
    uid = os.geteuid()
    return _check("root", uid == 0, f"uid {uid}", "run doctor as root: it sees more then")


def _btf() -> dict[str, object]:
    there = Path("/sys/kernel/btf/vmlinux").exists()
    detail = "the kernel describes its types" if there else "no /sys/kernel/btf/vmlinux"
    return _check("kernel BTF", there, detail, 'loader "prebuilt" needs it; "bcc" does without')


def _mounts(kind: str) -> list[str]:
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    rows = [line.split(" ") for line in lines.splitlines()]
    return [row[1] for row in rows if len(row) > 2 and row[2] == kind]


def _cgroup2() -> dict[str, object]:
    found = _mounts("cgroup2")
    detail = f"mounted at {found[0]}" if found else "not mounted"
    return _check("cgroup v2", bool(found), detail, "mount -t cgroup2 none /sys/fs/cgroup")


def _bpffs(config: AgentConfig) -> dict[str, object]:
    where = str(config.bpffs_dir)
    found = [mount for mount in _mounts("bpf") if where == mount or where.startswith(mount + "/")]
    detail = f"{where} is on the one at {found[0]}" if found else f"{where} is on none"
    return _check("BPF file system", bool(found), detail, "mount -t bpf bpffs /sys/fs/bpf")


def _trust(config: AgentConfig) -> dict[str, object]:
    from lictoken.errors import TokenError
    from lictoken.trust import TrustStore

    try:
        store = TrustStore.load(config.trust_path)
    except TokenError as error:
        return _check("trusted keys", False, error.detail, error.next_step)
    keys = "1 key" if len(store) == 1 else f"{len(store)} keys"
    return _check("trusted keys", len(store) > 0, f"{keys} in {config.trust_path}")


def _state(config: AgentConfig) -> dict[str, object]:
    path = config.state_dir
    try:
        mode = path.stat().st_mode & 0o777
    except FileNotFoundError:
        return _check("state folder", True, f"{path} is made by the daemon's first start")
    except OSError as error:
        return _check("state folder", False, f"{path}: {error.strerror}", "run doctor as root")
    hint = f"chmod 700 {path}"
    return _check("state folder", mode & 0o077 == 0, f"{path} has mode {mode:o}", hint)
