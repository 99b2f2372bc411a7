/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Accounts: whose it is what a process uses.
 *
 * An account is found by the address of its signal_struct, which all threads of a process share
 * and which stays theirs until the last of them is freed. A process id would be somebody else's
 * by then.
 */
#ifndef LICAGENT_ACCOUNTS_H
#define LICAGENT_ACCOUNTS_H

#include "core.h"
#include "kernel.h"

/*
 * Written by fork, exec and attach, read by all programs of usage.bpf.c. One a process, by the
 * address of its signal_struct; as many as `processes`. Who has none is counted without an
 * executable.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, __u64);
	__type(value, struct lic_account);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} accounts SEC(".maps");

static __always_inline __u64 account_key(struct task_struct *task)
{
	return (__u64)task->signal;
}

/*
 * The account of a task's process. An address may be used again: what stands there is of this
 * process only if the process id says so, too. It can say so wrongly only if somebody got both
 * again, and then fork has written his account, or taken the old one away.
 */
static __always_inline struct lic_account *find_account(struct task_struct *task, __u64 key)
{
	struct lic_account *account = bpf_map_lookup_elem(MAP(accounts), &key);

	return account && account->owner.pid == (__u32)task->tgid ? account : 0;
}

static __always_inline void task_owner(struct task_struct *task, struct lic_owner *owner)
{
	owner->start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	owner->cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
	owner->pid = BPF_CORE_READ(task, tgid);
	owner->uid = BPF_CORE_READ(task, cred, uid.val);
	owner->gid = BPF_CORE_READ(task, cred, gid.val);
}

/* The numbers by which selectors know the executable: those of identity.bpf.c. */
static __always_inline void selectors_of(struct lic_account *account)
{
	__u32 pid = account->owner.pid;
	struct lic_process *process = bpf_map_lookup_elem(MAP(processes), &pid);
	__u32 is_known = process && process->inode == account->owner.inode &&
			 process->device == account->owner.device;

	account->path = is_known ? known_path(process) : 0;
	account->digest = is_known ? known_digest(process) : 0;
}

static __always_inline void file_of(struct file *file, struct lic_account *account)
{
	struct inode *inode = BPF_CORE_READ(file, f_inode);

	account->owner.device = BPF_CORE_READ(inode, i_sb, s_dev);
	account->owner.inode = BPF_CORE_READ(inode, i_ino);
	selectors_of(account);
}

static __always_inline void executable_of(struct task_struct *task, struct lic_account *account)
{
	struct file *file = BPF_CORE_READ(task, mm, exe_file);

	if (file)
		file_of(file, account);
	BPF_CORE_READ_INTO(&account->comm, task, group_leader, comm);
}

/* An account for a process that is older than the agent, or comes from outside its cgroup. */
static __always_inline struct lic_account *open_account(struct task_struct *task, __u64 key)
{
	struct lic_account account = {};

	task_owner(task, &account.owner);
	account.since_ns = bpf_ktime_get_boot_ns();
	account.seen_ns = account.since_ns;
	executable_of(task, &account);
	if (bpf_map_update_elem(MAP(accounts), &key, &account, BPF_ANY))
		note_fault(LIC_FAULT_WORK_SPILLED);
	return bpf_map_lookup_elem(MAP(accounts), &key);
}

/* Is this the last thread of its process? The account goes with it. */
static __always_inline int is_last(struct task_struct *task, struct lic_account *account)
{
	if (account->threads)
		return __sync_fetch_and_sub(&account->threads, 1) == 1;
	/* Older than the account: by the references to signal_struct, one for each task_struct. */
	return BPF_CORE_READ(task, signal, sigcnt.refs.counter) == 1;
}

#endif /* LICAGENT_ACCOUNTS_H */
