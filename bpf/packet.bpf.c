// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Every packet, both ways: does the socket's tag still hold?
 *
 *   cgroup_skb/egress    also decides packets of sockets that carry no tag
 *   cgroup_skb/ingress   also guards listeners on service ports that carry no tag
 *
 * The usual packet costs one storage look-up and three array look-ups, and allocates nothing.
 */
#include "core.h"
#include "packet.h"
#include "report.h"
#include "service.h"
#include "subject.h"
#include "tag.h"

#define LIC_TCP_ESTABLISHED 1
#define LIC_TCP_SYN_SENT 2
#define LIC_TCP_LISTEN 10

/* One packet of a socket without a decision of its own. 1: let through. */
static __always_inline int decide_packet(struct lic_control *ctl, struct __sk_buff *skb,
					 const struct lic_subject *subject)
{
	__u32 generation = ctl->generation;
	struct lic_policy *policy = get_policy(generation);
	struct lic_decision decision;
	struct lic_flow flow;
	__u32 transport = 0;
	int parsed;

	if (!policy || !(policy->flags & LIC_POLICY_HAS_NETWORKS))
		return 1;
	parsed = parse_destination(skb, &flow, &transport);
	if (parsed == LIC_PARSE_FAILED)
		return 1; /* neither IPv4 nor IPv6 */
	normalise(&flow);
	decide(ctl, policy, &flow, subject, &decision);
	if (parsed == LIC_PARSE_NO_PORT && decision.reason == LIC_REASON_NO_RESOURCE) {
		/* Which port is hidden: refused where any port of that network is licensed. */
		struct lic_net4_key key4 = { .prefix_bits = 64, .generation = generation };
		struct lic_net6_key key6 = { .prefix_bits = 160, .generation = generation };
		void *class;

		if (flow.is_ipv6) {
			__builtin_memcpy(key6.address, flow.address, sizeof(key6.address));
			class = bpf_map_lookup_elem(MAP(networks6), &key6);
		} else {
			key4.address = flow.address[0];
			class = bpf_map_lookup_elem(MAP(networks4), &key4);
		}
		if (class && policy->flags & LIC_POLICY_ENFORCE) {
			decision.verdict = LIC_VERDICT_DENY;
			decision.reason = LIC_REASON_MALFORMED;
		}
	}
	report(&decision, subject, &flow, LIC_HOOK_EGRESS, bpf_get_socket_cookie(skb), 0);
	return decision.verdict != LIC_VERDICT_DENY;
}

static __always_inline int tag_holds(struct lic_control *ctl, struct __sk_buff *skb,
				     struct lic_tag *tag, __u32 hook)
{
	if (tag->network.kind && !half_holds(ctl, &tag->network) &&
	    !renew_half(ctl, tag, &tag->network, 0, hook, bpf_get_socket_cookie(skb)))
		return 0;
	if (unlikely(tag->service.kind) && !half_holds(ctl, &tag->service) &&
	    !renew_half(ctl, tag, &tag->service, 1, hook, bpf_get_socket_cookie(skb)))
		return 0;
	return 1;
}

SEC("cgroup_skb/egress")
int licagent_egress(struct __sk_buff *skb)
{
	struct lic_control *ctl = get_control();
	struct bpf_sock *sk = skb->sk;
	struct lic_subject subject;
	struct lic_tag *tag;

	if (!ctl || !ctl->generation || !sk)
		return 1;
	tag = bpf_sk_storage_get(MAP(tags), sk, 0, 0);
	if (tag) {
		if (unlikely(tag->network.kind == LIC_TAG_PACKET)) {
			tag_subject(tag, &subject);
			return decide_packet(ctl, skb, &subject);
		}
		if (unlikely(!tag_holds(ctl, skb, tag, LIC_HOOK_EGRESS)))
			return is_bare_reset(skb);
		if (tag->network.kind == LIC_TAG_LICENSED || tag->service.kind)
			__sync_fetch_and_add(&tag->tx_bytes, skb->len);
		return 1;
	}

	/*
	 * No tag. TCP that did not go through connect was accepted: inbound, not a use of the
	 * network. Everything else is decided here, by what the socket alone tells.
	 */
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 1;
	if (fold_protocol(sk->protocol) == LIC_PROTO_TCP && sk->type == LIC_SOCK_STREAM &&
	    sk->state != LIC_TCP_SYN_SENT)
		return 1;
	packet_subject(skb, &subject);
	return decide_packet(ctl, skb, &subject);
}

SEC("cgroup_skb/ingress")
int licagent_ingress(struct __sk_buff *skb)
{
	struct lic_control *ctl = get_control();
	struct bpf_sock *sk = skb->sk;
	struct lic_decision decision;
	struct lic_subject subject;
	struct lic_policy *policy;
	struct lic_flow flow = {};
	struct lic_tag *tag;

	if (!ctl || !ctl->generation || !sk)
		return 1;
	tag = bpf_sk_storage_get(MAP(tags), sk, 0, 0);
	if (tag) {
		if (tag->network.kind == LIC_TAG_PACKET)
			return 1;
		if (unlikely(!tag_holds(ctl, skb, tag, LIC_HOOK_INGRESS)))
			return 0;
		if (tag->network.kind == LIC_TAG_LICENSED || tag->service.kind)
			__sync_fetch_and_add(&tag->rx_bytes, skb->len);
		return 1;
	}

	/* A port of a service that was taken behind the bind hooks' back. */
	policy = get_policy(ctl->generation);
	if (!policy || !(policy->flags & LIC_POLICY_HAS_SERVICES))
		return 1;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 1;
	flow.protocol = fold_protocol(sk->protocol);
	flow.port = sk->src_port;
	flow.is_service = 1;
	if (flow.protocol == LIC_PROTO_TCP) {
		if (sk->state != LIC_TCP_LISTEN)
			return 1;
	} else if (flow.protocol != LIC_PROTO_UDP) {
		return 1;
	}
	if (!is_service_port(ctl->generation, flow.protocol, flow.port))
		return 1;
	packet_subject(skb, &subject);
	decide(ctl, policy, &flow, &subject, &decision);
	report(&decision, &subject, &flow, LIC_HOOK_INGRESS, bpf_get_socket_cookie(skb), 0);
	return decision.verdict != LIC_VERDICT_DENY;
}

char licagent_license[] SEC("license") = "Dual BSD/GPL";
