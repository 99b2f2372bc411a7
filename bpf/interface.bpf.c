// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What packet sockets (AF_PACKET) send: whole frames, below every hook of a cgroup.
 *
 *   tc egress    of every interface, by TCX links
 *
 * One instance per agent sees the frames of the whole host, so it looks at the socket's family
 * first and at its cgroup next, and leaves everything else to whoever comes after it. No
 * program has met the socket before: there is no tag, and the subject is the socket's user and
 * cgroup alone. A frame is taken for what the next hop reads in it; encapsulated packets (MPLS,
 * PPPoE, tunnels) are not looked into. PACKET_QDISC_BYPASS and AF_XDP pass by this hook.
 */
#include "core.h"
#include "outgoing.h"
#include "subject.h"

#define LIC_AF_PACKET 17
#define LIC_TCX_NEXT -1
#define LIC_TC_ACT_SHOT 2
#define LIC_ARPHRD_ETHER 1
#define LIC_ARPHRD_LOOPBACK 772
#define LIC_ETH_P_8021Q 0x8100
#define LIC_ETH_P_8021AD 0x88a8
#define LIC_ETH_P_QINQ1 0x9100
#define LIC_ETH_TYPE_AT 12
/* Linux takes off any number of tags for VLAN 0, one after another; nobody needs this many. */
#define LIC_MAX_VLANS 8
#define LIC_MAX_LEVELS 64

/* Of the program's context, the kernel's own sk_buff; 6.2, commit fd264ca02094. */
extern void *bpf_cast_to_kern_ctx(void *context) __ksym;

/*
 * Is the socket's cgroup the agent's root or below it? The level of the root is not asked of
 * userspace, which may live in a cgroup namespace and count from another place.
 */
static __always_inline int is_licensed_tree(struct __sk_buff *skb, __u64 root)
{
	for (int level = 0; level < LIC_MAX_LEVELS; level++) {
		__u64 id = bpf_skb_ancestor_cgroup_id(skb, level);

		if (id == root)
			return id != 0;
		if (!id)
			return 0;
	}
	return 0;
}

/* Where the IP header is, by the frame itself: skb->protocol is what the sender claims. */
static __always_inline int find_ip(struct __sk_buff *skb, __u32 *start, __u32 *ethertype)
{
	struct sk_buff *kernel = bpf_cast_to_kern_ctx(skb);
	struct net_device *device = kernel->dev;
	__u32 at = LIC_ETH_TYPE_AT;
	__u16 type;
	__u8 first;

	if (device->type != LIC_ARPHRD_ETHER && device->type != LIC_ARPHRD_LOOPBACK) {
		/* TUN, WireGuard, PPP, tunnels: nothing before IP. InfiniBand...: its header. */
		*start = device->header_ops ? device->hard_header_len : 0;
		if (bpf_skb_load_bytes(skb, *start, &first, sizeof(first)))
			return LIC_PARSE_FAILED;
		if (first >> 4 == 4)
			*ethertype = bpf_htons(LIC_ETH_P_IP);
		else if (first >> 4 == 6)
			*ethertype = bpf_htons(LIC_ETH_P_IPV6);
		else
			return LIC_PARSE_FAILED;
		return LIC_PARSE_OK;
	}
	for (int tags = 0; tags <= LIC_MAX_VLANS; tags++) {
		if (bpf_skb_load_bytes(skb, at, &type, sizeof(type)))
			return LIC_PARSE_FAILED;
		if (type != bpf_htons(LIC_ETH_P_8021Q) && type != bpf_htons(LIC_ETH_P_8021AD) &&
		    type != bpf_htons(LIC_ETH_P_QINQ1)) {
			*start = at + sizeof(type);
			*ethertype = type;
			return LIC_PARSE_OK;
		}
		at += 4;
	}
	return LIC_PARSE_NO_PORT;
}

SEC("tc")
int licagent_interface(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	__u32 start = 0, ethertype = 0;
	struct lic_control *ctl;
	struct lic_subject subject;

	if (!sk || sk->family != LIC_AF_PACKET)
		return LIC_TCX_NEXT;
	ctl = get_control();
	if (!ctl || !is_licensed_tree(skb, ctl->root_cgroup))
		return LIC_TCX_NEXT;
	if (!ctl->generation || !(policy_flags(ctl) & LIC_POLICY_HAS_NETWORKS))
		return LIC_TCX_NEXT;
	packet_subject(skb, &subject);
	switch (find_ip(skb, &start, &ethertype)) {
	case LIC_PARSE_OK:
		start = forget(ctl, start);
		if (decide_packet(ctl, skb, &subject, ethertype, start, LIC_HOOK_INTERFACE))
			return LIC_TCX_NEXT;
		return LIC_TC_ACT_SHOT;
	case LIC_PARSE_NO_PORT: {
		struct lic_decision decision = {};
		struct lic_flow flow = {};

		refuse_malformed(ctl, &decision);
		report(&decision, &subject, 0, &flow, LIC_HOOK_INTERFACE, skb, 0);
		return decision.verdict == LIC_VERDICT_DENY ? LIC_TC_ACT_SHOT : LIC_TCX_NEXT;
	}
	default:
		return LIC_TCX_NEXT;
	}
}

char licagent_license[] SEC("license") = "Dual BSD/GPL";
