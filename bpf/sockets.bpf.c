// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * All sockets at once.
 *
 *   iter/tcp        note_listeners: which local ports are listened on
 *   iter/task_file  adopt: tag sockets that are older than the agent or than the policy
 *   iter/task_file  list: every socket with its holder and tag, for status and explain
 *   iter/tcp, udp   cut: end exactly the sockets whose tag no longer holds
 *
 * bpf_sock_destroy is a kfunc of 6.5 (commit 4ddbcb886268); without it the daemon ends the
 * listed sockets by netlink. An iterator sees the network namespace of whoever reads it.
 */
#include "core.h"
#include "kernel.h"
#include "open_sockets.h"
#include "report.h"
#include "scope.h"
#include "service.h"
#include "subject.h"
#include "tag.h"
#include <bpf/bpf_tracing.h>

extern int bpf_sock_destroy(struct sock_common *sk) __ksym __weak;

#define LIC_TCP_SYN_SENT 2
#define LIC_TCP_CLOSE 7
#define LIC_TCP_LISTEN 10

/* Written by note_listeners, read by adopt: one bit a TCP port. Cleared by the daemon. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} listening SEC(".maps");

SEC("iter/tcp")
int licagent_listen(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;
	__u32 word;
	__u64 *bits;

	if (!sk || BPF_CORE_READ(sk, skc_state) != LIC_TCP_LISTEN)
		return 0;
	word = BPF_CORE_READ(sk, skc_num) >> 6;
	bits = bpf_map_lookup_elem(MAP(listening), &word);
	/* No atomic or: it is of 5.12, and nobody else writes; the daemon reads one at a time. */
	if (bits)
		*bits |= 1ULL << (BPF_CORE_READ(sk, skc_num) & 63);
	return 0;
}

static __always_inline int is_listening(__u16 port)
{
	__u32 word = port >> 6;
	__u64 *bits = bpf_map_lookup_elem(MAP(listening), &word);

	return bits && (*bits >> (port & 63)) & 1;
}

SEC("iter/task_file")
int licagent_adopt(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct lic_decision decision;
	struct lic_subject subject;
	struct lic_policy *policy;
	struct lic_control *ctl;
	struct socket *socket;
	struct lic_flow flow;
	struct lic_tag *tag;
	struct sock *sk;
	__u16 family, local;
	__u8 state, kept;

	if (!task || !file)
		return 0;
	ctl = get_control();
	if (!ctl || !ctl->generation || !in_root(task, ctl->root_cgroup))
		return 0;
	policy = get_policy(ctl->generation);
	if (!policy)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk)
		return 0;
	family = sk->__sk_common.skc_family;
	if (family != LIC_AF_INET && family != LIC_AF_INET6)
		return 0;
	tag = bpf_sk_storage_get(MAP(tags), sk, 0, 0);
	if (tag && (tag->network.kind || tag->service.kind))
		return 0; /* its next packet, or the cut, renews it */
	task_subject(task, &subject);
	sock_flow(sk, &flow);
	normalise(ctl, &flow, 0, 0);
	state = sk->__sk_common.skc_state;
	local = sk->__sk_common.skc_num;

	if (BPF_CORE_READ(sk, sk_type) == LIC_SOCK_RAW ||
	    (flow.protocol != LIC_PROTO_TCP && flow.protocol != LIC_PROTO_UDP)) {
		tag = need_tag(ctl, sk, tag, &subject);
		if (tag) {
			tag->protocol = flow.protocol;
			tag->network.kind = LIC_TAG_PACKET;
		}
		return 0;
	}

	/* What it offers: a listener, a bound UDP socket, or a connection that one accepted. */
	if (local && policy->flags & LIC_POLICY_HAS_SERVICES &&
	    is_service_port(ctl->generation, flow.protocol, local) &&
	    (flow.protocol == LIC_PROTO_UDP || state == LIC_TCP_LISTEN || is_listening(local))) {
		struct lic_flow offered = {
			.port = local,
			.protocol = flow.protocol,
			.is_service = 1,
		};

		lic_decide(&offered, &subject, &decision);
		kept = keep_existing(policy, &decision);
		if (decision.kind != LIC_TAG_FREE) {
			report(&decision, &subject, 0, &offered, LIC_HOOK_ADOPT, 0, 0);
			tag = need_tag(ctl, sk, tag, &subject);
			if (!tag)
				return 0;
			tag->protocol = flow.protocol;
			tag->local_port = local;
			tag->kept |= kept;
			fill_half(&tag->service, &decision);
			tag->meter = 0;
		}
	}
	if (ctl->sheet) {
		tag = need_tag(ctl, sk, tag, &subject);
		if (!tag)
			return 0;
	}

	/* What it uses: a destination, unless the connection was accepted. */
	if (!flow.port || !(policy->flags & LIC_POLICY_HAS_NETWORKS))
		return 0;
	if (flow.protocol == LIC_PROTO_TCP &&
	    (state == LIC_TCP_LISTEN || state == LIC_TCP_CLOSE || is_listening(local)))
		return 0;
	lic_decide(&flow, &subject, &decision);
	kept = keep_existing(policy, &decision);
	report(&decision, &subject, 0, &flow, LIC_HOOK_ADOPT, 0, 0);
	tag = need_tag(ctl, sk, tag, &subject);
	if (!tag)
		return 0;
	tag->kept |= kept;
	fill_flow(tag, &flow);
	fill_half(&tag->network, &decision);
	tag->meter = 0;
	return 0;
}

