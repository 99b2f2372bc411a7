/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who is asking: the running process, or the socket where no process is at hand. */
#ifndef LICAGENT_SUBJECT_H
#define LICAGENT_SUBJECT_H

#include "decide.h"

/*
 * The real user id: a setuid program is used by who started it. io_uring's helper threads carry
 * the process id and credentials of their process (since 5.12). Kernel threads appear as
 * themselves: user 0, no executable, the root cgroup.
 *
 * Read from the task where the verifier allows it (the loader tries, see connect_plain.bpf.c), since
 * the three helpers that say the same cost more.
 */
static __always_inline void current_owner(struct lic_subject *subject)
{
#ifdef LICAGENT_TASK_BTF
	struct task_struct *task = bpf_get_current_task_btf();

	subject->pid = task->tgid;
	subject->uid = task->cred->uid.val;
	subject->gid = task->cred->gid.val;
	subject->cgroup = task->cgroups->dfl_cgrp->kn->id;
#else
	__u64 owner = bpf_get_current_uid_gid();

	subject->pid = bpf_get_current_pid_tgid() >> 32;
	subject->uid = (__u32)owner;
	subject->gid = owner >> 32;
	subject->cgroup = bpf_get_current_cgroup_id();
#endif
}

/* The executable, fixed at exec. The entry, for folding events; may be null. */
static __always_inline struct lic_process *identify_process(struct lic_subject *subject)
{
	__u32 pid = subject->pid;
	struct lic_process *process = bpf_map_lookup_elem(MAP(processes), &pid);

	subject->path = known_path(process);
	subject->digest = known_digest(process);
	/* Two execs of one process id that agree in these bits are 4.3 s apart, and exact. */
	subject->exec_id = process ? (__u32)process->exec_ns : 0;
	return process;
}

static __always_inline struct lic_process *current_subject(struct lic_subject *subject)
{
	current_owner(subject);
	return identify_process(subject);
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
