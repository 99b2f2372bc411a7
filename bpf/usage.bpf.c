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
 * The numbers are the kernel's own, per thread: sum_exec_runtime, nanoseconds from the scheduler,
 * and the task's ioac. Not those of the process (signal_struct): a thread that reaps itself is
 * added there before its last time slice is, and ioac there holds waited-for children as well
 * (wait_task_zombie). A thread is final when it is freed: the last schedule and the release are
 * both over (put_task_struct_rcu_user), so nothing of what a process does while it exits is missed.
 *
 * An account is found by the address of its signal_struct, which all threads of a process share
 * and which stays theirs until the last of them is freed. A process id would be somebody else's
 * by then.
 *
 * What a sample reads of every task (licagent_collect) is read through BTF's pointers, in place:
 * bpf_probe_read_kernel is a call for each word. One that has gone reads as zero either way.
 */
#include "core.h"
#include "kernel.h"
#include "meter.h"
#include "scope.h"
#include <bpf/bpf_tracing.h>

/* Less than this of CPU time is not worth a segment of its own, or being taken twice. */
#define LIC_YOUNG_NS 1000000
#define LIC_NSEC_PER_MSEC 1000000ULL
#define LIC_IDLE_MS 60000
#define LIC_EXIT_DEAD 0x10 /* include/linux/sched.h */
#define LIC_TCP_FIN_WAIT2 5
#define LIC_TCP_LAST_ACK 9
#define LIC_TCP_CLOSING 11

/*
 * Written by fork, exec and attach, read by all programs here. One a process, by the address of
 * its signal_struct; as many as `processes`. Who has none is counted without an executable.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, __u64);
	__type(value, struct lic_account);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} accounts SEC(".maps");

/*
 * Written by all programs here, read and emptied by the daemon, sheet by sheet. One line for each
 * process that lived through a sample and used something, one for all others of one executable,
 * cgroup and user. Two sheets of 65,536; what comes beyond goes to `spilled_work`.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct lic_work_key);
	__type(value, struct lic_work);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} work SEC(".maps");

/* Written when `work` is full, read and emptied by the daemon. Index: sheet & 1. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct lic_work);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} spilled_work SEC(".maps");

/* Written by iter/task, for threads that live through a sample; freed with the thread. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct lic_taken);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} taken SEC(".maps");

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

static __always_inline void add_work(struct lic_work *to, const struct lic_taken *used,
				     __u64 memory_byte_ms, __u32 processes)
{
	if (used->cpu_ns)
		__sync_fetch_and_add(&to->cpu_ns, used->cpu_ns);
	if (used->read_bytes)
		__sync_fetch_and_add(&to->read_bytes, used->read_bytes);
	if (used->write_bytes)
		__sync_fetch_and_add(&to->write_bytes, used->write_bytes);
	if (used->cancelled_bytes)
		__sync_fetch_and_add(&to->cancelled_bytes, used->cancelled_bytes);
	if (memory_byte_ms)
		__sync_fetch_and_add(&to->memory_byte_ms, memory_byte_ms);
	if (processes)
		__sync_fetch_and_add(&to->processes, processes);
}

/* Write usage into the open sheet, for the account's present owner. */
static __always_inline void charge(__u32 sheet, const struct lic_account *account,
				   const struct lic_taken *used, __u64 memory_byte_ms,
				   __u32 processes)
{
	struct lic_work_key key = {
		.sheet = sheet,
		.path = account->path,
		.owner = account->owner,
	};
	struct lic_work *line, fresh = {};
	__u32 bank = sheet & 1;

	if (!account->sampled) {
		key.owner.pid = 0;
		key.owner.start_ns = 0;
	}
	line = bpf_map_lookup_elem(MAP(work), &key);
	if (!line) {
		fresh.cpu_ns = used->cpu_ns;
		fresh.read_bytes = used->read_bytes;
		fresh.write_bytes = used->write_bytes;
		fresh.cancelled_bytes = used->cancelled_bytes;
		fresh.memory_byte_ms = memory_byte_ms;
		fresh.processes = processes;
		fresh.digest = account->digest;
		__builtin_memcpy(fresh.comm, account->comm, sizeof(fresh.comm));
		if (!bpf_map_update_elem(MAP(work), &key, &fresh, BPF_NOEXIST))
			return;
		line = bpf_map_lookup_elem(MAP(work), &key); /* somebody was quicker */
	}
	if (!line) {
		note_fault(LIC_FAULT_WORK_SPILLED);
		line = bpf_map_lookup_elem(MAP(spilled_work), &bank);
	}
	if (line)
		add_work(line, used, memory_byte_ms, processes);
}

static __always_inline void used_so_far(struct task_struct *task, struct lic_taken *now)
{
	now->cpu_ns = task->se.sum_exec_runtime;
	now->read_bytes = task->ioac.read_bytes;
	now->write_bytes = task->ioac.write_bytes;
	now->cancelled_bytes = task->ioac.cancelled_write_bytes;
}

