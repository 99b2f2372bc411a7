// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* connect.bpf.c for kernels without BTF, or whose verifier lets cgroup programs read no task. */
#define LICAGENT_PLAIN
#include "connect.bpf.c"
