// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * cgroup/sock_create: raw, ICMP, SCTP...: remember who made it, for packet.bpf.c
 *
 * TCP and UDP are decided at connect, sendmsg and bind. The other kinds have no such moment (SCTP
 * connects through setsockopt, raw sockets send without a hook), so their packets are decided one
 * by one, for the process that made the socket.
 */
#include "core.h"
#include "report.h"
#include "subject.h"
#include "tag.h"

SEC("cgroup/sock_create")
int licagent_sock_create(struct bpf_sock *ctx)
{
	struct lic_control *ctl;
	struct lic_subject subject;
	struct lic_tag *tag;
	__u8 protocol = fold_protocol(ctx->protocol);

	if (ctx->type != LIC_SOCK_RAW && (protocol == LIC_PROTO_TCP || protocol == LIC_PROTO_UDP))
		return 1;
	ctl = get_control();
	if (!ctl)
		return 1;
	tag = bpf_sk_storage_get(MAP(tags), ctx, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!tag) {
		note_fault(LIC_FAULT_TAG_FAILED);
		return refuse(LIC_REASON_NONE);
	}
	current_subject(&subject);
	fill_subject(tag, &subject);
	tag->protocol = protocol;
	tag->since_s = now_s();
	tag->network.kind = LIC_TAG_PACKET;
	return 1;
}

char licagent_license[] SEC("license") = "Dual BSD/GPL";
