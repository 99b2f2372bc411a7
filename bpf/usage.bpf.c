// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What processes use: time on a CPU, storage input and output, memory; and what a TCP socket has
 * carried when it ends.
 *
 *   tp_btf/sched_process_fork    a process gets an account
 *   tp_btf/sched_process_exec    the account's next segment: another executable, other rights
 *   tp_btf/cgroup_attach_task    the same for another cgroup
 *   tp_btf/sched_process_exit    the end of a process; threads that an exec ends
 *   tp_btf/sched_process_free    the last word of a thread
 *   iter/task                    what live threads used since the last time
 *   tp_btf/inet_sock_set_state   the payload that no packet has settled yet
 *
 * What a sample reads of every task (licagent_collect) is read through BTF's pointers, in place:
 * bpf_probe_read_kernel is a call for each word. One that has gone reads as zero either way.
 */
#include "accounts.h"
#include "core.h"
#include "kernel.h"
#include "meter.h"
#include "scope.h"
#include "work.h"
#include <bpf/bpf_tracing.h>

/* Less than this of CPU time is not worth a segment of its own, or being taken twice. */
#define LIC_YOUNG_NS 1000000
#define LIC_EXIT_DEAD 0x10 /* include/linux/sched.h */
#define LIC_TCP_FIN_WAIT2 5
#define LIC_TCP_LAST_ACK 9
#define LIC_TCP_CLOSING 11

SEC("tp_btf/sched_process_fork")
int BPF_PROG(licagent_open, struct task_struct *parent, struct task_struct *child)
{
	struct lic_account account = {}, *known;
	struct lic_control *ctl = get_control();
	__u64 key, from;

	if (!ctl || !ctl->sheet)
		return 0;
	key = account_key(child);
	if (BPF_CORE_READ(child, tgid) != BPF_CORE_READ(child, pid)) { /* a thread */
		known = find_account(child, key);
		if (known && known->threads)
			__sync_fetch_and_add(&known->threads, 1);
		return 0;
	}
	from = account_key(parent);
	known = find_account(parent, from);
	task_owner(child, &account.owner);
	if ((!known || known->owner.cgroup != account.owner.cgroup) &&
	    !in_root(child, ctl->root_cgroup)) {
		bpf_map_delete_elem(MAP(accounts), &key);
		return 0;
	}
	if (known) {
		account.owner.inode = known->owner.inode;
		account.owner.device = known->owner.device;
		account.path = known->path;
		account.digest = known->digest;
		__builtin_memcpy(account.comm, known->comm, sizeof(account.comm));
	} else { /* its parent is outside */
		executable_of(child, &account);
	}
	account.since_ns = account.owner.start_ns;
	account.seen_ns = account.owner.start_ns;
	account.threads = 1;
	if (bpf_map_update_elem(MAP(accounts), &key, &account, BPF_ANY)) {
		bpf_map_delete_elem(MAP(accounts), &key);
		note_fault(LIC_FAULT_WORK_SPILLED);
	}
	return 0;
}

