/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the LSM objects share: their two maps, and who they are about.
 *
 * The maps are not in maps.h, because only kernels with BPF among their security modules have
 * them.
 */
#ifndef LICAGENT_GUARD_H
#define LICAGENT_GUARD_H

#include "core.h"
#ifdef LICAGENT_PLAIN
#include "kernel.h"
#endif

#define LIC_SEEN_FAMILIES 1
#define LIC_SEEN_GUARD 2

/* Written by the loader and the daemon, read by every LSM program. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lic_guard);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} guard SEC(".maps");

/* Written by the daemon: links, maps and folders of its own. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct lic_guarded_key);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} guarded SEC(".maps");

static __always_inline struct lic_guard *get_guard(__u32 seen)
{
	__u32 zero = 0;
	struct lic_guard *found = bpf_map_lookup_elem(MAP(guard), &zero);

	/* Attaching proves nothing: a module that is not in lsm= is attached to, and never called. */
	if (found && !(found->seen & seen))
		found->seen |= seen;
	return found;
}

#endif /* LICAGENT_GUARD_H */
