// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Offering a service resource: the point of binding.
 *
 *   cgroup/bind4, bind6             refuse the port the program asks for
 *   cgroup/post_bind4, post_bind6   tag the socket by the port it got; refuse one that it got
 *                                   without asking
 *
 * A port that is taken later still (IP_BIND_ADDRESS_NO_PORT and listen, listen without bind) is
 * met by the first packet in packet.bpf.c.
 */
#include "core.h"
#include "report.h"
#include "service.h"
#include "subject.h"
#include "tag.h"

/* What the subject may offer: the decision for a service port, or kind NONE for another port. */
static __always_inline void decide_service(struct lic_control *ctl, struct lic_flow *flow,
					   struct lic_subject *subject,
					   struct lic_decision *decision)
{
	__builtin_memset(decision, 0, sizeof(*decision));
	__builtin_memset(subject, 0, sizeof(*subject));
	if (!(policy_flags(ctl) & LIC_POLICY_HAS_SERVICES) ||
	    !is_service_port(ctl->generation, flow->protocol, flow->port))
		return;
	current_subject(subject);
	lic_decide(flow, subject, decision);
	if (decision->kind == LIC_TAG_FREE)
		decision->kind = LIC_TAG_NONE;
}

/* Refuse with the right errno. What passes is tagged by post_bind: this bind may still fail. */
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

	if (!ctl || !flow.port)
		return 1;
	if (flow.protocol != LIC_PROTO_TCP && flow.protocol != LIC_PROTO_UDP)
		return 1;
	decide_service(ctl, &flow, &subject, &decision);
	if (decision.verdict != LIC_VERDICT_DENY)
		return 1;
	report(&decision, &subject, 0, &flow, LIC_HOOK_BIND, ctx, 1);
	return refuse(decision.reason);
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
	__u32 wants_tag;

	if (!ctl || !flow.port)
		return 1;
	if (flow.protocol != LIC_PROTO_TCP && flow.protocol != LIC_PROTO_UDP)
		return 1;
	decide_service(ctl, &flow, &subject, &decision);
	if (decision.verdict)
		report(&decision, &subject, 0, &flow, LIC_HOOK_POST_BIND, ctx, 1);
	if (decision.verdict == LIC_VERDICT_DENY)
		return refuse(decision.reason);
	/* What is metered needs to know who took the port, be it licensed or not. */
	wants_tag = decision.kind != LIC_TAG_NONE || ctl->sheet;
	tag = bpf_sk_storage_get(MAP(tags), ctx, 0, wants_tag ? BPF_SK_STORAGE_GET_F_CREATE : 0);
	if (decision.kind == LIC_TAG_NONE) {
		if (!tag)
			return 1;
		tag->service.kind = LIC_TAG_NONE; /* a socket that changes its port leaves it */
		tag->meter = 0;
		if (!tag->network.kind) {
			current_subject(&subject);
			fill_subject(tag, &subject);
			tag->protocol = flow.protocol;
			tag->since_s = now_s();
			tag->metered = metered_mark(ctl, 0);
		}
		return 1;
	}
	/* Memory is taken without waiting, and may be short for a moment. */
	for (int i = 0; i < LIC_TAG_RETRIES && !tag; i++)
		tag = bpf_sk_storage_get(MAP(tags), ctx, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!tag) {
		note_fault(LIC_FAULT_TAG_FAILED);
		return policy_flags(ctl) & LIC_POLICY_ENFORCE ? refuse(LIC_REASON_NONE) : 1;
	}
	if (!tag->since_s)
		tag->since_s = now_s();
	fill_subject(tag, &subject);
	tag->protocol = flow.protocol;
	tag->metered = metered_mark(ctl, 0);
	tag->local_port = flow.port;
	fill_half(&tag->service, &decision);
	tag->meter = 0;
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
