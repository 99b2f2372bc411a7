// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Sockets of other families, which no IP hook sees: AF_PACKET, AF_XDP, AF_VSOCK, SMC, RDS, TIPC,
 * Bluetooth and what else a kernel brings.
 *
 *   lsm/socket_create   before there is such a socket
 *
 * A resource with protocol "other" and destination 0.0.0.0/0 or ::/0 names them, and who has a
 * license for it may make them. Where no resource does, they are refused while the host enforces
 * some network: they lead around it. Never asked about are families that lead to no network
 * (UNIX, netlink, the kernel's crypto and key interfaces), IP itself, which has hooks of its own, and
 * packet and PPPoX sockets of who may reconfigure the host's network anyway (a DHCP client and
 * pppd must).
 */
#include "core.h"
#include "guard.h"
#include "report.h"
#include "scope.h"
#include "subject.h"
#include <bpf/bpf_tracing.h>

#define LIC_AF_UNSPEC 0
#define LIC_AF_UNIX 1
#define LIC_AF_KEY 15
#define LIC_AF_NETLINK 16
#define LIC_AF_PACKET 17
#define LIC_AF_PPPOX 24
#define LIC_AF_ALG 38
#define LIC_CAP_NET_ADMIN 12

static __always_inline int leads_nowhere(int family)
{
	return family == LIC_AF_UNSPEC || family == LIC_AF_UNIX || family == LIC_AF_INET ||
	       family == LIC_AF_INET6 || family == LIC_AF_KEY || family == LIC_AF_NETLINK ||
	       family == LIC_AF_ALG;
}

/* What makes links and their addresses: DHCP clients, pppd. */
static __always_inline int makes_links(int family)
{
	return family == LIC_AF_PACKET || family == LIC_AF_PPPOX;
}

/*
 * CAP_NET_ADMIN in the first user namespace and in the host's network. Who has it sets routes,
 * filters and tunnels, so refusing such a socket would close nothing; and the owner's
 * way in may hang on the lease that such a process renews, or on the line that it dials.
 */
static __always_inline int runs_the_network(struct task_struct *task, __u32 host)
{
	const struct cred *cred = BPF_CORE_READ(task, cred);
	__u64 capabilities = 0;

	/* By its place alone: the field is named otherwise before 6.3. */
	bpf_probe_read_kernel(&capabilities, sizeof(capabilities),
			      (void *)cred + bpf_core_field_offset(cred->cap_effective));
	return capabilities & (1ULL << LIC_CAP_NET_ADMIN) && !BPF_CORE_READ(cred, user_ns, level) &&
	       BPF_CORE_READ(task, nsproxy, net_ns, ns.inum) == host;
}

/* The helpers of current_owner() are not there for LSM programs of every kernel. */
static __always_inline void task_owner(struct task_struct *task, struct lic_subject *subject)
{
	subject->pid = BPF_CORE_READ(task, tgid);
	subject->uid = BPF_CORE_READ(task, cred, uid.val);
	subject->gid = BPF_CORE_READ(task, cred, gid.val);
	subject->cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
}

/* No resource names such sockets, and some network is licensed: refused if some is enforced. */
static __always_inline void judge_unnamed(const struct lic_control *ctl,
					  struct lic_decision *decision)
{
	decision->resource = LIC_FAMILY_RESOURCE;
	decision->reason = LIC_REASON_NO_BINDING;
	decision->now_ns = now_ns();
	if (!(policy_flags(ctl) & LIC_POLICY_ENFORCES_NETWORKS)) {
		decision->verdict = LIC_VERDICT_SHADOW;
	} else if (decision->now_ns < ctl->break_glass_until_ns) {
		decision->verdict = LIC_VERDICT_ALLOW;
		decision->reason = LIC_REASON_BREAK_GLASS;
	} else {
		decision->verdict = LIC_VERDICT_DENY;
	}
}

SEC("lsm/socket_create")
int BPF_PROG(licagent_socket_create, int family, int type, int protocol, int kern)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct lic_guard *known = get_guard(LIC_SEEN_FAMILIES);
	struct lic_control *ctl = get_control();
	struct lic_decision decision;
	struct lic_subject subject;
	struct lic_process *process;
	struct lic_flow flow = {
		.protocol = LIC_PROTO_OTHER,
	};

	if (kern || !known || !ctl || !ctl->generation || leads_nowhere(family))
		return 0;
	if (!(policy_flags(ctl) & LIC_POLICY_HAS_NETWORKS) || !in_root(task, ctl->root_cgroup))
		return 0;
	if (makes_links(family) && runs_the_network(task, known->network_namespace))
		return 0;
	task_owner(task, &subject);
	process = identify_process(&subject);
	/* Not normalised: 0.0.0.0 stands for every network, not for this host. */
	flow.address[0] = forget(ctl, 0);
	flow.protocol = forget(ctl, flow.protocol);
	flow.is_ipv6 = forget(ctl, 0);
	lic_decide(&flow, &subject, &decision);
	if (decision.reason == LIC_REASON_NO_RESOURCE) {
		flow.is_ipv6 = forget(ctl, 1);
		lic_decide(&flow, &subject, &decision);
	}
	if (decision.reason == LIC_REASON_NO_RESOURCE)
		judge_unnamed(ctl, &decision);
	flow.is_ipv6 = 0;
	flow.port = family; /* what an event of this hook has in the place of a port */
	report(&decision, &subject, process, &flow, LIC_HOOK_FAMILY, 0, 1);
	return decision.verdict == LIC_VERDICT_DENY ? -reason_errno(decision.reason) : 0;
}

char licagent_license[] SEC("license") = "Dual BSD/GPL";