/*
 * The beginning of a thread's end. A process is counted as ended with its last thread. And what
 * the thread used so far is charged now: an exec in a process of many threads ends the others
 * first, and by the time they are freed the account is the new program's. The rest, from here to
 * its last schedule, is charged when it is freed; that of a short life is all of it.
 */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(licagent_leave, struct task_struct *task)
{
	struct signal_struct *group = BPF_CORE_READ(task, signal);
	struct signal_struct___old *old = (void *)group;
	struct lic_control *ctl = get_control();
	struct lic_taken nothing = {};
	struct lic_account *account;
	struct task_struct *execs;

	if (!ctl || !ctl->sheet)
		return 0;
	account = find_account(task, (__u64)group);
	if (!account)
		return 0;
	if (!account->sampled) { /* setuid() has no tracepoint: see licagent_close */
		account->owner.uid = BPF_CORE_READ(task, cred, uid.val);
		account->owner.gid = BPF_CORE_READ(task, cred, gid.val);
	}
	if (bpf_core_field_exists(group->group_exec_task))
		execs = BPF_CORE_READ(group, group_exec_task);
	else
		execs = BPF_CORE_READ(old, group_exit_task);
	if ((execs && execs != task) || BPF_CORE_READ(task, se.sum_exec_runtime) > LIC_YOUNG_NS)
		settle_thread(ctl, task, account);
	if (BPF_CORE_READ(group, live.counter) == 0) /* do_exit has counted this one out already */
		charge(ctl->sheet, account, &nothing, 0, 1);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(licagent_segment, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	struct lic_control *ctl = get_control();
	__u64 key = account_key(task);
	struct lic_account *account;

	if (!ctl || !ctl->sheet)
		return 0;
	account = find_account(task, key);
	if (!account)
		return 0; /* outside, or there was no room */
	/*
	 * What the old image did since the last sample. The scheduler brings the running thread's
	 * number up to date once a tick, so the cut is as exact as that; nothing is lost by it.
	 */
	if (account->sampled || BPF_CORE_READ(task, se.sum_exec_runtime) > LIC_YOUNG_NS)
		settle_thread(ctl, task, account);
	account->owner.uid = BPF_CORE_READ(task, cred, uid.val);
	account->owner.gid = BPF_CORE_READ(task, cred, gid.val);
	file_of(BPF_CORE_READ(bprm, file), account);
	BPF_CORE_READ_INTO(&account->comm, task, comm);
	return 0;
}

SEC("tp_btf/cgroup_attach_task")
int BPF_PROG(licagent_move, struct cgroup *to, const char *path, struct task_struct *task)
{
	struct lic_control *ctl = get_control();
	__u64 key = account_key(task);
	struct lic_account *account;

	if (!ctl || !ctl->sheet || BPF_CORE_READ(to, root, hierarchy_id))
		return 0;
	account = find_account(task, key);
	if (account)
		settle_thread(ctl, task, account);
	if (!in_root(task, ctl->root_cgroup)) {
		bpf_map_delete_elem(MAP(accounts), &key);
		return 0;
	}
	if (account) {
		account->owner.cgroup = BPF_CORE_READ(to, kn, id);
		return 0;
	}
	account = open_account(task, key);
	if (account)
		settle_thread(ctl, task, account); /* what it did outside is not ours */
	return 0;
}

SEC("tp_btf/sched_process_free")
int BPF_PROG(licagent_close, struct task_struct *task)
{
	__u32 is_leader = BPF_CORE_READ(task, pid) == BPF_CORE_READ(task, tgid);
	struct lic_control *ctl = get_control();
	struct lic_account *account, stranger = {};
	__u64 key = account_key(task), memory = 0;
	struct lic_taken used = {};
	int is_known;

	if (!ctl || !ctl->sheet)
		return 0;
	account = find_account(task, key);
	is_known = account != 0;
	if (!account) {
		if (!in_root(task, ctl->root_cgroup))
			return 0;
		stranger.since_ns = ctl->metered_since_ns;
		stranger.owner.cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
		BPF_CORE_READ_INTO(&stranger.comm, task, comm);
		account = &stranger;
	}
	if (is_leader || !account->sampled) {
		/* setuid() has no tracepoint, and there may have been no sample since. */
		account->owner.uid = BPF_CORE_READ(task, cred, uid.val);
		account->owner.gid = BPF_CORE_READ(task, cred, gid.val);
	}
	if (account->sampled) {
		take_from_thread(ctl, task, account, &used);
	} else {
		/* Only samples and exits remember what a thread used. */
		last_word(ctl, task, account, &used);
	}
	if (is_leader && account->resident_pages)
		memory = (__u64)account->resident_pages * ctl->page_bytes *
			 ((bpf_ktime_get_boot_ns() - account->seen_ns) / LIC_NSEC_PER_MSEC);
	if (memory || !is_nothing(&used))
		charge(ctl->sheet, account, &used, memory, 0);
	if (is_known && is_last(task, account))
		bpf_map_delete_elem(MAP(accounts), &key);
	return 0;
}

SEC("iter/task")
int licagent_collect(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct lic_control *ctl = get_control();
	struct lic_account *account;
	struct lic_taken used;
	__u64 key, memory;

	if (!task || !ctl || !ctl->sheet)
		return 0;
	/*
	 * Once it is released, its last word is taken when it is freed. Until then it cannot be
	 * freed while this program runs, which holds the RCU read lock, so nothing is counted
	 * twice: release_task comes after EXIT_DEAD. Zombies are not released yet.
	 */
	if (task->exit_state & LIC_EXIT_DEAD)
		return 0;
	key = account_key(task);
	account = find_account(task, key);
	if (!account) {
		if (!in_root(task, ctl->root_cgroup))
			return 0;
		account = open_account(task, key);
		if (!account)
			return 0;
	}
	account->sampled = 1;
	if (task->pid == (int)account->owner.pid) {
		/* setuid() and prctl(PR_SET_NAME) have no tracepoint: seen here. */
		const struct cred *cred = task->cred;

		if (cred) { /* never; where BTF knows it for an __rcu pointer, it must be asked */
			account->owner.uid = cred->uid.val;
			account->owner.gid = cred->gid.val;
		}
		BPF_CORE_READ_INTO(&account->comm, task, comm);
		selectors_of(
			account); /* a policy may have named it since, or its content is known */
	}
	if (!take_from_thread(ctl, task, account, &used))
		return 0;
	memory = memory_since(task, account, ctl->page_bytes, is_nothing(&used));
	if (memory || !is_nothing(&used))
		charge(ctl->sheet, account, &used, memory, 0);
	return 0;
}

/*
 * The end of a TCP socket, or of one of its connections (connect(AF_UNSPEC)): what its packets
 * have not settled. It runs with the socket locked, as the sending of packets does.
 */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(licagent_settle, const struct sock *sk, const int before, const int after)
{
	struct lic_control *ctl;
	struct lic_meter *meter;
	struct tcp_sock *tcp;
	__u64 acked, received;
	struct lic_tag *tag;

	if (after != LIC_TCP_CLOSE || before == LIC_TCP_CLOSE || sk->sk_protocol != LIC_IPPROTO_TCP)
		return 0;
	ctl = get_control();
	if (!ctl || !ctl->sheet)
		return 0;
	tag = bpf_sk_storage_get(MAP(tags), (struct sock *)sk, 0, 0);
	if (!tag)
		return 0;
	tcp = (struct tcp_sock *)sk;
	acked = BPF_CORE_READ(tcp, bytes_acked);
	received = BPF_CORE_READ(tcp, bytes_received);
	if (acked && BPF_CORE_READ(tcp, snd_una) == BPF_CORE_READ(tcp, write_seq) &&
	    (before == LIC_TCP_FIN_WAIT2 || before == LIC_TCP_LAST_ACK ||
	     before == LIC_TCP_CLOSING))
		acked -= 1; /* our FIN */
	if (received && BPF_CORE_READ(sk, __sk_common.skc_flags) & (1UL << SOCK_DONE))
		received -= 1; /* the peer's FIN (tcp_fin) */
	meter = is_of_era(ctl, tag) ? get_meter(tag) : 0;
	if (meter)
		add_tcp_payload(tag, meter, *(volatile __u32 *)&ctl->sheet, acked, received);
	/* The socket may connect again, and its counters begin anew (tcp_disconnect). */
	tag->tx_bytes = 0;
	tag->rx_bytes = 0;
	return 0;
}

char licagent_license[] SEC("license") = "Dual BSD/GPL";
