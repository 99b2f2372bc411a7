// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Every packet, both ways: does the socket's tag still hold?
 *
 *   cgroup_skb/egress    also decides packets of sockets that carry no tag
 *   cgroup_skb/ingress   also guards listeners on service ports that carry no tag
 *
 * The usual packet costs one storage look-up and four array look-ups, and allocates nothing.
 * What passes is counted; see meter.h.
 */
#include "core.h"
#include "meter.h"
#include "outgoing.h"
#include "packet.h"
#include "report.h"
#include "service.h"
#include "subject.h"
#include "tag.h"

/* The subject that an outgoing packet without a decision is of, and the decision. */
static __always_inline int decide_outgoing(struct lic_control *ctl, struct __sk_buff *skb,
					   struct lic_tag *tag)
{
	struct lic_subject subject;

	if (tag)
		tag_subject(tag, &subject);
	else
		packet_subject(skb, &subject);
	return decide_packet(ctl, skb, &subject, skb->protocol, 0, LIC_HOOK_EGRESS);
}

static __always_inline int serves_unlicensed(struct lic_control *ctl, struct __sk_buff *skb,
					     struct bpf_sock *sk, struct lic_tag *tag);

#ifdef LICAGENT_PLAIN
#include "packet_parts.h"
#else
#define RENEW_NETWORK(ctl, tag, hook, skb) renew_half(ctl, tag, &(tag)->network, 0, hook, skb)
#define RENEW_SERVICE(ctl, tag, hook, skb) renew_half(ctl, tag, &(tag)->service, 1, hook, skb)
#define DECIDE_OUTGOING(ctl, skb, tag) decide_outgoing(ctl, skb, tag)
#define SERVES_UNLICENSED(ctl, skb, sk, tag) serves_unlicensed(ctl, skb, sk, tag)
#define IS_BARE_RESET(skb) is_bare_reset(skb)
#define METER_PACKET(ctl, skb, sk, tag, direction) meter_packet(ctl, skb, sk, tag, direction)
#endif

static __always_inline int tag_holds(struct lic_control *ctl, struct __sk_buff *skb,
				     struct lic_tag *tag, __u32 hook)
{
	if (tag->network.kind && !half_holds(ctl, &tag->network) &&
	    !RENEW_NETWORK(ctl, tag, hook, skb))
		return 0;
	if (unlikely(tag->service.kind) && !half_holds(ctl, &tag->service) &&
	    !RENEW_SERVICE(ctl, tag, hook, skb))
		return 0;
	return 1;
}

/*
 * Does the packet go where the tag was decided for? It does not after connect(A), sendto(B),
 * send(), or a connect that failed: the tag is of the last call, the socket still of the first.
 */
static __always_inline int goes_to(struct __sk_buff *skb, const struct lic_tag *tag)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (!tag->is_ipv6) {
		struct lic_ipv4 *ip = data;
		__u16 *ports = data + sizeof(*ip);

		return skb->protocol == bpf_htons(LIC_ETH_P_IP) && data + sizeof(*ip) + 4 <= end &&
		       (ip->version_ihl & 15) == 5 && ip->destination == tag->address[0] &&
		       ports[1] == bpf_htons(tag->port);
	} else {
		struct lic_ipv6 *ip = data;
		__u16 *ports = data + sizeof(*ip);

		return skb->protocol == bpf_htons(LIC_ETH_P_IPV6) &&
		       data + sizeof(*ip) + 4 <= end &&
		       (ip->next_header == LIC_IPPROTO_UDP || ip->next_header == LIC_IPPROTO_TCP) &&
		       ip->destination[3] == tag->address[3] &&
		       ip->destination[2] == tag->address[2] &&
		       ip->destination[1] == tag->address[1] &&
		       ip->destination[0] == tag->address[0] && ports[1] == bpf_htons(tag->port);
	}
}

static __always_inline int may_leave(struct lic_control *ctl, struct __sk_buff *skb,
				     struct bpf_sock *sk, struct lic_tag *tag)
{
	if (tag && tag->network.kind != LIC_TAG_PACKET) {
		if (unlikely(!tag_holds(ctl, skb, tag, LIC_HOOK_EGRESS)))
			return IS_BARE_RESET(skb);
		if (!tag->network.kind) {
			/* A listener or what it accepted; for UDP the sendmsg hook has decided. */
			if (tag->protocol == LIC_PROTO_TCP && sk->state != LIC_TCP_SYN_SENT)
				return 1;
		} else if (likely(goes_to(skb, tag))) {
			return 1;
		}
	}
	if (!tag) {
		/*
		 * No tag. TCP that did not go through connect was accepted: inbound, not a use of
		 * the network. Everything else is decided here, by what the socket alone tells.
		 */
		sk = bpf_sk_fullsock(sk);
		if (!sk)
			return 1;
		if (sk->type == LIC_SOCK_STREAM && sk->state != LIC_TCP_SYN_SENT &&
		    fold_protocol(sk->protocol) == LIC_PROTO_TCP)
			return 1;
		/* Resets, neighbour discovery, ICMP errors: the kernel's own sockets. Those of
		 * programs are tagged when they are made. */
		if (sk->type == LIC_SOCK_RAW)
			return 1;
	}
	return DECIDE_OUTGOING(ctl, skb, tag);
}

