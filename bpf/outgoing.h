/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Deciding one outgoing packet on its own, by its destination and whose socket sent it. */
#ifndef LICAGENT_OUTGOING_H
#define LICAGENT_OUTGOING_H

#include "packet.h"
#include "report.h"

/*
 * A packet whose destination cannot be told: refused while the host enforces. Break-glass opens
 * this, too.
 */
static __always_inline void refuse_malformed(const struct lic_control *ctl,
					     struct lic_decision *decision)
{
	__u64 now = now_ns();

	if (!(policy_flags(ctl) & LIC_POLICY_ENFORCE) || now < ctl->break_glass_until_ns)
		return;
	decision->verdict = LIC_VERDICT_DENY;
	decision->reason = LIC_REASON_MALFORMED;
	decision->now_ns = now;
}

/*
 * One packet of a socket without a decision of its own. Its IP header is at `start`, `ethertype`
 * (network order) says of which version. 1: let through.
 */
static __always_inline int decide_packet(struct lic_control *ctl, struct __sk_buff *skb,
					 const struct lic_subject *subject, __u32 ethertype,
					 __u32 start, __u32 hook)
{
	__u32 generation = ctl->generation;
	struct lic_decision decision;
	struct lic_flow flow;
	__u32 transport = 0;
	int parsed;

	if (!(policy_flags(ctl) & LIC_POLICY_HAS_NETWORKS))
		return 1;
	parsed = parse_ip(skb, ethertype, start, &flow, &transport);
	if (parsed == LIC_PARSE_FAILED)
		return 1; /* neither IPv4 nor IPv6 */
	normalise(ctl, &flow, 0, 0);
	lic_decide(&flow, subject, &decision);
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
		if (class)
			refuse_malformed(ctl, &decision);
	}
	report(&decision, subject, 0, &flow, hook, skb, 0);
	return decision.verdict != LIC_VERDICT_DENY;
}

#endif /* LICAGENT_OUTGOING_H */
