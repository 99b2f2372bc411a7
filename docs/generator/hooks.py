# SPDX-License-Identifier: Apache-2.0
"""docs/reference/hooks.md: what is attached, what it closes, what stays open."""

from __future__ import annotations

from generator.pages import page, table
from licagent.daemon.doctor import OPEN_ROUTES
from licagent.kernel.hooks import CORE_OBJECTS, HOOKS, LSM_HOOKS


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
