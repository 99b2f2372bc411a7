/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The few kernel structs that the BTF programs read, field by field; libbpf moves each access to
 * where the running kernel has it (CO-RE). Only for objects that libbpf loads.
 */
#ifndef LICAGENT_KERNEL_H
#define LICAGENT_KERNEL_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_core_read.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct super_block {
	__u32 s_dev;
	unsigned long s_magic;
};

struct timespec64 {
	__s64 tv_sec;
	long tv_nsec;
};

/* i_ctime was renamed in 6.6 (commit 13bc24457850) and split in 6.11 (commit 3aa63a569c64). */
struct inode {
	struct super_block *i_sb;
	unsigned long i_ino;
	__s64 i_ctime_sec;
	__u32 i_ctime_nsec;
};

struct inode___renamed {
	struct timespec64 __i_ctime;
};

struct inode___old {
	struct timespec64 i_ctime;
};

struct qstr {
	const unsigned char *name;
};

struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
	struct inode *d_inode;
};

struct path {
	struct dentry *dentry;
};

struct file {
	struct path f_path;
	struct inode *f_inode;
	void *private_data;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct vfsmount {
	struct super_block *mnt_sb;
};

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

struct mnt_namespace {
	struct ns_common ns;
};

struct nsproxy {
	struct mnt_namespace *mnt_ns;
	struct net *net_ns;
};

struct user_namespace {
	int level;
};

/* Two words before 6.3 (commit f122a08b197d), one of 64 bits since: on little-endian machines the
 * same bytes. */
typedef struct {
	__u64 val;
} kernel_cap_t;

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	__s64 counter;
} atomic64_t;

typedef atomic64_t atomic_long_t;

struct task_struct;

struct percpu_counter {
	__s64 count;
};

struct mm_struct {
	struct file *exe_file;
	struct percpu_counter rss_stat[4];
};

/* Before 6.2 (commit f1a7941243c1). */
struct mm_rss_stat {
	atomic_long_t count[4];
};

struct mm_struct___old {
	struct mm_rss_stat rss_stat;
};

typedef struct {
	atomic_t refs;
} refcount_t;

struct signal_struct {
	atomic_t live;
	refcount_t sigcnt;
	struct task_struct *group_exec_task;
};

/* Before 5.17 (commit 60700e38fb68). */
struct signal_struct___old {
	struct task_struct *group_exit_task;
};

struct sched_entity {
	__u64 sum_exec_runtime;
};

struct task_io_accounting {
	__u64 read_bytes;
	__u64 write_bytes;
	__u64 cancelled_write_bytes;
};

typedef struct {
	__u32 val;
} kuid_t;

typedef struct {
	__u32 val;
} kgid_t;

struct cred {
	kuid_t uid;
	kgid_t gid;
	kernel_cap_t cap_effective;
	struct user_namespace *user_ns;
};

struct kernfs_node {
	__u64 id;
	const char *name;
};

struct cgroup_subsys_state {
	struct cgroup_subsys_state *parent;
};

struct cgroup_root {
	int hierarchy_id;
};

struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
	struct cgroup_root *root;
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct task_struct {
	int pid;
	int tgid;
	unsigned int flags;
	struct mm_struct *mm;
	struct signal_struct *signal;
	const struct cred *cred;
	struct css_set *cgroups;
	struct task_struct *group_leader;
	struct task_struct *real_parent;
	struct files_struct *files;
	struct nsproxy *nsproxy;
	int exit_state;
	__u64 start_boottime;
	struct sched_entity se;
	struct task_io_accounting ioac;
	char comm[16];
};

struct linux_binprm {
	struct file *file;
};

struct in6_addr {
	union {
		__u32 u6_addr32[4];
	} in6_u;
};

struct sock_common {
	__u32 skc_daddr;
	__u32 skc_rcv_saddr;
	__u16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	unsigned long skc_flags;
	atomic64_t skc_cookie;
};

struct socket;

struct sock {
	struct sock_common __sk_common;
	__u16 sk_type;
	__u16 sk_protocol;
	struct socket *sk_socket;
};

struct socket_alloc_inode {
	unsigned long i_ino;
};

struct socket {
	short type;
	struct file *file;
	struct sock *sk;
};

struct header_ops;

struct net_device {
	const struct header_ops *header_ops;
	unsigned short type;
	unsigned short hard_header_len;
};

struct sk_buff {
	struct net_device *dev;
};

struct tcp_sock {
	__u64 bytes_acked;
	__u64 bytes_received;
	__u32 snd_una;
	__u32 write_seq;
};

enum sock_flags {
	SOCK_DONE = 1,
};

struct udp_sock;

struct seq_file;

struct bpf_link {
	__u32 id;
};

struct bpf_map {
	__u32 id;
};

struct bpf_prog_aux {
	__u32 id;
	struct bpf_prog *dst_prog;
	atomic64_t refcnt;
	__u32 used_map_cnt;
	struct bpf_map **used_maps;
};

struct bpf_prog {
	enum bpf_prog_type type;
	struct bpf_prog_aux *aux;
};

struct bpf_iter_meta {
	struct seq_file *seq;
	__u64 session_id;
	__u64 seq_num;
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
	__u32 uid;
};

struct bpf_iter__udp {
	struct bpf_iter_meta *meta;
	struct udp_sock *udp_sk;
	__u32 uid;
	int bucket;
};

#pragma clang attribute pop

static __always_inline __u64 inode_ctime_ns(struct inode *inode)
{
	struct inode___renamed *renamed = (void *)inode;
	struct inode___old *old = (void *)inode;

	if (bpf_core_field_exists(inode->i_ctime_sec))
		/* The top bit is I_CTIME_QUERIED since 6.13 (commit 4e40eff0b573). */
		return BPF_CORE_READ(inode, i_ctime_sec) * LIC_NSEC_PER_SEC +
		       (BPF_CORE_READ(inode, i_ctime_nsec) & 0x7fffffff);
	if (bpf_core_field_exists(renamed->__i_ctime))
		return BPF_CORE_READ(renamed, __i_ctime.tv_sec) * LIC_NSEC_PER_SEC +
		       BPF_CORE_READ(renamed, __i_ctime.tv_nsec);
	return BPF_CORE_READ(old, i_ctime.tv_sec) * LIC_NSEC_PER_SEC +
	       BPF_CORE_READ(old, i_ctime.tv_nsec);
}

#endif /* LICAGENT_KERNEL_H */