SEC("cgroup_skb/egress")
int licagent_egress(struct __sk_buff *skb)
{
	struct lic_control *ctl = get_control();
	struct bpf_sock *sk = skb->sk;
	struct lic_tag *tag;

	if (!ctl || !sk)
		return 1;
	tag = bpf_sk_storage_get(MAP(tags), sk, 0, 0);
	if (ctl->generation && !may_leave(ctl, skb, sk, tag))
		return 0;
	if (ctl->sheet)
		METER_PACKET(ctl, skb, sk, tag, LIC_DIRECTION_TX);
	return 1;
}

/* Is this packet for a service port, at a socket that has no leave to serve it? */
static __always_inline int serves_unlicensed(struct lic_control *ctl, struct __sk_buff *skb,
					     struct bpf_sock *sk, struct lic_tag *tag)
{
	__u32 generation = ctl->generation, transport = 0;
	struct lic_decision decision;
	struct lic_subject subject;
	struct lic_flow flow;

	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 0;
	if (tag && tag->network.kind == LIC_TAG_PACKET) {
		/* A raw socket is given the packets of every port. */
		if (parse_destination(skb, &flow, &transport) != LIC_PARSE_OK)
			return 0;
	} else {
		/* The packet tells who asks; what is served is the socket's own port. */
		if (parse_destination(skb, &flow, &transport) == LIC_PARSE_FAILED)
			return 0;
		flow.protocol = fold_protocol(sk->protocol);
		flow.port = sk->src_port;
		/* An accepted connection was let in by its listener. */
		if (flow.protocol == LIC_PROTO_TCP && sk->state != LIC_TCP_LISTEN)
			return 0;
	}
	if (flow.protocol != LIC_PROTO_TCP && flow.protocol != LIC_PROTO_UDP)
		return 0;
	if (!is_service_port(generation, flow.protocol, flow.port))
		return 0;
	flow.is_service = 1;
	if (tag)
		tag_subject(tag, &subject);
	else
		packet_subject(skb, &subject);
	lic_decide(&flow, &subject, &decision);
	report(&decision, &subject, 0, &flow, LIC_HOOK_INGRESS, skb, 0);
	if (decision.verdict == LIC_VERDICT_DENY)
		return 1;
	if (decision.kind == LIC_TAG_FREE) /* failsafe */
		return 0;
	/* Remembered, so that what it accepts is tagged, and ends with the license. */
	if (!tag)
		tag = bpf_sk_storage_get(MAP(tags), sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (tag && tag->network.kind != LIC_TAG_PACKET) {
		if (!tag->since_s) {
			tag->since_s = now_s();
			fill_subject(tag, &subject);
		}
		tag->protocol = flow.protocol;
		tag->local_port = flow.port;
		fill_half(&tag->service, &decision);
		tag->meter = 0;
	}
	return 0;
}

static __always_inline int may_enter(struct lic_control *ctl, struct __sk_buff *skb,
				     struct bpf_sock *sk, struct lic_tag *tag)
{
	if (tag && tag->network.kind != LIC_TAG_PACKET) {
		if (unlikely(!tag_holds(ctl, skb, tag, LIC_HOOK_INGRESS)))
			return 0;
		/* The port may have changed since: disconnecting gives it back. */
		if (tag->service.kind && tag->local_port == sk->src_port)
			return 1;
	}
	/* A port of a service that was taken behind the bind hooks' back. */
	if (!(policy_flags(ctl) & LIC_POLICY_HAS_SERVICES))
		return 1;
	return !SERVES_UNLICENSED(ctl, skb, sk, tag);
}

SEC("cgroup_skb/ingress")
int licagent_ingress(struct __sk_buff *skb)
{
	struct lic_control *ctl = get_control();
	struct bpf_sock *sk = skb->sk;
	struct lic_tag *tag;

	if (!ctl || !sk)
		return 1;
	tag = bpf_sk_storage_get(MAP(tags), sk, 0, 0);
	if (ctl->generation && !may_enter(ctl, skb, sk, tag))
		return 0;
	if (ctl->sheet)
		METER_PACKET(ctl, skb, sk, tag, LIC_DIRECTION_RX);
	return 1;
}

char licagent_license[] SEC("license") = "Dual BSD/GPL";
