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
	/* for events only */
	__u32 source[4];
	__u16 source_port; /* host order */
	__u16 reserved;
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
	__u32 kind;       /* enum lic_tag_kind for the socket's tag */
	__u32 generation; /* of the policy it rests on */
	__u32 reserved;
	__u64 now_ns; /* CLOCK_BOOTTIME of the decision; 0 when no resource was touched */
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

/* The search for a rule: which shape and which scope come next, and what was found. */
struct lic_search {
	struct lic_rule_key key;
	const struct lic_policy *policy;
	struct lic_rule *rule;
	__u32 path;
	__u32 digest;
	__u32 uid;
	__u32 gid;
	__u32 shape; /* index of the shape that is tried */
	__u32 scope; /* index of the scope that is tried with it */
	__u32 scope_count;
	__u32 zero; /* see forget() */
	__u32 scopes[LIC_MAX_SCOPES];
};

/* All ones if the shape has the bit, else zero. LIC_ANY_ID is zero, LIC_ANY_OWNER all ones. */
static __always_inline __u32 shape_mask(__u32 shape, __u32 bit)
{
	return 0 - (__u32)((shape & bit) / bit);
}

/* One look-up: the next scope of this shape, or the next shape. 1: it is over. */
LIC_STEP search_step(__u32 index, struct lic_search *search)
{
	__u64 at = (__u32)(search->shape + search->zero);
	__u64 scope = (__u32)(search->scope + search->zero);
	__u32 shape;

	if (at >= search->policy->shape_count || at >= LIC_MAX_SHAPES)
		return 1;
	LIC_BOUND(at, LIC_MAX_SHAPES - 1);
	shape = search->policy->shapes[at];
	/* By masks: five branches would be 32 ways through each step for the verifier. */
	search->key.path = search->path & shape_mask(shape, LIC_SHAPE_PATH);
	search->key.digest = search->digest & shape_mask(shape, LIC_SHAPE_DIGEST);
	search->key.uid = search->uid | ~shape_mask(shape, LIC_SHAPE_UID);
	search->key.gid = search->gid | ~shape_mask(shape, LIC_SHAPE_GID);
	search->key.scope = LIC_ANY_ID + search->zero;
	if (shape & LIC_SHAPE_SCOPE) {
		if (scope >= search->scope_count + search->zero || scope >= LIC_MAX_SCOPES) {
			search->shape = at + 1 + search->zero;
			search->scope = search->zero;
			return 0;
		}
		LIC_BOUND(scope, LIC_MAX_SCOPES - 1);
		search->key.scope = search->scopes[scope];
		search->scope = scope + 1 + search->zero;
	} else {
		search->shape = at + 1 + search->zero;
	}
	search->rule = bpf_map_lookup_elem(MAP(rules), &search->key);
	return search->rule != 0;
}

/* The most specific rule for this subject; there is no way back to a less specific one. */
static __always_inline struct lic_rule *find_rule(const struct lic_control *ctl,
						  const struct lic_policy *policy, __u32 resource,
						  const struct lic_subject *subject)
{
	struct lic_search search = {
		.key.generation = policy->generation,
		.key.resource = resource,
		.policy = policy,
		/* A selector without a value for this subject cannot hold: no rule has NO_ID. */
		.path = forget(ctl, subject->path ? subject->path : LIC_NO_ID),
		.digest = forget(ctl, subject->digest ? subject->digest : LIC_NO_ID),
		.uid = subject->uid,
		.gid = subject->gid,
		.shape = forget(ctl, 0),
		.scope = forget(ctl, 0),
		.zero = forget(ctl, 0),
	};
	/* On the stack: 6.1 takes no key out of a global function's argument. */
	__u64 cgroup_id = subject->cgroup;
	struct lic_cgroup *cgroup;

	if (policy->flags & LIC_POLICY_HAS_SCOPES) {
		cgroup = bpf_map_lookup_elem(MAP(cgroups), &cgroup_id);
		if (cgroup) {
			search.scope_count = cgroup->count;
			__builtin_memcpy(search.scopes, cgroup->scopes, sizeof(search.scopes));
		}
	}
	search.scope_count = forget(ctl, search.scope_count);
	LIC_LOOP(LIC_MAX_STEPS, search_step, &search);
	return search.rule;
}

static __always_inline __u32 license_reason(const struct lic_license *license, __u64 now)
{
	if (license->state != LIC_REASON_LICENSED)
		return license->state ? license->state : LIC_REASON_REVOKED;
	if (now < license->not_before_ns)
		return LIC_REASON_NOT_YET_VALID;
	if (now >= license->not_after_ns)
		return license->end_reason ? license->end_reason : LIC_REASON_EXPIRED;
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
 *
 * A global function where the kernel has them with pointer arguments (5.13, commit e5069b9c23b3):
 * the verifier then walks it once an object and not once a call, which halves the time that
 * loading takes. Older kernels and bcc get it inlined.
 */
#if defined(LICAGENT_BCC) || defined(LICAGENT_PLAIN)
static __always_inline
#else
__attribute__((noinline))
#endif
	int
	lic_decide(const struct lic_flow *flow, const struct lic_subject *subject,
		   struct lic_decision *decision)
{
	struct lic_control *ctl = get_control();
	struct lic_policy *policy;
	struct lic_port *port;
	struct lic_rule *rule;
	__u32 flags;
	__u64 now;

	if (!flow || !subject || !decision)
		return 0;
	__builtin_memset(decision, 0, sizeof(*decision));
	decision->kind = LIC_TAG_FREE;
	decision->reason = LIC_REASON_NO_RESOURCE;
	if (!ctl)
		return 0;
	decision->generation = ctl->generation;
	policy = get_policy(decision->generation);
	if (!policy)
		return 0;
	port = find_port(decision->generation, flow);
	if (!port)
		return 0;
	decision->resource = port->resource;
	flags = port->flags;
	if (decision->resource == LIC_FAILSAFE_RESOURCE) {
		decision->reason = LIC_REASON_FAILSAFE;
		return 0;
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
	return 0;
}

#endif /* LICAGENT_DECIDE_H */
