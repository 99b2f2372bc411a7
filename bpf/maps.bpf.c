// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The maps alone, for the bcc loader: it compiles programs, libbpf makes the maps they use. */
#include "core.h"

char licagent_license[] SEC("license") = "Dual BSD/GPL";
