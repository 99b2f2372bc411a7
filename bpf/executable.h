/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which executable a file is.
 *
 * unix:path is the directory entry: the folder's device and inode, and the name in it. So a
 * package upgrade, which renames a new file over the old name, keeps it; a copy, a bind mount over
 * it, a hard link or argv[0] do not have it.
 *
 * unix:sha256 is the content: device, inode and change time stand for bytes that the daemon
 * measured. Writing to the file moves its change time, and the content is unknown again. But for
 * writes within one tick of the clock: so the content counts for what was executed since then,
 * lic_content.from_ns, by a clock that nobody sets.
 */
#ifndef LICAGENT_EXECUTABLE_H
#define LICAGENT_EXECUTABLE_H

#include "core.h"
#include "kernel.h"

static __always_inline __u32 path_number(struct file *file)
{
	struct dentry *entry = BPF_CORE_READ(file, f_path.dentry);
	struct inode *folder = BPF_CORE_READ(entry, d_parent, d_inode);
	struct lic_path_key key = {};
	__u32 *number;

	key.device = BPF_CORE_READ(folder, i_sb, s_dev);
	key.inode = BPF_CORE_READ(folder, i_ino);
	if (bpf_probe_read_kernel_str(key.name, sizeof(key.name),
				      BPF_CORE_READ(entry, d_name.name)) < 0)
		return 0;
	number = bpf_map_lookup_elem(MAP(paths), &key);
	return number ? *number : 0;
}

/* The file alone. */
static __always_inline void read_file(struct file *file, struct lic_process *process)
{
	struct inode *inode = BPF_CORE_READ(file, f_inode);

	process->device = BPF_CORE_READ(inode, i_sb, s_dev);
	process->inode = BPF_CORE_READ(inode, i_ino);
	process->ctime_ns = inode_ctime_ns(inode);
}

static __always_inline struct lic_content *content_of(const struct lic_process *process)
{
	struct lic_content_key key = {};

	key.device = process->device;
	key.inode = process->inode;
	key.ctime_ns = process->ctime_ns;
	return bpf_map_lookup_elem(MAP(contents), &key);
}

/* What was executed at `exec_ns`. */
static __always_inline void identify(struct file *file, __u64 exec_ns, struct lic_process *process)
{
	struct lic_content *content;

	read_file(file, process);
	content = content_of(process);
	process->exec_ns = exec_ns;
	process->measured = content != 0;
	process->path.number = path_number(file);
	process->path.exec_id = (__u32)exec_ns;
	process->digest.number = content && exec_ns >= content->from_ns ? content->number : 0;
	process->digest.exec_id = (__u32)exec_ns;
}

#endif /* LICAGENT_EXECUTABLE_H */
