// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What is ours stays ours while the daemon lives: other processes, also of root, neither detach
 * its links, write its maps, remove its pins, nor take it over.
 *
 *   lsm/bpf                   BPF_LINK_DETACH, BPF_LINK_UPDATE; functions replaced (freplace)
 *   lsm/bpf_map               descriptors of maps that may be written
 *   lsm/bpf_prog              programs that would write our maps from the kernel, or take the
 *                             place of a function of ours
 *   lsm/inode_unlink, inode_rename, sb_umount   the pins
 *   lsm/ptrace_access_check   the daemon's memory and descriptors
 *   tp_btf/sched_process_exit a daemon that is gone locks nobody out
 *
 * It ends with the daemon, however that ends: detaching, an upgrade and a new start need no key that
 * could be lost. So root can stop the daemon first. That is seen: by systemd, by the control
 * plane, and by the next daemon, which loads what is missing.
 */
#include "core.h"
#include "guard.h"
#include <bpf/bpf_tracing.h>

#define LIC_DESCENT 4
#define LIC_FMODE_WRITE 2
#define LIC_PTRACE_ATTACH 2
#define LIC_BPF_FS_MAGIC 0xcafe4a11
#define LIC_EPERM 1
#define LIC_USED_MAPS 64 /* the verifier's MAX_USED_MAPS */
#define LIC_TELL_EVERY_NS (LIC_NSEC_PER_SEC / 10)

/* The guard where it is to be asked: locked, and by somebody else than the daemon. */
static __always_inline struct lic_guard *locked_guard(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct lic_guard *found = get_guard(LIC_SEEN_GUARD);

	if (!found || !found->locked)
		return 0;
	for (int i = 0; i < LIC_DESCENT; i++) {
		if (BPF_CORE_READ(task, tgid) == found->daemon)
			return 0;
		task = BPF_CORE_READ(task, real_parent);
	}
	return found;
}

static __always_inline int is_guarded(__u32 kind, __u32 device, __u64 number)
{
	struct lic_guarded_key key = { .kind = kind, .device = device, .number = number };

	return bpf_map_lookup_elem(MAP(guarded), &key) != 0;
}

/* Refuse, and tell of it; a flood is told as sums. */
static __always_inline int refuse_other(struct lic_guard *found, __u32 kind, __u64 number)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	__u64 now = bpf_ktime_get_boot_ns(), count;
	struct lic_event *event;

	__sync_fetch_and_add(&found->refused, 1);
	if (now - found->told_ns < LIC_TELL_EVERY_NS)
		return -LIC_EPERM;
	found->told_ns = now;
	count = found->refused;
	event = bpf_ringbuf_reserve(MAP(events), sizeof(*event), 0);
	if (!event) {
		__u32 fault = LIC_FAULT_EVENT_DROPPED;
		__u64 *dropped = bpf_map_lookup_elem(MAP(faults), &fault);

		if (dropped)
			__sync_fetch_and_add(dropped, 1);
		return -LIC_EPERM;
	}
	__sync_fetch_and_add(&found->refused, -count);
	__builtin_memset(event, 0, sizeof(*event));
	event->kind = LIC_EVENT_GUARD;
	event->hook = LIC_HOOK_GUARD;
	event->verdict = LIC_VERDICT_DENY;
	event->at_ns = now;
	event->count = count;
	event->rule = kind;
	event->inode = number;
	event->pid = BPF_CORE_READ(task, tgid);
	event->uid = BPF_CORE_READ(task, cred, uid.val);
	event->gid = BPF_CORE_READ(task, cred, gid.val);
	event->cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	bpf_ringbuf_submit(event, 0);
	return -LIC_EPERM;
}

/* What a descriptor stands for. Of another kind of file it is nonsense, and the call fails anyway. */
static __always_inline void *object_of(__u32 fd)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **slots = BPF_CORE_READ(table, fd), *file = 0;

	if (fd >= BPF_CORE_READ(table, max_fds))
		return 0;
	bpf_probe_read_kernel(&file, sizeof(file), slots + fd);
	return BPF_CORE_READ(file, private_data);
}

/* Its id if it is ours, else 0. */
static __always_inline __u32 our_program(struct bpf_prog *prog)
{
	__u32 id = BPF_CORE_READ(prog, aux, id);

	return is_guarded(LIC_GUARDED_PROGRAM, 0, id) ? id : 0;
}

/* Of ours, the one of which this program replaces a function; else 0. */
static __always_inline __u32 replaced_by(struct bpf_prog *prog)
{
	if (BPF_CORE_READ(prog, type) != BPF_PROG_TYPE_EXT)
		return 0;
	return our_program(BPF_CORE_READ(prog, aux, dst_prog));
}

SEC("lsm/bpf")
int BPF_PROG(licagent_bpf, int cmd, union bpf_attr *attr, unsigned int size)
{
	struct lic_guard *found;
	struct bpf_prog *prog;
	__u32 words[3] = {}, id;

	if (cmd != BPF_LINK_DETACH && cmd != BPF_LINK_UPDATE && cmd != BPF_LINK_CREATE &&
	    cmd != BPF_RAW_TRACEPOINT_OPEN) {
		get_guard(LIC_SEEN_GUARD);
		return 0;
	}
	found = locked_guard();
	if (!found)
		return 0;
	bpf_probe_read_kernel(words, sizeof(words), attr);
	if (cmd == BPF_LINK_DETACH || cmd == BPF_LINK_UPDATE) {
		struct bpf_link *link = object_of(words[0]);

		id = BPF_CORE_READ(link, id);
		return is_guarded(LIC_GUARDED_LINK, 0, id)
			       ? refuse_other(found, LIC_GUARDED_LINK, id)
			       : 0;
	}
	/* link_create: prog_fd, target_fd. raw_tracepoint: name in 64 bits, prog_fd. */
	prog = object_of(cmd == BPF_LINK_CREATE ? words[0] : words[2]);
	id = replaced_by(prog);
	/* Loaded to replace a function of another program, and given ours now. */
	if (!id && cmd == BPF_LINK_CREATE && BPF_CORE_READ(prog, type) == BPF_PROG_TYPE_EXT)
		id = our_program(object_of(words[1]));
	return id ? refuse_other(found, LIC_GUARDED_PROGRAM, id) : 0;
}

