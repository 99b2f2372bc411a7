/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Reading addresses and ports from a packet, as far as a decision needs them. */
#ifndef LICAGENT_PACKET_H
#define LICAGENT_PACKET_H

#include "decide.h"

#define LIC_ETH_P_IP 0x0800
#define LIC_ETH_P_IPV6 0x86dd
#define LIC_MAX_EXTENSIONS 6

enum lic_parse {
	LIC_PARSE_OK,
	LIC_PARSE_NO_PORT, /* addresses are known, the transport header is not */
	LIC_PARSE_FAILED,
};

struct lic_ipv4 {
	__u8 version_ihl;
	__u8 tos;
	__u16 total_length;
	__u16 id;
	__u16 fragment;
	__u8 ttl;
	__u8 protocol;
	__u16 checksum;
	__u32 source;
	__u32 destination;
};

struct lic_ipv6 {
	__u32 version_class_flow;
	__u16 payload_length;
	__u8 next_header;
	__u8 hop_limit;
	__u32 source[4];
	__u32 destination[4];
};

static __always_inline int parse_transport(struct __sk_buff *skb, __u32 offset,
					   struct lic_flow *flow)
{
	__u16 ports[2];

	if (flow->protocol != LIC_PROTO_TCP && flow->protocol != LIC_PROTO_UDP &&
	    flow->protocol != LIC_PROTO_SCTP)
		return LIC_PARSE_OK;
	if (bpf_skb_load_bytes(skb, offset, ports, sizeof(ports)))
		return LIC_PARSE_NO_PORT;
	flow->source_port = bpf_ntohs(ports[0]);
	flow->port = bpf_ntohs(ports[1]);
	return LIC_PARSE_OK;
}

/*
 * The destination of an outgoing packet, whose IP header is at `start`. *transport is the offset
 * of its transport header. `ethertype` in network order.
 */
static __always_inline int parse_ip(struct __sk_buff *skb, __u32 ethertype, __u32 start,
				    struct lic_flow *flow, __u32 *transport)
{
	__builtin_memset(flow, 0, sizeof(*flow));
	if (ethertype == bpf_htons(LIC_ETH_P_IP)) {
		struct lic_ipv4 ip;

		if (bpf_skb_load_bytes(skb, start, &ip, sizeof(ip)))
			return LIC_PARSE_FAILED;
		flow->address[0] = ip.destination;
		flow->source[0] = ip.source;
		flow->protocol = fold_protocol(ip.protocol);
		*transport = start + (ip.version_ihl & 15) * 4;
		if (ip.fragment & bpf_htons(0x1fff)) /* not the first fragment */
			return LIC_PARSE_NO_PORT;
		return parse_transport(skb, *transport, flow);
	}
	if (ethertype == bpf_htons(LIC_ETH_P_IPV6)) {
		__u32 offset = start + sizeof(struct lic_ipv6);
		struct lic_ipv6 ip;
		__u8 next;

		if (bpf_skb_load_bytes(skb, start, &ip, sizeof(ip)))
			return LIC_PARSE_FAILED;
		flow->is_ipv6 = 1;
		flow->address[0] = ip.destination[0];
		flow->address[1] = ip.destination[1];
		flow->address[2] = ip.destination[2];
		flow->address[3] = ip.destination[3];
		flow->source[0] = ip.source[0];
		flow->source[1] = ip.source[1];
		flow->source[2] = ip.source[2];
		flow->source[3] = ip.source[3];
		next = ip.next_header;
		for (int i = 0; i < LIC_MAX_EXTENSIONS; i++) {
			__u8 header[4];

			/* hop-by-hop, destination options, fragment; RFC 8200, section 4 */
			if (next != 0 && next != 60 && next != 44)
				break;
			if (bpf_skb_load_bytes(skb, offset, header, sizeof(header)))
				return LIC_PARSE_NO_PORT;
			if (next == 44) {
				if (header[2] || header[3] & 0xf8) {
					flow->protocol = LIC_PROTO_OTHER;
					return LIC_PARSE_NO_PORT;
				}
				offset += 8;
			} else {
				offset += (header[1] + 1) * 8;
			}
			next = header[0];
		}
		*transport = offset;
		flow->protocol = fold_protocol(next);
		/* A routing header or a longer chain hides where the packet goes. */
		if (next == 43 || next == 0 || next == 60 || next == 44)
			return LIC_PARSE_NO_PORT;
		return parse_transport(skb, offset, flow);
	}
	return LIC_PARSE_FAILED;
}

/* The same where the packet begins with its IP header, as in cgroup programs. */
static __always_inline int parse_destination(struct __sk_buff *skb, struct lic_flow *flow,
					     __u32 *transport)
{
	return parse_ip(skb, skb->protocol, 0, flow, transport);
}

/* A TCP reset without payload, which tells the peer of a cut socket that it is over. */
static __always_inline int is_bare_reset(struct __sk_buff *skb)
{
	struct lic_flow flow;
	__u32 transport = 0;
	__u8 bytes[2];

	if (parse_destination(skb, &flow, &transport) != LIC_PARSE_OK)
		return 0;
	if (flow.protocol != LIC_PROTO_TCP ||
	    bpf_skb_load_bytes(skb, transport + 12, bytes, sizeof(bytes)))
		return 0;
	return bytes[1] & 4 && skb->len == transport + (bytes[0] >> 4) * 4;
}

#endif /* LICAGENT_PACKET_H */