/*
 * What a thread used since it was last asked: since `before`, if that is of this era. Else nothing
 * of it is in the books: that is all of it for a thread of the account's own time, and nobody's
 * for an older one.
 */
static __always_inline void used_since(struct task_struct *task, const struct lic_account *account,
				       const struct lic_taken *now, const struct lic_taken *before,
				       int is_of_era, struct lic_taken *used)
{
	__builtin_memset(used, 0, sizeof(*used));
	if (is_of_era) {
		used->cpu_ns = now->cpu_ns - before->cpu_ns;
		used->read_bytes = now->read_bytes - before->read_bytes;
		used->write_bytes = now->write_bytes - before->write_bytes;
		used->cancelled_bytes = now->cancelled_bytes - before->cancelled_bytes;
	} else if (task->start_boottime >= account->since_ns) {
		*used = *now;
	}
}

static __always_inline int is_nothing(const struct lic_taken *used)
{
	return !(used->cpu_ns | used->read_bytes | used->write_bytes | used->cancelled_bytes);
}

/*
 * What a live thread used since the last time, and that it is in the books now. 0 where there is
 * no memory to remember that: it is counted later then, and not twice.
 */
static __always_inline int take_from_thread(const struct lic_control *ctl, struct task_struct *task,
					    const struct lic_account *account,
					    struct lic_taken *used)
{
	struct lic_taken now = {}, *known;

	used_so_far(task, &now);
	now.era = ctl->era;
	/* One question that also makes it: before 6.2 a mere look may fail although it is there. */
	known = bpf_task_storage_get(MAP(taken), task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!known)
		return 0;
	/* What an earlier era wrote there is void. */
	used_since(task, account, &now, known, known->era == now.era, used);
	*known = now;
	return 1;
}

/* Put it into the open sheet. */
static __always_inline void settle_thread(const struct lic_control *ctl, struct task_struct *task,
					  struct lic_account *account)
{
	struct lic_taken used;

	if (take_from_thread(ctl, task, account, &used) && !is_nothing(&used))
		charge(ctl->sheet, account, &used, 0, 0);
}

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

/* As take_from_thread, without making anything for a thread that is about to be gone. */
static __always_inline void last_word(const struct lic_control *ctl, struct task_struct *task,
				      const struct lic_account *account, struct lic_taken *used)
{
	struct lic_taken now = {}, *known = bpf_task_storage_get(MAP(taken), task, 0, 0);

	used_so_far(task, &now);
	if (known)
		used_since(task, account, &now, known, known->era == ctl->era, used);
	else
		used_since(task, account, &now, &now, 0, used);
}

/* Is this the last thread of its process? The account goes with it. */
static __always_inline int is_last(struct task_struct *task, struct lic_account *account)
{
	if (account->threads)
		return __sync_fetch_and_sub(&account->threads, 1) == 1;
	/* Older than the account: by the references to signal_struct, one for each task_struct. */
	return BPF_CORE_READ(task, signal, sigcnt.refs.counter) == 1;
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

static __always_inline __u64 resident_pages(struct mm_struct *mm)
{
	struct mm_struct___old *old = (void *)mm;
	__s64 pages = 0;

	/* file, anonymous and shared memory; number 2 is swap (enum mm_counters) */
	if (bpf_core_field_exists(mm->rss_stat[0].count)) {
		pages = mm->rss_stat[0].count + mm->rss_stat[1].count + mm->rss_stat[3].count;
	} else {
		pages = BPF_CORE_READ(old, rss_stat.count[0].counter) +
			BPF_CORE_READ(old, rss_stat.count[1].counter) +
			BPF_CORE_READ(old, rss_stat.count[3].counter);
	}
	return pages > 0 ? pages : 0;
}

/*
 * Resident memory times the time since it was last looked at. A process that does nothing is
 * looked at once a minute or so, not all of them in one sample: ten thousand that sleep would
 * have ten thousand lines in every sheet.
 */
static __always_inline __u64 memory_since(struct task_struct *task, struct lic_account *account,
					  __u32 page_bytes, int is_idle)
{
	__u64 now = bpf_ktime_get_boot_ns(), since_ms;
	struct mm_struct *mm;

	if (now < account->seen_ns)
		return 0;
	since_ms = (now - account->seen_ns) / LIC_NSEC_PER_MSEC;
	if (!since_ms || (is_idle && since_ms < LIC_IDLE_MS + (account->owner.pid & 31) * 1000))
		return 0;
	account->seen_ns += since_ms * LIC_NSEC_PER_MSEC;
	mm = task->mm;
	account->resident_pages = mm ? resident_pages(mm) : 0;
	return (__u64)account->resident_pages * page_bytes * since_ms;
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
