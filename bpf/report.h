/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Counting and telling: exact counters, folded events, the errno a program sees. */
#ifndef LICAGENT_REPORT_H
#define LICAGENT_REPORT_H

#include "decide.h"

#define LIC_DENY_WINDOW_NS LIC_NSEC_PER_SEC
#define LIC_ALLOW_WINDOW_NS (60 * LIC_NSEC_PER_SEC)

static __always_inline void count_decision(const struct lic_decision *decision)
{
	struct lic_counter_key key = {
		.license = decision->license,
		.resource = decision->resource,
		.verdict = decision->verdict,
		.reason = decision->reason,
	};
	__u64 one = 1, *count = bpf_map_lookup_elem(MAP(counters), &key);

	if (likely(count)) {
		/* Atomic: a packet program may interrupt a connect program on this CPU. */
		__sync_fetch_and_add(count, 1);
		return;
	}
	if (!bpf_map_update_elem(MAP(counters), &key, &one, BPF_NOEXIST))
		return;
	count = bpf_map_lookup_elem(MAP(counters), &key);
	if (!count) { /* full */
		note_fault(LIC_FAULT_COUNTER_SPILLED);
		key.license = 0;
		key.resource = 0;
		count = bpf_map_lookup_elem(MAP(counters), &key);
	}
	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline void repeat_key(struct lic_repeat_key *key, __u32 pid, __u32 exec_id,
				       __u32 license, __u32 resource, __u32 verdict, __u32 reason)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->pid = pid;
	key->exec_id = exec_id;
	key->license = license;
	key->resource = resource;
	key->verdict = verdict;
	key->reason = reason;
}

/* How many decisions an event must stand for now; 0 folds this one into a later event. */
static __always_inline __u64 fold_repeat(const struct lic_decision *decision,
					 const struct lic_subject *subject,
					 struct lic_process *process)
{
	struct lic_repeat first = { .emitted_ns = decision->now_ns };
	struct lic_repeat_key key;
	struct lic_repeat *repeat;
	__u64 now = decision->now_ns, window = LIC_DENY_WINDOW_NS, pending = 0;
	int is_use = process && decision->verdict == LIC_VERDICT_ALLOW &&
		     decision->reason == LIC_REASON_LICENSED;

	/* The usual case, the same license again, is kept with the process. */
	if (is_use && process->allowed_license == decision->license &&
	    process->allowed_resource == decision->resource) {
		if (now - process->allowed_ns < LIC_ALLOW_WINDOW_NS) {
			__sync_fetch_and_add(&process->allowed_pending, 1);
			return 0;
		}
		pending = process->allowed_pending;
		__sync_fetch_and_add(&process->allowed_pending, -pending);
	} else if (is_use && process->allowed_pending) {
		/* Another license: what was folded so far goes to its own entry. */
		repeat_key(&key, subject->pid, subject->exec_id, process->allowed_license,
			   process->allowed_resource, LIC_VERDICT_ALLOW, LIC_REASON_LICENSED);
		repeat = bpf_map_lookup_elem(MAP(repeats), &key);
		if (repeat) {
			__u64 moved = process->allowed_pending;

			__sync_fetch_and_add(&repeat->pending, moved);
			__sync_fetch_and_add(&process->allowed_pending, -moved);
		}
	}
	if (decision->verdict == LIC_VERDICT_ALLOW)
		window = LIC_ALLOW_WINDOW_NS;
	repeat_key(&key, subject->pid, subject->exec_id, decision->license, decision->resource,
		   decision->verdict, decision->reason);
	repeat = bpf_map_lookup_elem(MAP(repeats), &key);
	if (!repeat) {
		bpf_map_update_elem(MAP(repeats), &key, &first, BPF_ANY);
		pending += 1;
	} else if (now - repeat->emitted_ns < window) {
		__sync_fetch_and_add(&repeat->pending, pending + 1);
		first.emitted_ns = repeat->emitted_ns;
		pending = 0;
	} else {
		__u64 held = repeat->pending;

		/* Taking back what was read loses no increment that comes meanwhile. */
		__sync_fetch_and_add(&repeat->pending, -held);
		repeat->emitted_ns = now;
		pending += held + 1;
	}
	if (is_use) {
		process->allowed_ns = first.emitted_ns;
		process->allowed_license = decision->license;
		process->allowed_resource = decision->resource;
	}
	return pending;
}

