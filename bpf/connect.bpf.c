// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Use of network resources: the point of connection.
 *
 *   cgroup/connect4, connect6   TCP (Fast Open, MPTCP and io_uring too), connected UDP, ping
 *   cgroup/sendmsg4, sendmsg6   UDP with an address
 *
 * A denied call fails with the reason's errno. An allowed one leaves a tag on the socket, which
 * packet.bpf.c checks for every packet.
 */
#include "core.h"
#include "report.h"
#include "subject.h"
#include "tag.h"

static __always_inline int use_network(struct bpf_sock_addr *ctx, struct lic_flow *flow,
				       __u32 bound4, __u32 hook)
{
	struct lic_control *ctl = get_control();
	struct lic_decision decision;
	struct lic_subject subject;
	struct lic_process *process;
	struct lic_tag *tag;

	if (!ctl || (!ctl->generation && !ctl->sheet))
		return 1;
	/* Also while the policy names no network: the next one may. */
	if (!ctx->sk)
		return 1;
	flow->protocol = fold_protocol(ctx->protocol);
	if (flow->protocol != LIC_PROTO_TCP && flow->protocol != LIC_PROTO_UDP)
		flow->port = 0;
	flow->is_service = 0;
	flow->source_port = ctx->sk->src_port; /* 0 until the kernel chooses one */
	normalise(ctl, flow, bound4, ctx->sk->src_ip6[2]);
	process = current_subject(&subject);
	tag = bpf_sk_storage_get(MAP(tags), ctx->sk, 0, 0);

	/* The same process sending to the same place again. */
	if (tag && hook == LIC_HOOK_SENDMSG && tag->network.kind && tag->port == flow->port &&
	    tag->address[0] == flow->address[0] && tag->address[1] == flow->address[1] &&
	    tag->address[2] == flow->address[2] && tag->address[3] == flow->address[3] &&
	    tag->is_ipv6 == flow->is_ipv6 && tag->pid == subject.pid && tag->uid == subject.uid &&
	    tag->gid == subject.gid && tag->exec_id == subject.exec_id &&
	    tag->cgroup == subject.cgroup && half_holds(ctl, &tag->network))
		return 1;

	lic_decide(flow, &subject, &decision);
	if (decision.verdict)
		report(&decision, &subject, process, flow, hook, ctx, 1);
	if (decision.verdict == LIC_VERDICT_DENY)
		return refuse(decision.reason);

	if (!tag) {
		/*
		 * A connection to no resource is tagged as well: the policy may name it later, and
		 * a destination that is rewritten on the way is decided for who connected.
		 */
		tag = bpf_sk_storage_get(MAP(tags), ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
		/* Memory is taken without waiting, and may be short for a moment. */
		for (int i = 0; i < LIC_TAG_RETRIES && !tag; i++)
			tag = bpf_sk_storage_get(MAP(tags), ctx->sk, 0,
						 BPF_SK_STORAGE_GET_F_CREATE);
		if (!tag) {
			note_fault(LIC_FAULT_TAG_FAILED);
			/* Untagged UDP is decided packet by packet; TCP would pass for accepted. */
			return flow->protocol == LIC_PROTO_TCP &&
					       policy_flags(ctl) & LIC_POLICY_ENFORCE
				       ? refuse(LIC_REASON_NONE)
				       : 1;
		}
		tag->since_s = now_s();
	}
	/* What the socket offers rests on who bound it. */
	if (!tag->service.kind)
		fill_subject(tag, &subject);
	if (tag->network.kind == LIC_TAG_PACKET)
		return 1;
	if (decision.kind == LIC_TAG_LICENSED)
		tag->kept = 0;
	fill_flow(tag, flow);
	fill_half(&tag->network, &decision);
	tag->meter = 0;
	/* Its SYN will be acknowledged like a byte, and is none (tcp_ack; see meter.h). */
	if (hook == LIC_HOOK_CONNECT && flow->protocol == LIC_PROTO_TCP) {
		tag->tx_bytes = 1;
		tag->rx_bytes = 0;
		tag->metered = metered_mark(ctl, 0);
	}
	return 1;
}

static __always_inline int use_network4(struct bpf_sock_addr *ctx, __u32 hook)
{
	struct lic_flow flow = {
		.port = bpf_ntohs((__u16)ctx->user_port),
	};

	__u32 bound4;

	flow.address[0] = ctx->user_ip4;
	if (hook == LIC_HOOK_SENDMSG) /* also what IP_PKTINFO asks for */
		bound4 = ctx->msg_src_ip4;
	else
		bound4 = ctx->sk ? ctx->sk->src_ip4 : 0;
	flow.source[0] = bound4;
	return use_network(ctx, &flow, bound4, hook);
}

static __always_inline int use_network6(struct bpf_sock_addr *ctx, __u32 hook)
{
	struct lic_flow flow = {
		.port = bpf_ntohs((__u16)ctx->user_port),
		.is_ipv6 = 1,
	};

	flow.address[0] = ctx->user_ip6[0];
	flow.address[1] = ctx->user_ip6[1];
	flow.address[2] = ctx->user_ip6[2];
	flow.address[3] = ctx->user_ip6[3];
	return use_network(ctx, &flow, ctx->sk ? ctx->sk->src_ip4 : 0, hook);
}

SEC("cgroup/connect4")
int licagent_connect4(struct bpf_sock_addr *ctx)
{
	return use_network4(ctx, LIC_HOOK_CONNECT);
}

SEC("cgroup/connect6")
int licagent_connect6(struct bpf_sock_addr *ctx)
{
	return use_network6(ctx, LIC_HOOK_CONNECT);
}

SEC("cgroup/sendmsg4")
int licagent_sendmsg4(struct bpf_sock_addr *ctx)
{
	return use_network4(ctx, LIC_HOOK_SENDMSG);
}

SEC("cgroup/sendmsg6")
int licagent_sendmsg6(struct bpf_sock_addr *ctx)
{
	return use_network6(ctx, LIC_HOOK_SENDMSG);
}

char licagent_license[] SEC("license") = "Dual BSD/GPL";
