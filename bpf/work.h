/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What threads and processes used, and the lines of the open sheet.
 *
 * The numbers are the kernel's own, per thread: sum_exec_runtime, nanoseconds from the scheduler,
 * and the task's ioac. Not those of the process (signal_struct): a thread that reaps itself is
 * added there before its last time slice is, and ioac there holds waited-for children as well
 * (wait_task_zombie). A thread is final when it is freed: the last schedule and the release are
 * both over (put_task_struct_rcu_user), so nothing of what a process does while it exits is missed.
 */
#ifndef LICAGENT_WORK_H
#define LICAGENT_WORK_H

#include "core.h"
#include "kernel.h"

#define LIC_NSEC_PER_MSEC 1000000ULL
#define LIC_IDLE_MS 60000

/*
 * Written by the programs of usage.bpf.c, read and emptied by the daemon, sheet by sheet. One line
 * for each process that lived through a sample and used something, one for all others of one
 * executable, cgroup and user. Two sheets of 65,536; what comes beyond goes to `spilled_work`.
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

#endif /* LICAGENT_WORK_H */