/* An event that did not fit: what it stood for is told by the next one. */
static __always_inline void give_back(const struct lic_decision *decision,
				      const struct lic_subject *subject, __u64 count)
{
	struct lic_repeat_key key;
	struct lic_repeat *repeat;

	repeat_key(&key, subject->pid, subject->exec_id, decision->license, decision->resource,
		   decision->verdict, decision->reason);
	repeat = bpf_map_lookup_elem(MAP(repeats), &key);
	if (repeat)
		__sync_fetch_and_add(&repeat->pending, count);
}

/* Count a decision, and tell of it unless it repeats. `ctx` gives the cookie; may be null. */
static __always_inline void report(const struct lic_decision *decision,
				   const struct lic_subject *subject, struct lic_process *process,
				   const struct lic_flow *flow, __u32 hook, void *ctx,
				   int in_process)
{
	struct lic_event *event;
	__u64 count;

	if (!decision->verdict)
		return;
	count_decision(decision);
	count = fold_repeat(decision, subject, process);
	if (!count)
		return;
	event = bpf_ringbuf_reserve(MAP(events), sizeof(*event), 0);
	if (!event) {
		note_fault(LIC_FAULT_EVENT_DROPPED);
		give_back(decision, subject, count);
		return;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->kind = LIC_EVENT_DECISION;
	event->verdict = decision->verdict;
	event->reason = decision->reason;
	event->at_ns = decision->now_ns;
	event->count = count;
	event->license = decision->license;
	event->resource = decision->resource;
	event->rule = decision->rule;
	event->pid = subject->pid;
	event->uid = subject->uid;
	event->gid = subject->gid;
	event->path = subject->path;
	event->digest = subject->digest;
	event->exec_id = subject->exec_id;
	event->cgroup = subject->cgroup;
	if (ctx)
		event->cookie = bpf_get_socket_cookie(ctx);
	event->destination[0] = flow->address[0];
	event->destination[1] = flow->address[1];
	event->destination[2] = flow->address[2];
	event->destination[3] = flow->address[3];
	event->destination_port = flow->port;
	event->source[0] = flow->source[0];
	event->source[1] = flow->source[1];
	event->source[2] = flow->source[2];
	event->source[3] = flow->source[3];
	event->source_port = flow->source_port;
	event->protocol = flow->protocol;
	event->is_ipv6 = flow->is_ipv6;
	event->hook = hook;
	if (in_process)
		bpf_get_current_comm(event->comm, sizeof(event->comm));
	bpf_ringbuf_submit(event, 0);
	note_fault(LIC_FAULT_EVENT_EMITTED);
}

/* The kernel's own key errors, as include/uapi/asm-generic/errno.h numbers them. */
static __always_inline int reason_errno(__u32 reason)
{
	switch (reason) {
	case LIC_REASON_NO_BINDING:
		return 126; /* ENOKEY */
	case LIC_REASON_EXPIRED:
	case LIC_REASON_NOT_YET_VALID:
	case LIC_REASON_LEASE_LOST:
		return 127; /* EKEYEXPIRED */
	case LIC_REASON_REVOKED:
		return 128; /* EKEYREVOKED */
	case LIC_REASON_CONDITION:
		return 129; /* EKEYREJECTED */
	case LIC_REASON_NO_SEAT:
		return 87; /* EUSERS */
	case LIC_REASON_QUOTA:
		return 122; /* EDQUOT */
	default:
		return 1; /* EPERM */
	}
}

/* What a socket hook returns to let the call fail. */
static __always_inline int refuse(__u32 reason)
{
	/* commit b44123b4a3dc (5.18); before it the call fails with EPERM */
#ifndef LICAGENT_BCC
	if (LINUX_KERNEL_VERSION >= LIC_KERNEL(5, 18))
		bpf_set_retval(-reason_errno(reason));
#elif !defined(LICAGENT_NO_SET_RETVAL)
	bpf_set_retval(-reason_errno(reason));
#endif
	return 0;
}

#endif /* LICAGENT_REPORT_H */
