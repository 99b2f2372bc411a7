// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* packet.bpf.c for kernels before 5.13, which have no global functions with pointers. */
#define LICAGENT_PLAIN
#include "packet.bpf.c"
