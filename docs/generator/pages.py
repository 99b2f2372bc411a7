# SPDX-License-Identifier: Apache-2.0
"""Reference pages that are made from the code: hooks, reasons, settings, limits.

`build_reference.py` writes them. Words for people stand here; names, numbers and which of them
there are come from the code, and one that has no words is an error.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from typing import Final

from generator.structs import MapDefinition, map_definitions
from licagent.cli.sentences import why
from licagent.daemon.doctor import OPEN_ROUTES
from licagent.daemon.settings_keeper import LIVE
from licagent.domain.config import (
    DEFAULT_PATH,
    PATH_VARIABLE,
    PREFIX,
    SETTINGS,
    AgentConfig,
    values,
)
from licagent.domain.reason import REASON_ERRNO, Reason
from licagent.host.digests import FILE_MAX_BYTES
from licagent.host.lanes import LANE_MAX
from licagent.kernel.hooks import CORE_OBJECTS, HOOKS, LSM_HOOKS

NOTICE: Final = "generated from the code by docs/build_reference.py; do not edit"

Row = Iterable[object]


def page(title: str, *parts: str) -> str:
    """A page of these paragraphs and tables."""
    head = ("<!-- SPDX-License-Identifier: Apache-2.0 -->", f"<!-- {NOTICE} -->", f"# {title}")
    return "\n".join(head) + "\n\n" + "\n\n".join(parts) + "\n"


def table(titles: Row, rows: Iterable[Row]) -> str:
    """A table in Markdown."""
    lines = [titles, ("---" for _ in titles), *rows] if isinstance(titles, tuple) else []
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


# ------------------------------------------------------------------------------------- hooks


def hooks() -> str:
    """docs/reference/hooks.md."""
    return page(
        "Hooks and routes",
        "What licagent attaches, what each program closes, and what is lost where a kernel lacks "
        "it. `licagent doctor` prints this table for the host it runs on, with the loader of each "
        "program and the kernel's answer where it was refused; `licagent status` names what is "
        "missing. Nothing is passed over in silence: without a required hook the host is "
        "`degraded` (exit status 150).",
        "The kernel column is what the kernel's history says is needed. What was tried where is "
        "in [kernels](../kernels.md).",
        "## Programs",
        table(
            ("hook", "closes", "without it", "required", "loader bcc", "first kernel"),
            (
                (
                    f"`{hook.name}`",
                    hook.closes,
                    hook.without,
                    "yes" if hook.required else "no",
                    "yes" if hook.object in CORE_OBJECTS else "no, libbpf loads it",
                    hook.kernel,
                )
                for hook in HOOKS
            ),
        ),
        "bcc compiles the enforcement core; where the kernel has BTF, libbpf loads the rest beside "
        "it. Without BTF there is the core alone.",
        "`tc_egress` is the one program that is attached to interfaces: the daemon puts it on all "
        "of all network namespaces that have a process or a mount, before a policy comes into "
        "force, and looks for new ones when an interface comes or goes in its own namespace (the "
        "host end of a container's does) and every five seconds. An interface that comes while the "
        "daemon is dead has none. It meets a packet socket by its frames only, so there "
        "`unix:uid`, `unix:user`, `host` and the selectors of cgroups hold, and `unix:gid`, "
        "`unix:group`, `unix:path` and `unix:sha256` never do. Encapsulated packets (MPLS, "
        "PPPoE, tunnels) are not looked into. It needs TCX; the older way to tc, clsact, is not "
        "used, because it has no links that end with the agent's pins.",
        "## Where the kernel has BPF among its security modules",
        "With `bpf` in `lsm=` on the kernel's command line (`cat /sys/kernel/security/lsm` says "
        "whether it is) these are loaded as well. `doctor` lists them only there; each is made "
        "to run once when it is loaded, because a kernel without the module attaches such programs "
        "and never calls them.",
        table(
            ("hook", "closes", "without it", "first kernel"),
            ((f"`{hook.name}`", hook.closes, hook.without, hook.kernel) for hook in LSM_HOOKS),
        ),
        '**Other families.** A resource with `protocol = "other"` and the destination '
        "`0.0.0.0/0` or `::/0` names sockets of other families, and who has a license for it may "
        "make them. Where no resource does, `lsm_socket_create` refuses them while the host "
        "enforces some network, because they lead around it; events name the resource "
        "`other-families`. While networks are only observed they are shadow usage, also where the "
        "host enforces a service. Not asked about are families that lead to no network (UNIX, "
        "netlink, key, the kernel's crypto), IP, which has its own hooks, the kernel's own "
        "sockets, and packet and PPPoX sockets of a process that has CAP_NET_ADMIN in the host's "
        "network: a DHCP client or pppd, on which the way in may depend, and which could set "
        "routes and filters anyway.",
        "**Self-protection.** While the daemon runs, other processes are refused (EPERM) what "
        "would take enforcement away behind its back, also as root: each attempt is an event of "
        "kind `tampering`. It ends with the daemon, so `licagent detach`, an upgrade or a "
        "removal need no key that could be lost. Who may stop the daemon may detach: that "
        "is seen by systemd and by the control plane, not prevented. Loading a kernel module or "
        "booting another kernel is not prevented either. A daemon in a process namespace of its "
        "own locks nothing, because it does not know its number in the kernel (the metric "
        "`licagent_guard_locked` is 0). Tools that open a map for writing only to "
        "read it, and debuggers on the daemon, are refused like everybody else: stop the daemon "
        "for them.",
        "## Routes that stay open",
        "Ways to a resource that none of these programs sees. They need a privilege, or somebody "
        "who holds a licensed socket and gives it away. `doctor` leaves out those that an LSM "
        "program of the host closes.",
        table(
            ("route", "why", "a kernel that closes it"),
            ((route.name, route.detail, route.kernel_needed) for route in OPEN_ROUTES),
        ),
        "A [local proxy](../threat-model.md) is not in the table: what connects through it uses "
        "the proxy's license, as with every control on sockets.",
    )


# ----------------------------------------------------------------------------------- reasons

_NEXT: Final[Mapping[Reason, str]] = {
    Reason.LICENSED: "nothing",
    Reason.NO_RESOURCE: "nothing: what no resource names is not licensed",
    Reason.FAILSAFE: "nothing: [the failsafe list](policy.md) lets it through",
    Reason.BREAK_GLASS: "`licagent break-glass --end`, when the emergency is over",
    Reason.NO_BINDING: "`licagent explain PID` names the selectors that are missing; add a "
    "binding, or use `licagent run --license ID -- CMD`",
    Reason.EXPIRED: "add the renewed license: `licagent license add FILE`",
    Reason.NOT_YET_VALID: "wait; `licagent license show ID` has the beginning, "
    "`licagent status -v` the trusted time",
    Reason.LEASE_LOST: "`licagent status` has the link to the control plane, which leases the "
    "license to this host, and when leases end",
    Reason.REVOKED: "ask the issuer; `licagent events` has who revoked it and why",
    Reason.CONDITION: "`licagent explain PID` names the [condition](conditions.md), and what was "
    "found; or the other host, environment or region, or a limit that this version cannot hold",
    Reason.NO_SEAT: "this version has no seats and never gives this reason",
    Reason.QUOTA: "this version has no quotas and never gives this reason",
    Reason.MALFORMED: "no ordinary program sends such packets; see who does in `licagent events`",
}


def reasons() -> str:
    """docs/reference/reasons.md."""
    known = [reason for reason in Reason if reason is not Reason.NONE]
    return page(
        "Reasons",
        "Each decision has one reason: in events, counters, `explain`, and in the error that a "
        "refused program sees. Numbers are those of `bpf/licagent.h` and never used again.",
        table(
            ("reason", "number", "what it means", "errno", "a program prints", "what to do"),
            (
                (
                    f"`{reason.name.lower()}`",
                    reason.value,
                    why(reason.name),
                    _errno(reason),
                    _message(reason),
                    _NEXT[reason],
                )
                for reason in known
            ),
        ),
        "The errno is that of connect(2), sendto(2), sendmsg(2), bind(2) or socket(2). Kernels "
        f"before 5.18 cannot choose it: there a program sees EPERM, `{os.strerror(errno.EPERM)}`, "
        "whatever the reason is. A packet that is dropped without a call to answer (raw sockets, "
        "packets of an open connection) fails with EPERM or is lost silently.",
        "curl hides the errno: `curl -v` has the line `Immediate connect fail for ...: "
        f"{os.strerror(errno.ENOKEY)}`, without `-v` it prints `Couldn't connect to server` and "
        "ends with status 7. nc, ssh, psql, Python and most others print it.",
        "A connection that is open when its license ends is closed with ECONNABORTED "
        f"(`{os.strerror(errno.ECONNABORTED)}`) by a running daemon. While no daemon runs the "
        "kernel drops its packets, and it is closed when the daemon is back.",
        "## Verdicts",
        table(
            ("verdict", "meaning"),
            (
                ("`allow`", "used under a license, or let through by break-glass"),
                ("`deny`", "refused before the first byte"),
                ("`shadow`", "let through in observe; enforce would have refused it"),
                (
                    "`cut`",
                    "a packet of an open connection was dropped: its license ended meanwhile",
                ),
            ),
        ),
    )


def _errno(reason: Reason) -> str:
    number = REASON_ERRNO.get(reason)
    return "-" if number is None else errno.errorcode[number]


def _message(reason: Reason) -> str:
    number = REASON_ERRNO.get(reason)
    return "-" if number is None else f"`{os.strerror(number)}`"


# ---------------------------------------------------------------------------------- settings

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


# ------------------------------------------------------------------------------------ limits

_OLD_STAYS: Final = "the policy is not put in force, the old one stays"


def limits() -> str:
    """docs/reference/limits.md."""
    found = map_definitions()
    by_name = {each.name: each for each in found}
    return page(
        "Limits and memory",
        "Sizes of keys, values and maps are read from `bpf/` when this "
        "page is made. What a host really uses, and the formula against the kernel's own count, "
        "is printed by `./dev bench --only memory`.",
        "## What fits",
        table(
            ("what", "at most", "beyond it"),
            (
                ("rules in force", _half(by_name, "rules"), _OLD_STAYS),
                ("networks in force, IPv4", _half(by_name, "networks4"), _OLD_STAYS),
                ("networks in force, IPv6", _half(by_name, "networks6"), _OLD_STAYS),
                ("port prefixes in force", _half(by_name, "ports"), _OLD_STAYS),
                ("licenses on a host", _whole(by_name, "licenses"), "the license is refused"),
                ("paths in selectors", _whole(by_name, "paths"), _OLD_STAYS),
                (
                    "measured executables",
                    _whole(by_name, "contents"),
                    "who owns most of them loses the oldest, to be measured again when they run",
                ),
                (
                    "bytes of an executable that is measured",
                    f"{FILE_MAX_BYTES:,}",
                    "it matches no `unix:sha256`",
                ),
                (
                    "executables of one owner that wait to be measured",
                    f"{LANE_MAX}",
                    "further ones are found seconds later, by what runs and what is installed",
                ),
                (
                    "processes",
                    _whole(by_name, "processes"),
                    "new ones match no `unix:path` and no `unix:sha256`; `licagent doctor` says so",
                ),
                (
                    "cgroups that selectors name, and those below",
                    _whole(by_name, "cgroups"),
                    "new ones match no unit, slice, path or container; `licagent doctor` says so",
                ),
                (
                    "(license, resource, verdict, reason) counted apart",
                    _whole(by_name, "counters"),
                    "further ones are counted together; `licagent doctor` says so",
                ),
                (
                    "bytes of events waiting for the daemon",
                    _whole(by_name, "events"),
                    "events are dropped and counted; counters stay exact",
                ),
            ),
        ),
        "Rules, networks and ports have room for two generations, so that a policy is switched in "
        "one step. A license file has 16 KiB at most, a settings file 1 MiB. Licenses that share "
        "one rule: 4. Scopes of one cgroup, its own and its ancestors': 8.",
        "## Kernel memory",
        table(
            ("one more", "adds at most", "of which key and value"),
            (
                ("rule", _bound(by_name["rules"]), _payload(by_name["rules"])),
                ("IPv4 network", _bound(by_name["networks4"]), _payload(by_name["networks4"])),
                ("IPv6 network", _bound(by_name["networks6"]), _payload(by_name["networks6"])),
                ("port prefix", _bound(by_name["ports"]), _payload(by_name["ports"])),
                ("running process", _bound(by_name["processes"]), _payload(by_name["processes"])),
                (
                    "open socket with a tag",
                    _bound(by_name["tags"]),
                    f"{by_name['tags'].value_bytes}",
                ),
            ),
        ),
        "In bytes, by the formula below. Licenses cost nothing more each: their table is made "
        "whole.",
        _formula(),
        "## Maps",
        table(
            ("map", "type", "key", "value", "entries"),
            (
                (
                    f"`{each.name}`",
                    each.kind,
                    each.key_bytes or "-",
                    each.value_bytes or "-",
                    f"{each.max_entries:,}"
                    if each.max_entries
                    else f"one a {each.kind.split()[0]}",
                )
                for each in found
            ),
        ),
    )


def _half(maps: Mapping[str, MapDefinition], name: str) -> str:
    return f"{maps[name].max_entries // 2:,}"


def _whole(maps: Mapping[str, MapDefinition], name: str) -> str:
    return f"{maps[name].max_entries:,}"


def _payload(each: MapDefinition) -> str:
    return f"{each.key_bytes} + {each.value_bytes}"


def _bound(each: MapDefinition) -> str:
    key, value = _round8(each.key_bytes), _round8(each.value_bytes)
    match each.kind:
        case "hash":
            return f"{48 + key + value:,}"
        case "LPM trie":
            return f"{2 * (40 + key + value):,}"
        case "socket storage":
            return f"{192 + value:,}"
    raise LookupError(f"no formula for a {each.kind}")


def _round8(count: int) -> int:
    return (count + 7) // 8 * 8


def _formula() -> str:
    from tests.bench.kernel_memory import FORMULA  # one formula: the bench holds it to be true

    return FORMULA