SEC("iter/task_file")
int licagent_list(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct lic_socket_record *record;
	struct socket *socket;
	struct sock *sk;
	__u32 zero = 0;
	__u16 family;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk)
		return 0;
	family = sk->__sk_common.skc_family;
	if (family != LIC_AF_INET && family != LIC_AF_INET6)
		return 0;
	record = bpf_map_lookup_elem(MAP(record_scratch), &zero);
	if (!record)
		return 0;
	__builtin_memset(record, 0, sizeof(*record));
	fill_record(record, &sk->__sk_common, bpf_sk_storage_get(MAP(tags), sk, 0, 0));
	record->protocol = fold_protocol(BPF_CORE_READ(sk, sk_protocol));
	record->cookie = bpf_get_socket_cookie(sk);
	record->holder_pid = BPF_CORE_READ(task, tgid);
	record->uid = BPF_CORE_READ(task, cred, uid.val);
	record->fd = ctx->fd;
	record->inode = BPF_CORE_READ(file, f_inode, i_ino);
	bpf_seq_write(ctx->meta->seq, record, sizeof(*record));
	return 0;
}

static __always_inline int still_holds(struct lic_control *ctl, struct lic_tag *tag)
{
	if (tag->network.kind && tag->network.kind != LIC_TAG_PACKET &&
	    !half_holds(ctl, &tag->network) &&
	    !renew_half(ctl, tag, &tag->network, 0, LIC_HOOK_ADOPT, 0))
		return 0;
	if (tag->service.kind && !half_holds(ctl, &tag->service) &&
	    !renew_half(ctl, tag, &tag->service, 1, LIC_HOOK_ADOPT, 0))
		return 0;
	return 1;
}

static __always_inline int cut(struct bpf_iter_meta *meta, struct sock_common *common, __u32 uid,
			       __u8 protocol)
{
	struct lic_control *ctl = get_control();
	struct lic_socket_record *record;
	struct lic_tag *tag;
	__u32 zero = 0;

	if (!ctl || !ctl->generation)
		return 0;
	tag = bpf_sk_storage_get(MAP(tags), common, 0, 0);
	if (!tag || still_holds(ctl, tag))
		return 0;
	record = bpf_map_lookup_elem(MAP(record_scratch), &zero);
	if (!record)
		return 0;
	__builtin_memset(record, 0, sizeof(*record));
	fill_record(record, common, tag);
	record->protocol = protocol;
	record->uid = uid;
	record->cookie = bpf_get_socket_cookie(common);
	if (bpf_sock_destroy)
		record->destroyed = bpf_sock_destroy(common) == 0;
	bpf_seq_write(meta->seq, record, sizeof(*record));
	return 0;
}

SEC("iter/tcp")
int licagent_cut_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;

	if (!sk)
		return 0;
	return cut(ctx->meta, sk, ctx->uid, LIC_PROTO_TCP);
}

SEC("iter/udp")
int licagent_cut_udp(struct bpf_iter__udp *ctx)
{
	struct udp_sock *sk = ctx->udp_sk;

	if (!sk)
		return 0;
	return cut(ctx->meta, (struct sock_common *)sk, ctx->uid, LIC_PROTO_UDP);
}

char licagent_license[] SEC("license") = "Dual BSD/GPL";
