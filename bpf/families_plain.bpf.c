// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* families.bpf.c for kernels before 5.17, which have no bpf_loop. */
#define LICAGENT_PLAIN
#include "families.bpf.c"
