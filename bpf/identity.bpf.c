// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Who a process is, known before its first instruction, and which cgroups the policy names.
 *
 *   tp_btf/sched_process_exec   the executable that was just mapped
 *   tp_btf/sched_process_fork   a child is what its parent is
 *   tp_btf/sched_process_exit   the last thread takes the entry away
 *   tp_btf/cgroup_mkdir         a unit that starts is recognised by its cgroup's name
 *   tp_btf/cgroup_rmdir
 *   iter/task                   the processes that are older than the agent
 */
#include "core.h"
#include "executable.h"
#include "kernel.h"
#include <bpf/bpf_tracing.h>

#define LIC_CGROUP_DEPTH 12

static __always_inline void store_process(__u32 pid, const struct lic_process *process)
{
	if (bpf_map_update_elem(MAP(processes), &pid, process, BPF_ANY)) {
		/* Unknown is safe; what ran here before would not be. */
		bpf_map_delete_elem(MAP(processes), &pid);
		note_fault(LIC_FAULT_PROCESS_FAILED);
	}
}

/* Ask the daemon to measure this file; it does so only while a selector needs it. */
static __always_inline void ask_measure(__u32 pid, const struct lic_process *process)
{
	struct lic_event *event = bpf_ringbuf_reserve(MAP(events), sizeof(*event), 0);

	if (!event) {
		note_fault(LIC_FAULT_EVENT_DROPPED);
		return;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->kind = LIC_EVENT_EXEC;
	event->hook = LIC_HOOK_EXEC;
	event->at_ns = process->exec_ns;
	event->exec_ns = process->exec_ns;
	event->pid = pid;
	event->device = process->device;
	event->inode = process->inode;
	event->ctime_ns = process->ctime_ns;
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	bpf_ringbuf_submit(event, 0);
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(licagent_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	__u32 pid = BPF_CORE_READ(task, tgid);
	struct lic_process process = {};
	struct lic_control *ctl = get_control();

	identify(BPF_CORE_READ(bprm, file), bpf_ktime_get_boot_ns(), &process);
	process.start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	store_process(pid, &process);
	if (!process.measured && ctl && ctl->measure)
		ask_measure(pid, &process);
	return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(licagent_fork, struct task_struct *parent, struct task_struct *child)
{
	__u32 from = BPF_CORE_READ(parent, tgid), to = BPF_CORE_READ(child, tgid);
	struct lic_process *process, copy;

	if (from == to) /* a thread */
		return 0;
	process = bpf_map_lookup_elem(MAP(processes), &from);
	if (!process)
		return 0;
	copy = *process;
	copy.allowed_ns = 0; /* its first use of a license is an event of its own */
	copy.allowed_license = 0;
	copy.allowed_resource = 0;
	copy.allowed_pending = 0;
	copy.start_ns = BPF_CORE_READ(child, start_boottime);
	store_process(to, &copy);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(licagent_exit, struct task_struct *task)
{
	__u32 pid = BPF_CORE_READ(task, tgid);

	/* do_exit has counted this thread out already */
	if (BPF_CORE_READ(task, signal, live.counter) > 0)
		return 0;
	bpf_map_delete_elem(MAP(processes), &pid);
	return 0;
}

static __always_inline int ends_in_slice(const char *name, long length)
{
	/* length counts the closing zero */
	__u32 at = length - 7;

	if (length < 8 || at > 120)
		return 0;
	name += at;
	return name[0] == '.' && name[1] == 's' && name[2] == 'l' && name[3] == 'i' &&
	       name[4] == 'c' && name[5] == 'e';
}

/* Are the ancestors below the agent's root such that the cgroup's name may be believed? */
static __always_inline void check_ancestors(struct cgroup *cgroup, __u64 root, int *all_slices,
					    int *in_user)
{
	struct cgroup *at = cgroup;
	char name[128];
	long length;

	*all_slices = 1;
	*in_user = 0;
	for (int i = 0; i < LIC_CGROUP_DEPTH; i++) {
		at = (struct cgroup *)BPF_CORE_READ(at, self.parent);
		if (!at)
			return;
		if (BPF_CORE_READ(at, kn, id) == root || !BPF_CORE_READ(at, self.parent))
			return;
		length = bpf_probe_read_kernel_str(name, sizeof(name), BPF_CORE_READ(at, kn, name));
		if (length < 0 || !ends_in_slice(name, length))
			*all_slices = 0;
		/*
		 * user@1000.service: what is below belongs to that user. A name as long as a
		 * container's id is one: what it makes below itself is no container of ours.
		 */
		if ((length > 5 && name[0] == 'u' && name[1] == 's' && name[2] == 'e' &&
		     name[3] == 'r' && name[4] == '@') ||
		    (length > 64 && !ends_in_slice(name, length)))
			*in_user = 1;
	}
	*all_slices = 0; /* too deep to be sure */
	*in_user = 1;
}

struct lic_mkdir_scratch {
	struct lic_scope_key key;
	struct lic_cgroup entry;
};

/* Scratch of cgroup_mkdir, too large for the stack. One CPU, one cgroup at a time. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lic_mkdir_scratch);
} mkdir_scratch SEC(".maps");

static __always_inline void add_scope(struct lic_cgroup *entry, struct lic_scope_key *key)
{
	__u32 *number = bpf_map_lookup_elem(MAP(scope_names), key);
	__u32 at = entry->count;

	if (number && at < LIC_MAX_SCOPES) {
		LIC_BOUND(at, LIC_MAX_SCOPES - 1);
		entry->scopes[at] = *number;
		entry->count = at + 1;
	}
}

SEC("tp_btf/cgroup_mkdir")
int BPF_PROG(licagent_cgroup_mkdir, struct cgroup *cgroup, const char *path)
{
	struct lic_control *ctl = get_control();
	struct lic_mkdir_scratch *scratch;
	struct lic_cgroup *above;
	struct cgroup *up;
	int all_slices, in_user;
	__u64 id, parent;
	__u32 zero = 0;

	if (!ctl || BPF_CORE_READ(cgroup, root, hierarchy_id))
		return 0; /* not the unified hierarchy */
	scratch = bpf_map_lookup_elem(MAP(mkdir_scratch), &zero);
	if (!scratch)
		return 0;
	id = BPF_CORE_READ(cgroup, kn, id);
	up = (struct cgroup *)BPF_CORE_READ(cgroup, self.parent);
	parent = BPF_CORE_READ(up, kn, id);
	__builtin_memset(scratch, 0, sizeof(*scratch));

	scratch->key.kind = LIC_SCOPE_PATH;
	if (bpf_probe_read_kernel_str(scratch->key.name, sizeof(scratch->key.name), path) > 0)
		add_scope(&scratch->entry, &scratch->key);

	check_ancestors(cgroup, ctl->root_cgroup, &all_slices, &in_user);
	__builtin_memset(&scratch->key, 0, sizeof(scratch->key));
	if (bpf_probe_read_kernel_str(scratch->key.name, sizeof(scratch->key.name),
				      BPF_CORE_READ(cgroup, kn, name)) > 0) {
		scratch->key.kind = LIC_SCOPE_UNIT;
		if (all_slices)
			add_scope(&scratch->entry, &scratch->key);
		scratch->key.kind = LIC_SCOPE_CONTAINER;
		if (!in_user)
			add_scope(&scratch->entry, &scratch->key);
	}

	above = bpf_map_lookup_elem(MAP(cgroups), &parent);
	if (above) {
		for (__u32 i = 0; i < LIC_MAX_SCOPES; i++) {
			__u32 at = scratch->entry.count;

			if (i >= above->count || at >= LIC_MAX_SCOPES)
				break;
			LIC_BOUND(at, LIC_MAX_SCOPES - 1); /* 6.1 forgets the comparison */
			scratch->entry.scopes[at] = above->scopes[i];
			scratch->entry.count = at + 1;
		}
	}
	if (scratch->entry.count &&
	    bpf_map_update_elem(MAP(cgroups), &id, &scratch->entry, BPF_ANY))
		note_fault(LIC_FAULT_CGROUP_FAILED);
	return 0;
}

SEC("tp_btf/cgroup_rmdir")
int BPF_PROG(licagent_cgroup_rmdir, struct cgroup *cgroup, const char *path)
{
	__u64 id;

	if (BPF_CORE_READ(cgroup, root, hierarchy_id))
		return 0;
	id = BPF_CORE_READ(cgroup, kn, id);
	bpf_map_delete_elem(MAP(cgroups), &id);
	return 0;
}

/* Both words in one store, see struct lic_known. */
static __always_inline void store_known(struct lic_known *known, __u32 exec_id, __u32 number)
{
	union {
		struct lic_known known;
		__u64 word;
	} fresh = { .known = { .exec_id = exec_id, .number = number } };

	*(volatile __u64 *)known = fresh.word;
}

/*
 * Tell an entry what is known by now of the file that its exec mapped. The process can execute
 * another one meanwhile, and the element be another's: what is stored holds for `exec_ns` alone.
 * That is read before the identity, which stands and is written before it: so the identity is
 * that exec's, or one that came later, for which what is stored is void.
 */
static __always_inline void tell_known(struct lic_process *known, const struct lic_process *file)
{
	__u64 exec_ns = *(volatile __u64 *)&known->exec_ns;
	__u64 ctime_ns, inode;
	struct lic_content *content;
	__u32 device, granted, number = 0;

	inode = *(volatile __u64 *)&known->inode;
	ctime_ns = *(volatile __u64 *)&known->ctime_ns;
	device = *(volatile __u32 *)&known->device;
	/*
	 * Only for the file that exec mapped: a process can name another one as its
	 * executable later, prctl(PR_SET_MM_MAP) in a user namespace of its own.
	 */
	if (device != file->device || inode != file->inode)
		return;
	if (known->path.exec_id != (__u32)exec_ns || !known->path.number)
		store_known(&known->path, (__u32)exec_ns, file->path.number);
	/* The file may have changed since: only the same content counts. */
	if (ctime_ns != file->ctime_ns)
		return;
	content = content_of(file);
	/* What began too early keeps what it was granted before, by a daemon that knew more. */
	granted = known->digest.exec_id == (__u32)exec_ns ? known->digest.number : 0;
	if (content && (exec_ns >= content->from_ns || content->number == granted))
		number = content->number;
	store_known(&known->digest, (__u32)exec_ns, number);
}

/*
 * Fill in what is missing: processes that are older than the agent, and selectors that a new
 * policy names. What was fixed at exec stays.
 */
SEC("iter/task")
int licagent_seed(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct lic_process process = {}, *known;
	struct file *file;
	__u32 pid;

	if (!task)
		return 0;
	pid = BPF_CORE_READ(task, tgid);
	if (pid != (__u32)BPF_CORE_READ(task, pid))
		return 0;
	file = BPF_CORE_READ(task, mm, exe_file);
	if (!file)
		return 0; /* a kernel thread */
	identify(file, bpf_ktime_get_boot_ns(), &process);
	known = bpf_map_lookup_elem(MAP(processes), &pid);
	if (known) {
		tell_known(known, &process);
	} else {
		process.start_ns = BPF_CORE_READ(task, start_boottime);
		if (bpf_map_update_elem(MAP(processes), &pid, &process, BPF_NOEXIST))
			return 0;
	}
	if (!process.measured) {
		/* so that the daemon learns which files to measure */
		struct lic_event record = {
			.kind = LIC_EVENT_EXEC,
			.pid = pid,
			.device = process.device,
			.inode = process.inode,
			.ctime_ns = process.ctime_ns,
		};

		bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	}
	return 0;
}

char licagent_license[] SEC("license") = "Dual BSD/GPL";
