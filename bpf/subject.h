/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who is asking: the running process, or the socket where no process is at hand. */
#ifndef LICAGENT_SUBJECT_H
#define LICAGENT_SUBJECT_H

#include "decide.h"

static __always_inline void fill_identity(struct lic_subject *subject)
{
	__u32 pid = subject->pid;
	struct lic_process *process = bpf_map_lookup_elem(MAP(processes), &pid);

	if (process) {
		subject->path = process->path;
		subject->digest = process->digest;
		subject->exec_ns = process->exec_ns;
	} else {
		subject->path = 0;
		subject->digest = 0;
		subject->exec_ns = 0;
	}
}

/*
 * The real user id: a setuid program is used by who started it. io_uring's helper threads carry
 * the process id and credentials of their process (since 5.12). Kernel threads appear as
 * themselves: user 0, no executable, the root cgroup.
 */
static __always_inline void current_subject(struct lic_subject *subject)
{
	__u64 owner = bpf_get_current_uid_gid();

	subject->pid = bpf_get_current_pid_tgid() >> 32;
	subject->uid = (__u32)owner;
	subject->gid = owner >> 32;
	subject->reserved = 0;
	subject->cgroup = bpf_get_current_cgroup_id();
	fill_identity(subject);
}

/* Packets carry no process: only the socket's owner and cgroup can speak for them. */
static __always_inline void packet_subject(struct __sk_buff *skb, struct lic_subject *subject)
{
	__builtin_memset(subject, 0, sizeof(*subject));
	subject->uid = bpf_get_socket_uid(skb);
	subject->gid = LIC_NO_OWNER;
	subject->cgroup = bpf_skb_cgroup_id(skb);
}

#endif /* LICAGENT_SUBJECT_H */
