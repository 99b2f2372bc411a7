/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What iterators read of a socket that is open already, and the tag that it gets. */
#ifndef LICAGENT_OPEN_SOCKETS_H
#define LICAGENT_OPEN_SOCKETS_H

#include "core.h"
#include "kernel.h"
#include "subject.h"
#include "tag.h"

static __always_inline void sock_flow(struct sock *sk, struct lic_flow *flow)
{
	__builtin_memset(flow, 0, sizeof(*flow));
	flow->protocol = fold_protocol(BPF_CORE_READ(sk, sk_protocol));
	flow->port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == LIC_AF_INET6) {
		flow->is_ipv6 = 1;
		BPF_CORE_READ_INTO(&flow->address, sk, __sk_common.skc_v6_daddr.in6_u.u6_addr32);
	} else {
		flow->address[0] = BPF_CORE_READ(sk, __sk_common.skc_daddr);
	}
}

static __always_inline void task_subject(struct task_struct *task, struct lic_subject *subject)
{
	subject->pid = BPF_CORE_READ(task, tgid);
	subject->uid = BPF_CORE_READ(task, cred, uid.val);
	subject->gid = BPF_CORE_READ(task, cred, gid.val);
	subject->cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
	identify_process(subject);
}

/* 1: unlicensed, but older than the policy and kept by its owner's wish. */
static __always_inline int keep_existing(struct lic_policy *policy, struct lic_decision *decision)
{
	if (decision->verdict != LIC_VERDICT_DENY)
		return 0;
	if (!(policy->flags & LIC_POLICY_KEEP_EXISTING)) {
		decision->verdict = LIC_VERDICT_CUT;
		return 0;
	}
	decision->verdict = LIC_VERDICT_SHADOW;
	decision->kind = LIC_TAG_SHADOW;
	return 1;
}

/* Scratch of the iterators, too large for the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lic_socket_record);
} record_scratch SEC(".maps");

static __always_inline struct lic_tag *need_tag(const struct lic_control *ctl, struct sock *sk,
						struct lic_tag *tag,
						const struct lic_subject *subject)
{
	struct tcp_sock *tcp = (struct tcp_sock *)sk;
	__u32 zero = 0;

	if (tag && !tag->pid && subject->pid) {
		/* Its packets were seen before its process was. */
		fill_subject(tag, subject);
		tag->meter = 0;
	}
	if (!tag) {
		struct lic_socket_record *scratch = bpf_map_lookup_elem(MAP(record_scratch), &zero);

		if (!scratch)
			return 0;
		/* Whole from its first moment: a packet may be sent meanwhile. */
		__builtin_memset(&scratch->tag, 0, sizeof(scratch->tag));
		scratch->tag.since_s = now_s();
		scratch->tag.metered = metered_mark(ctl, 0);
		fill_subject(&scratch->tag, subject);
		scratch->tag.protocol = fold_protocol(BPF_CORE_READ(sk, sk_protocol));
		if (BPF_CORE_READ(sk, sk_protocol) == LIC_IPPROTO_TCP) {
			/* What it carried before is nobody's. */
			scratch->tag.tx_bytes = BPF_CORE_READ(tcp, bytes_acked);
			scratch->tag.rx_bytes = BPF_CORE_READ(tcp, bytes_received);
		}
		tag = bpf_sk_storage_get(MAP(tags), sk, &scratch->tag, BPF_SK_STORAGE_GET_F_CREATE);
		if (!tag)
			note_fault(LIC_FAULT_TAG_FAILED);
	}
	return tag;
}

static __always_inline void fill_record(struct lic_socket_record *record,
					struct sock_common *common, struct lic_tag *tag)
{
	record->source_port = BPF_CORE_READ(common, skc_num);
	record->destination_port = bpf_ntohs(BPF_CORE_READ(common, skc_dport));
	record->state = BPF_CORE_READ(common, skc_state);
	if (BPF_CORE_READ(common, skc_family) == LIC_AF_INET6) {
		record->is_ipv6 = 1;
		BPF_CORE_READ_INTO(&record->source, common, skc_v6_rcv_saddr.in6_u.u6_addr32);
		BPF_CORE_READ_INTO(&record->destination, common, skc_v6_daddr.in6_u.u6_addr32);
	} else {
		record->source[0] = BPF_CORE_READ(common, skc_rcv_saddr);
		record->destination[0] = BPF_CORE_READ(common, skc_daddr);
	}
	if (tag) {
		record->tag = *tag;
		record->tagged = 1;
	}
}

#endif /* LICAGENT_OPEN_SOCKETS_H */
