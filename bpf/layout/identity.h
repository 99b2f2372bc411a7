/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who a process is: its executable by path and by content, and the named cgroups it is in. */
#ifndef LICAGENT_LAYOUT_IDENTITY_H
#define LICAGENT_LAYOUT_IDENTITY_H

#include "layout/numbers.h"

struct lic_path_key {
	__u32 device; /* kernel's s_dev of the folder: major << 20 | minor */
	__u32 reserved;
	__u64 inode; /* of the folder */
	char name[LIC_NAME_LEN];
};

struct lic_content_key {
	__u32 device;
	__u32 reserved;
	__u64 inode;
	__u64 ctime_ns;
};

/* What the daemon measured under a lic_content_key. */
struct lic_content {
	__u32 number; /* of unix:sha256; 0: none that the policy names */
	__u32 reserved;
	/* CLOCK_BOOTTIME: only what was executed at this time or later had this content for sure.
	 * Before it, the file may have held something else under the same change time. */
	__u64 from_ns;
};

/*
 * Number of a selector, and for which exec it holds; for any other one it is none. iter/task writes
 * both in one store of 64 bits into an element that may, by then, be another process's: a hash
 * gives what it frees to the next who asks (since 6.1, bpf_mem_alloc). The exec comes
 * first: whoever copies a new element over it front to back cannot end with its own exec and a
 * foreign number.
 */
struct lic_known {
	__u32 exec_id; /* low bits of lic_process.exec_ns */
	__u32 number;  /* 0: none that the policy names, or not measured yet */
} __attribute__((aligned(8)));

/* What runs in a process, fixed at exec. `exec_ns` after the identity: see tell_known(). */
struct lic_process {
	__u64 inode;
	__u64 ctime_ns;
	__u32 device;
	__u32 measured; /* at exec: the content was looked up and known */
	__u64 exec_ns; /* CLOCK_BOOTTIME of the exec, or of the agent's start for older processes */
	struct lic_known path;   /* unix:path */
	struct lic_known digest; /* unix:sha256 */
	/* the license it used last: repeats within a minute are one event (report.h) */
	__u64 allowed_ns; /* CLOCK_BOOTTIME of the last event */
	__u32 allowed_license;
	__u32 allowed_resource;
	__u64 allowed_pending; /* decisions since */
	__u64 start_ns;        /* CLOCK_BOOTTIME at which the process began; 0: not known */
};

/* A cgroup as the policy sees it: named scopes of itself and its ancestors, deepest first. */
struct lic_cgroup {
	__u32 count;
	__u32 scopes[LIC_MAX_SCOPES];
};

enum lic_scope_kind {
	LIC_SCOPE_UNIT = 1,      /* base name; all ancestors below the root are slices */
	LIC_SCOPE_PATH = 2,      /* path from the root of the hierarchy */
	LIC_SCOPE_CONTAINER = 3, /* base name; no ancestor is user@*.service */
};

struct lic_scope_key {
	__u32 kind;
	char name[LIC_SCOPE_NAME_LEN];
};

#endif /* LICAGENT_LAYOUT_IDENTITY_H */
