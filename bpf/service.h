/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Service resources: which local ports they name. */
#ifndef LICAGENT_SERVICE_H
#define LICAGENT_SERVICE_H

#include "core.h"

static __always_inline int is_service_port(__u32 generation, __u8 protocol, __u16 port)
{
	__u32 word =
		((generation & 1) << 11) | (protocol == LIC_PROTO_UDP ? 1024 : 0) | (port >> 6);
	__u64 *bits = bpf_map_lookup_elem(MAP(service_ports), &word);

	return bits && (*bits >> (port & 63)) & 1;
}

#endif /* LICAGENT_SERVICE_H */
