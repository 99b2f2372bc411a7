/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the objects of self-protection agree on with the daemon: see guard.h beside this folder. */
#ifndef LICAGENT_LAYOUT_GUARD_H
#define LICAGENT_LAYOUT_GUARD_H

/* What the guard protects. Kind of an entry of `guarded`, and `rule` of its events. */
enum lic_guarded {
	LIC_GUARDED_LINK = 1,    /* by the kernel's id: detached, or given another program */
	LIC_GUARDED_MAP = 2,     /* by the kernel's id: written, or used by a foreign program */
	LIC_GUARDED_FOLDER = 3,  /* by device and inode: a pin in it removed or renamed */
	LIC_GUARDED_MOUNT = 4,   /* by device: taken away in the host's mount namespace */
	LIC_GUARDED_PROCESS = 5, /* the daemon: traced, its memory or descriptors taken */
	LIC_GUARDED_PROGRAM = 6, /* by the kernel's id: a function of it replaced (freplace) */
};

struct lic_guarded_key {
	__u32 kind;   /* enum lic_guarded */
	__u32 device; /* kernel's s_dev; 0 for ids */
	__u64 number; /* id or inode; 0 for a mount */
};

/* Whose the kernel side is. One element; nobody but the daemon writes it while it is locked. */
struct lic_guard {
	__u32 daemon; /* its process id; who descends from it is the daemon, too */
	__u32 locked; /* 0: everybody may do as root may; so it is while no daemon lives */
	__u32 network_namespace; /* of the host */
	__u32 mount_namespace;   /* of the host */
	__u32 seen; /* bits: an LSM program has run: of the families 1, of the guard 2 */
	__u32 reserved;
	__u64 told_ns; /* CLOCK_BOOTTIME of the last event */
	__u64 refused; /* attempts since */
};

#endif /* LICAGENT_LAYOUT_GUARD_H */
