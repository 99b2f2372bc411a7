/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The decision: who wants to use what, by which license, and is that license good now?
 *
 * Mirrored by licagent.domain.decision; tests/kernel compares the two on random policies.
 */
#ifndef LICAGENT_DECIDE_H
#define LICAGENT_DECIDE_H

#include "clock.h"
#include "core.h"

/* A use of the network: a destination, or a local port for services. */
struct lic_flow {
	__u32 address[4]; /* network order; IPv4 in [0] */
	__u16 port;       /* host order; 0 where the protocol has none */
	__u8 protocol;    /* enum lic_protocol */
	__u8 is_ipv6;
	__u32 is_service;
};

struct lic_subject {
	__u32 pid;
	__u32 uid;
	__u32 gid;
	__u32 path;
	__u32 digest;
	__u32 exec_id;
	__u64 cgroup;
};

struct lic_decision {
	__u32 verdict;
	__u32 reason;
	__u32 license;
	__u32 slot;
	__u32 epoch;
	__u32 resource;
	__u32 rule;
	__u32 kind; /* enum lic_tag_kind for the socket's tag */
	__u64 now_ns; /* CLOCK_BOOTTIME of the decision; 0 when nothing was looked up */
};

/*
 * One normalisation for every form of an address: IPv4-mapped IPv6 is IPv4, and "any" as a
 * destination is where the kernel sends it. For IPv4 that is the socket's own address, else
 * 127.0.0.1 (ip_route_output_key_hash_rcu); for IPv6 it is ::1, and 127.0.0.1 if the socket is
 * bound to an IPv4-mapped address (tcp_v6_connect, __ip6_datagram_connect).
 * `bound4` is the socket's IPv4 address or 0, `bound6` the third word of its IPv6 address.
 */
static __always_inline void normalise(const struct lic_control *ctl, struct lic_flow *flow,
				      __u32 bound4, __u32 bound6)
{
	if (flow->is_ipv6 && !flow->address[0] && !flow->address[1] &&
	    flow->address[2] == bpf_htonl(0xffff)) {
		flow->address[0] = flow->address[3];
		flow->address[2] = 0;
		flow->address[3] = 0;
		flow->is_ipv6 = 0;
	}
	if (!flow->is_ipv6) {
		if (!flow->address[0])
			flow->address[0] = bound4 ? bound4 : bpf_htonl(0x7f000001);
	} else if (!flow->address[0] && !flow->address[1] && !flow->address[2] &&
		   !flow->address[3]) {
		if (bound6 == bpf_htonl(0xffff)) {
			flow->is_ipv6 = 0;
			flow->address[0] = bpf_htonl(0x7f000001);
		} else {
			flow->address[3] = bpf_htonl(1);
		}
	}
	flow->address[0] = forget(ctl, flow->address[0]);
	flow->address[1] = forget(ctl, flow->address[1]);
	flow->address[2] = forget(ctl, flow->address[2]);
	flow->address[3] = forget(ctl, flow->address[3]);
	flow->protocol = forget(ctl, flow->protocol);
	flow->is_ipv6 = forget(ctl, flow->is_ipv6);
	flow->port = forget(ctl, flow->port);
}

static __always_inline struct lic_port *find_port(__u32 generation, const struct lic_flow *flow)
{
	struct lic_port_key port_key = {
		.prefix_bits = 96,
		.generation = generation,
		.class_number = LIC_SERVICE_CLASS,
		.protocol = flow->protocol,
		.port = bpf_htons(flow->port),
	};
	__u32 *class;

	if (!flow->is_service) {
		if (flow->is_ipv6) {
			struct lic_net6_key key = {
				.prefix_bits = 160,
				.generation = generation,
			};

			key.address[0] = flow->address[0];
			key.address[1] = flow->address[1];
			key.address[2] = flow->address[2];
			key.address[3] = flow->address[3];
			class = bpf_map_lookup_elem(MAP(networks6), &key);
		} else {
			struct lic_net4_key key = {
				.prefix_bits = 64,
				.generation = generation,
				.address = flow->address[0],
			};

			class = bpf_map_lookup_elem(MAP(networks4), &key);
		}
		if (!class)
			return 0;
		port_key.class_number = *class;
	}
	return bpf_map_lookup_elem(MAP(ports), &port_key);
}

