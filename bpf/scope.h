/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Is a task inside the cgroup that the agent is attached to? For programs that libbpf loads. */
#ifndef LICAGENT_SCOPE_H
#define LICAGENT_SCOPE_H

#include "core.h"
#include "kernel.h"

#define LIC_ROOT_CGROUP_ID 1 /* kernfs gives the hierarchy's root the first number */
#define LIC_SCOPE_DEPTH 16

/* The whole host, or a subtree: that of tests and demos, which run beside an installed agent. */
static __always_inline int in_root(struct task_struct *task, __u64 root)
{
	struct cgroup *at;

	if (root == LIC_ROOT_CGROUP_ID)
		return 1;
	at = BPF_CORE_READ(task, cgroups, dfl_cgrp);
	for (int i = 0; i < LIC_SCOPE_DEPTH; i++) {
		if (!at)
			return 0;
		if (BPF_CORE_READ(at, kn, id) == root)
			return 1;
		at = (struct cgroup *)BPF_CORE_READ(at, self.parent);
	}
	return 0;
}

#endif /* LICAGENT_SCOPE_H */
