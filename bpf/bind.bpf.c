// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Offering a service resource: the point of binding.
 *
 *   cgroup/bind4, bind6             the port the program asks for
 *   cgroup/post_bind4, post_bind6   the port it got when it asked for none
 *
 * A port that is taken later still (IP_BIND_ADDRESS_NO_PORT and listen, listen without bind) is
 * met by the first packet in packet.bpf.c.
 */
#include "core.h"
#include "report.h"
#include "service.h"
#include "subject.h"
#include "tag.h"

/* 1: let through. `tag` may be null; *decision says whether one is needed. */
static __always_inline int offer_service(struct lic_control *ctl, struct lic_flow *flow,
					 struct lic_subject *subject, struct lic_tag *tag,
					 struct lic_decision *decision, __u32 hook, __u64 cookie)
{
	__u32 generation = ctl->generation;
	struct lic_policy *policy = get_policy(generation);

	decision->kind = LIC_TAG_NONE;
	if (!policy || !(policy->flags & LIC_POLICY_HAS_SERVICES))
		return 1;
	if (!is_service_port(generation, flow->protocol, flow->port)) {
		/* A socket that changes its port leaves its service. */
		if (tag)
			tag->service.kind = LIC_TAG_NONE;
		return 1;
	}
	current_subject(subject);
	decide(ctl, policy, flow, subject, decision);
	if (decision->kind == LIC_TAG_FREE)
		decision->kind = LIC_TAG_NONE;
	report(decision, subject, flow, hook, cookie, 1);
	return decision->verdict != LIC_VERDICT_DENY;
}

static __always_inline void tag_service(struct lic_tag *tag, const struct lic_flow *flow,
					const struct lic_subject *subject,
					const struct lic_decision *decision, __u32 generation)
{
	if (!tag->since_ns)
		tag->since_ns = now_ns();
	fill_subject(tag, subject);
	tag->protocol = flow->protocol;
	tag->local_port = flow->port;
	fill_half(&tag->service, decision, generation);
}

static __always_inline int bind_service(struct bpf_sock_addr *ctx)
{
	struct lic_control *ctl = get_control();
	struct lic_flow flow = {
		.port = bpf_ntohs((__u16)ctx->user_port),
		.protocol = fold_protocol(ctx->protocol),
		.is_service = 1,
	};
	struct lic_decision decision;
	struct lic_subject subject;
	struct lic_tag *tag;

	if (!ctl || !ctl->generation || !flow.port || !ctx->sk)
		return 1;
	if (flow.protocol != LIC_PROTO_TCP && flow.protocol != LIC_PROTO_UDP)
		return 1;
	tag = bpf_sk_storage_get(MAP(tags), ctx->sk, 0, 0);
	if (!offer_service(ctl, &flow, &subject, tag, &decision, LIC_HOOK_BIND,
			   bpf_get_socket_cookie(ctx)))
		return refuse(decision.reason);
	if (decision.kind == LIC_TAG_NONE)
		return 1;
	if (!tag)
		tag = bpf_sk_storage_get(MAP(tags), ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!tag) {
		note_fault(LIC_FAULT_TAG_FAILED);
		return decision.kind == LIC_TAG_LICENSED ? refuse(LIC_REASON_NONE) : 1;
	}
	tag_service(tag, &flow, &subject, &decision, ctl->generation);
	return 1;
}

static __always_inline int bound_service(struct bpf_sock *ctx)
{
	struct lic_control *ctl = get_control();
	struct lic_flow flow = {
		.port = ctx->src_port,
		.protocol = fold_protocol(ctx->protocol),
		.is_service = 1,
	};
	struct lic_decision decision;
	struct lic_subject subject;
	struct lic_tag *tag;

	if (!ctl || !ctl->generation || !flow.port)
		return 1;
	if (flow.protocol != LIC_PROTO_TCP && flow.protocol != LIC_PROTO_UDP)
		return 1;
	tag = bpf_sk_storage_get(MAP(tags), ctx, 0, 0);
	/* bind4/6 has decided for this port already */
	if (tag && tag->service.kind && tag->local_port == flow.port)
		return 1;
	if (!offer_service(ctl, &flow, &subject, tag, &decision, LIC_HOOK_POST_BIND,
			   bpf_get_socket_cookie(ctx)))
		return refuse(decision.reason);
	if (decision.kind == LIC_TAG_NONE)
		return 1;
	if (!tag)
		tag = bpf_sk_storage_get(MAP(tags), ctx, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!tag) {
		note_fault(LIC_FAULT_TAG_FAILED);
		return decision.kind == LIC_TAG_LICENSED ? refuse(LIC_REASON_NONE) : 1;
	}
	tag_service(tag, &flow, &subject, &decision, ctl->generation);
	return 1;
}

SEC("cgroup/bind4")
int licagent_bind4(struct bpf_sock_addr *ctx)
{
	return bind_service(ctx);
}

SEC("cgroup/bind6")
int licagent_bind6(struct bpf_sock_addr *ctx)
{
	return bind_service(ctx);
}

SEC("cgroup/post_bind4")
int licagent_post_bind4(struct bpf_sock *ctx)
{
	return bound_service(ctx);
}

SEC("cgroup/post_bind6")
int licagent_post_bind6(struct bpf_sock *ctx)
{
	return bound_service(ctx);
}

char licagent_license[] SEC("license") = "Dual BSD/GPL";