SEC("lsm/bpf_map")
int BPF_PROG(licagent_bpf_map, struct bpf_map *map, unsigned int mode)
{
	struct lic_guard *found;
	__u32 id;

	if (!(mode & LIC_FMODE_WRITE))
		return 0;
	found = locked_guard();
	if (!found)
		return 0;
	id = BPF_CORE_READ(map, id);
	return is_guarded(LIC_GUARDED_MAP, 0, id) ? refuse_other(found, LIC_GUARDED_MAP, id) : 0;
}

/*
 * The verifier lets a program write to a map whose descriptor may only read. A program that was
 * just loaded has one reference, its loader's; those that run already may be looked at.
 */
SEC("lsm/bpf_prog")
int BPF_PROG(licagent_bpf_prog, struct bpf_prog *prog)
{
	struct lic_guard *found = locked_guard();
	struct bpf_prog_aux *aux = BPF_CORE_READ(prog, aux);
	struct bpf_map **maps = BPF_CORE_READ(aux, used_maps);
	__u32 count = BPF_CORE_READ(aux, used_map_cnt);
	__u32 replaced;

	if (!found)
		return 0;
	replaced = replaced_by(prog);
	if (replaced)
		return refuse_other(found, LIC_GUARDED_PROGRAM, replaced);
	if (BPF_CORE_READ(aux, refcnt.counter) != 1)
		return 0;
	for (__u32 i = 0; i < LIC_USED_MAPS; i++) {
		struct bpf_map *map = 0;
		__u32 id;

		if (i >= count)
			break;
		bpf_probe_read_kernel(&map, sizeof(map), maps + i);
		id = BPF_CORE_READ(map, id);
		if (is_guarded(LIC_GUARDED_MAP, 0, id))
			return refuse_other(found, LIC_GUARDED_MAP, id);
	}
	return 0;
}

static __always_inline int is_ours(struct inode *folder)
{
	struct super_block *sb = BPF_CORE_READ(folder, i_sb);

	return (__u32)BPF_CORE_READ(sb, s_magic) == LIC_BPF_FS_MAGIC &&
	       is_guarded(LIC_GUARDED_FOLDER, BPF_CORE_READ(sb, s_dev),
			  BPF_CORE_READ(folder, i_ino));
}

static __always_inline int guard_folders(struct inode *folder, struct inode *other)
{
	struct inode *ours = 0;
	struct lic_guard *found;

	if (is_ours(folder))
		ours = folder;
	else if (other && is_ours(other))
		ours = other;
	if (!ours)
		return 0;
	found = locked_guard();
	if (!found)
		return 0;
	return refuse_other(found, LIC_GUARDED_FOLDER, BPF_CORE_READ(ours, i_ino));
}

SEC("lsm/inode_unlink")
int BPF_PROG(licagent_unlink, struct inode *folder, struct dentry *entry)
{
	return guard_folders(folder, 0);
}

/* Neither a pin out of our folders, nor one of them away, nor another over what is in them: that
 * would remove it. */
SEC("lsm/inode_rename")
int BPF_PROG(licagent_rename, struct inode *folder, struct dentry *entry, struct inode *new_folder,
	     struct dentry *new_entry)
{
	int refused = guard_folders(folder, BPF_CORE_READ(entry, d_inode));

	return refused ? refused : guard_folders(new_folder, BPF_CORE_READ(new_entry, d_inode));
}

/* The last mount of a BPF file system takes its pins with it. Mounts of other mount namespaces,
 * which end with their services and containers, do not matter. */
SEC("lsm/sb_umount")
int BPF_PROG(licagent_umount, struct vfsmount *mount, int flags)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	__u32 device = BPF_CORE_READ(mount, mnt_sb, s_dev);
	struct lic_guard *found;

	if (!is_guarded(LIC_GUARDED_MOUNT, device, 0))
		return 0;
	found = locked_guard();
	if (!found || BPF_CORE_READ(task, nsproxy, mnt_ns, ns.inum) != found->mount_namespace)
		return 0;
	return refuse_other(found, LIC_GUARDED_MOUNT, device);
}

/* Reading /proc goes on; attaching, writing memory and taking descriptors do not. */
SEC("lsm/ptrace_access_check")
int BPF_PROG(licagent_ptrace, struct task_struct *child, unsigned int mode)
{
	struct lic_guard *found;
	__u32 pid = BPF_CORE_READ(child, tgid);

	if (!(mode & LIC_PTRACE_ATTACH))
		return 0;
	found = locked_guard();
	if (!found || pid != found->daemon)
		return 0;
	return refuse_other(found, LIC_GUARDED_PROCESS, pid);
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(licagent_guard_exit, struct task_struct *task)
{
	__u32 zero = 0;
	struct lic_guard *found = bpf_map_lookup_elem(MAP(guard), &zero);

	/* Of the daemon's threads the last one. */
	if (found && found->locked && BPF_CORE_READ(task, tgid) == found->daemon &&
	    !BPF_CORE_READ(task, signal, live.counter))
		found->locked = 0;
	return 0;
}

char licagent_license[] SEC("license") = "Dual BSD/GPL";
