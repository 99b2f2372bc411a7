/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a socket carries: writing it, and asking whether it still holds. */
#ifndef LICAGENT_TAG_H
#define LICAGENT_TAG_H

#include "report.h"

#define LIC_TAG_RETRIES 3

static __always_inline void fill_half(struct lic_half *half, const struct lic_decision *decision)
{
	half->kind = decision->kind;
	half->slot = decision->slot;
	half->epoch = decision->epoch;
	half->resource = decision->resource;
	half->reason = decision->reason;
	half->generation = decision->generation;
}

static __always_inline void fill_subject(struct lic_tag *tag, const struct lic_subject *subject)
{
	tag->pid = subject->pid;
	tag->uid = subject->uid;
	tag->gid = subject->gid;
	tag->path = subject->path;
	tag->digest = subject->digest;
	tag->exec_id = subject->exec_id;
	tag->cgroup = subject->cgroup;
}

static __always_inline void fill_flow(struct lic_tag *tag, const struct lic_flow *flow)
{
	tag->address[0] = flow->address[0];
	tag->address[1] = flow->address[1];
	tag->address[2] = flow->address[2];
	tag->address[3] = flow->address[3];
	tag->port = flow->port;
	tag->protocol = flow->protocol;
	tag->is_ipv6 = flow->is_ipv6;
}

static __always_inline void tag_subject(const struct lic_tag *tag, struct lic_subject *subject)
{
	subject->pid = tag->pid;
	subject->uid = tag->uid;
	subject->gid = tag->gid;
	subject->path = tag->path;
	subject->digest = tag->digest;
	subject->exec_id = tag->exec_id;
	subject->cgroup = tag->cgroup;
}

static __always_inline void tag_flow(const struct lic_tag *tag, struct lic_flow *flow,
				     __u32 is_service)
{
	flow->address[0] = tag->address[0];
	flow->address[1] = tag->address[1];
	flow->address[2] = tag->address[2];
	flow->address[3] = tag->address[3];
	flow->port = is_service ? tag->local_port : tag->port;
	flow->protocol = tag->protocol;
	flow->is_ipv6 = tag->is_ipv6;
	flow->is_service = is_service;
}

/* What stands in a tag's `metered`: that its marks are of this era of metering. */
static __always_inline __u8 metered_mark(const struct lic_control *ctl, __u32 loopback)
{
	return ctl->era << LIC_METERED_ERA_SHIFT | loopback;
}

static __always_inline __u32 now_s(void)
{
	return now_ns() / LIC_NSEC_PER_SEC;
}

/* The quick question, asked for every packet: does this half hold as it stands? */
static __always_inline int half_holds(const struct lic_control *ctl, const struct lic_half *half)
{
	struct lic_license *license;
	__u32 slot;

	if (half->generation != (__u32)ctl->generation)
		return 0;
	if (half->kind == LIC_TAG_LICENSED) {
		slot = half->slot;
		license = bpf_map_lookup_elem(MAP(licenses), &slot);
		if (!license || *(volatile __u32 *)&license->epoch != half->epoch)
			return 0;
		return now_ns() < license->not_after_ns;
	}
	return half->kind == LIC_TAG_FREE || half->kind == LIC_TAG_SHADOW;
}

/*
 * The slow question: the policy, the license or the clock has moved since. Decide again for the
 * subject that the socket belongs to, and remember the answer. Returns 1 to let through.
 */
static __always_inline int renew_half(const struct lic_control *ctl, struct lic_tag *tag,
				      struct lic_half *half, __u32 is_service, __u32 hook,
				      void *ctx)
{
	struct lic_decision decision;
	struct lic_subject subject;
	struct lic_flow flow;
	__u32 before = half->kind, before_generation = half->generation;
	struct lic_license *license;
	__u32 slot = half->slot;

	if (!ctl->generation)
		return 1;
	tag_subject(tag, &subject);
	tag_flow(tag, &flow, is_service);
	lic_decide(&flow, &subject, &decision);
	if (decision.kind == LIC_TAG_LICENSED)
		tag->kept = 0;
	/* Free when it connected, named by a policy since: older than that policy. */
	if (before == LIC_TAG_FREE)
		tag->kept = 1;
	if (decision.kind == LIC_TAG_DENIED && tag->kept &&
	    (policy_flags(ctl) & LIC_POLICY_KEEP_EXISTING)) {
		decision.kind = LIC_TAG_SHADOW;
		decision.verdict = LIC_VERDICT_SHADOW;
	}
	if (decision.verdict == LIC_VERDICT_DENY) {
		decision.verdict = LIC_VERDICT_CUT;
		if (!decision.license && before != LIC_TAG_DENIED) {
			/* The binding went: name the license that the socket had. */
			license = bpf_map_lookup_elem(MAP(licenses), &slot);
			if (license)
				decision.license = license->number;
		}
	}
	if (decision.kind == LIC_TAG_DENIED) {
		/* What was used until now is still the license's. */
		decision.slot = slot;
		decision.epoch = half->epoch;
	}
	fill_half(half, &decision);
	tag->meter = 0; /* another license may pay from now on */
	/* Counted when something changed, and for every packet that is dropped. */
	if (decision.verdict == LIC_VERDICT_CUT || before != decision.kind ||
	    before_generation == decision.generation)
		report(&decision, &subject, 0, &flow, hook, ctx, 0);
	return decision.verdict != LIC_VERDICT_CUT;
}

#endif /* LICAGENT_TAG_H */