/* The most specific rule for this subject; there is no way back to a less specific one. */
static __always_inline struct lic_rule *find_rule(const struct lic_control *ctl,
						  const struct lic_policy *policy, __u32 resource,
						  const struct lic_subject *subject)
{
	struct lic_rule_key key = {
		.generation = policy->generation,
		.resource = resource,
	};
	/* A selector that has no value for this subject cannot hold: no rule has this number. */
	__u32 path = forget(ctl, subject->path ? subject->path : LIC_NO_ID);
	__u32 digest = forget(ctl, subject->digest ? subject->digest : LIC_NO_ID);
	__u32 shape_count = policy->shape_count, scope_count = 0, scopes[LIC_MAX_SCOPES] = {};
	struct lic_cgroup *cgroup;
	struct lic_rule *rule;

	if (policy->flags & LIC_POLICY_HAS_SCOPES) {
		cgroup = bpf_map_lookup_elem(MAP(cgroups), &subject->cgroup);
		if (cgroup) {
			scope_count = cgroup->count;
			__builtin_memcpy(scopes, cgroup->scopes, sizeof(scopes));
		}
	}
	scope_count = forget(ctl, scope_count);

	for (__u32 i = 0; i < LIC_MAX_SHAPES; i++) {
		__u32 shape, tries;

		if (i >= shape_count)
			break;
		shape = policy->shapes[i];
		key.path = shape & LIC_SHAPE_PATH ? path : LIC_ANY_ID;
		key.digest = shape & LIC_SHAPE_DIGEST ? digest : LIC_ANY_ID;
		key.uid = shape & LIC_SHAPE_UID ? subject->uid : LIC_ANY_OWNER;
		key.gid = shape & LIC_SHAPE_GID ? subject->gid : LIC_ANY_OWNER;
		key.path = forget(ctl, key.path);
		key.digest = forget(ctl, key.digest);
		key.uid = forget(ctl, key.uid);
		key.gid = forget(ctl, key.gid);
		tries = forget(ctl, shape & LIC_SHAPE_SCOPE ? scope_count : 1);
		for (__u32 j = 0; j < LIC_MAX_SCOPES; j++) {
			if (j >= tries)
				break;
			key.scope = forget(ctl, shape & LIC_SHAPE_SCOPE ? scopes[j] : LIC_ANY_ID);
			rule = bpf_map_lookup_elem(MAP(rules), &key);
			if (rule)
				return rule;
		}
	}
	return 0;
}

static __always_inline __u32 license_reason(const struct lic_license *license, __u64 now)
{
	if (license->state != LIC_REASON_LICENSED)
		return license->state ? license->state : LIC_REASON_REVOKED;
	if (now < license->not_before_ns)
		return LIC_REASON_NOT_YET_VALID;
	if (now >= license->not_after_ns)
		return LIC_REASON_EXPIRED;
	return LIC_REASON_LICENSED;
}

static __always_inline void judge_rule(const struct lic_control *ctl, struct lic_rule *rule,
				       __u64 now, struct lic_decision *decision)
{
	decision->rule = rule->number;
	/* A rule without licenses: an entitlement that this version cannot honour. */
	decision->reason = LIC_REASON_CONDITION;
	for (__u32 i = 0; i < LIC_RULE_LICENSES; i++) {
		struct lic_license *license;
		__u32 slot, epoch, reason;

		if (i >= rule->license_count)
			break;
		slot = rule->slots[i];
		license = bpf_map_lookup_elem(MAP(licenses), &slot);
		if (!license)
			continue;
		/* Epoch before state: a change in between leaves an old epoch, which is dead. */
		epoch = *(volatile __u32 *)&license->epoch;
		reason = forget(ctl, license_reason(license, now));
		if (i == 0 || reason == LIC_REASON_LICENSED) {
			decision->reason = reason;
			decision->license = license->number;
			decision->slot = slot;
			decision->epoch = epoch;
		}
		if (reason == LIC_REASON_LICENSED)
			break;
	}
	decision->reason = forget(ctl, decision->reason);
}

/*
 * Decide. `flow` must be normalised. Without a policy, and for what no resource names, the
 * answer is FREE with verdict NONE: nothing to count, nothing to report.
 */
static __always_inline void decide(const struct lic_control *ctl, const struct lic_policy *policy,
				   const struct lic_flow *flow, const struct lic_subject *subject,
				   struct lic_decision *decision)
{
	struct lic_port *port;
	struct lic_rule *rule;
	__u32 flags;
	__u64 now;

	__builtin_memset(decision, 0, sizeof(*decision));
	decision->kind = LIC_TAG_FREE;
	decision->reason = LIC_REASON_NO_RESOURCE;
	port = find_port(policy->generation, flow);
	if (!port)
		return;
	decision->resource = port->resource;
	flags = port->flags;
	if (port->resource == LIC_FAILSAFE_RESOURCE) {
		decision->reason = LIC_REASON_FAILSAFE;
		return;
	}
	now = now_ns();
	decision->now_ns = now;
	rule = find_rule(ctl, policy, decision->resource, subject);
	if (rule)
		judge_rule(ctl, rule, now, decision);
	else
		decision->reason = LIC_REASON_NO_BINDING;

	if (decision->reason == LIC_REASON_LICENSED) {
		decision->verdict = LIC_VERDICT_ALLOW;
		decision->kind = LIC_TAG_LICENSED;
	} else if (!(policy->flags & LIC_POLICY_ENFORCE) || !(flags & LIC_PORT_ENFORCE)) {
		decision->verdict = LIC_VERDICT_SHADOW;
		decision->kind = LIC_TAG_SHADOW;
	} else if (now < ctl->break_glass_until_ns) {
		decision->verdict = LIC_VERDICT_ALLOW;
		decision->reason = LIC_REASON_BREAK_GLASS;
		decision->kind = LIC_TAG_GLASS;
	} else {
		decision->verdict = LIC_VERDICT_DENY;
		decision->kind = LIC_TAG_DENIED;
	}
}

#endif /* LICAGENT_DECIDE_H */
