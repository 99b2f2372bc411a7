# SPDX-License-Identifier: Apache-2.0
"""docs/reference/settings.md: the settings of the agent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from generator.pages import page, table
from licagent.daemon.settings_keeper import LIVE
from licagent.domain.config import AgentConfig
from licagent.domain.config_reader import DEFAULT_PATH, PATH_VARIABLE, PREFIX, SETTINGS, values

_SETTINGS: Final = {
    "mode": "`observe` refuses nothing and reports what it would refuse; `enforce` lets the mode "
    "of each resource rule",
    "config_dir": "where `licenses/*.lic`, `policy.d/*.toml` and `trust.jwks` are",
    "state_dir": "what must survive: records of licenses and revocations, clock, events. One "
    "daemon at a time",
    "runtime_dir": "holds the local socket, `licagent.sock`; its path may have 107 bytes",
    "bpffs_dir": "where programs and maps are pinned, so that they outlive the daemon. A BPF file "
    "system is mounted if there is none",
    "cgroup_root": "the cgroup v2 folder in which licenses are asked for; `auto` is the mount, "
    "that is, every process",
    "loader": "`prebuilt` objects through libbpf, `bcc`, or `auto`: what the kernel takes first",
    "labels": "what the host says about itself, for the scope of licenses: `{ environment = "
    '"production", region = "eu-1" }`; also `org`, `project`',
    "failsafe": "[what always passes](policy.md); replaces the built-in list",
    "existing_sockets": "unlicensed connections that are older than the agent: `cut`, or `keep` "
    "them as shadow usage",
    "control": "the control plane: `auto` (as enrolled), `off` (no link; what it gave stays in "
    "force while its leases last), or `host:port` in place of the enrolled address",
    "report_interval_s": "seconds between reports of host state to the control plane, at most "
    "3600; `0`: as it asks",
    "metering": "`on`: what every process uses is measured and committed to the ledger; `off`: "
    "nothing is measured: what there is is committed once, then the kernel counts no more. What "
    "was committed is still delivered. On again, the time between is nobody's, and a gap says so",
    "metering_interval_s": "seconds between commits of usage, 1 to 3600: the most that a loss of "
    "power takes. It grows by itself while the spool fills up",
    "spool_max_bytes": "bytes of usage on disk, at least 16 MiB. Reached with nothing "
    "acknowledged, usage stays in the kernel, merged; on a host that has joined no control plane "
    "the oldest is dropped, and named as a gap",
    "footprint": "[storage that is measured](metering.md): tables of `name`, `path`, and where "
    "wanted `user`, `project`, `resource`, `every_s`, `limit_s`, `cross_devices`",
    "metrics_listen": "address and port where [metrics and health](../how-to/monitor.md) are "
    "served over plain HTTP, to whoever reaches it: keep to `127.0.0.1:9795` or a network of "
    "monitors; `off`: nowhere",
}


def settings() -> str:
    """docs/reference/settings.md."""
    defaults = values(AgentConfig())
    return page(
        "Settings",
        f"`{DEFAULT_PATH}`, or the file that `{PATH_VARIABLE}` or `--config` names. Each key is "
        f"also `{PREFIX}<KEY>` in the environment, which wins over the file. An unknown key or a "
        "bad value is refused with the file, the line and what to write instead. The daemon then "
        "goes on, or starts, with the last good settings, and `licagent status` is degraded and "
        "says so; only where there never were good ones it does not start. `licagent config check` "
        "reads the settings as the daemon does and shows where each value comes from.",
        table(
            ("key", "default", "meaning"),
            ((f"`{key}`", _default(key, defaults[key]), _SETTINGS[key]) for key in SETTINGS),
        ),
        '```toml\nmode = "enforce"\nlabels = { environment = "production", region = "eu-1" }\n```',
        f"{_listed(LIVE)} are in force after `systemctl reload licagent` (SIGHUP); the others wait "
        "for the next start (`settings-wait` in the status), and no connection notices a restart. "
        "Licenses, policy and trust are read again on SIGHUP, and by `licagent policy apply`.",
    )


def _listed(keys: Iterable[str]) -> str:
    """`a`, `b` and `c`."""
    *first, last = (f"`{key}`" for key in keys)
    return f"{', '.join(first)} and {last}"


def _default(key: str, value: str) -> str:
    if key == "failsafe":
        return "see [policy](policy.md)"
    return f"`{value}`" if value else "none"
