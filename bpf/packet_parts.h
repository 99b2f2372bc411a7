/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The slow parts of the packet programs as functions of their own, for old verifiers.
 *
 * A global function is walked once, with nothing known of its arguments, instead of once for each
 * way that leads to it; inlined, these parts multiply to more than the million steps that a
 * verifier before 5.13 takes. Such functions take no pointer but the context (5.13, commit
 * e5069b9c23b3), so each looks up again what it needs: two look-ups more on the slow path of old
 * kernels, none on that of others.
 */
#ifndef LICAGENT_PACKET_PARTS_H
#define LICAGENT_PACKET_PARTS_H

#define LIC_PART __attribute__((noinline))

/* `is_service` 0 or 1. The half by arithmetic: a branch would double the walk. */
LIC_PART int lic_renew(struct __sk_buff *skb, __u32 is_service, __u32 hook)
{
	struct lic_control *ctl = get_control();
	struct bpf_sock *sk = skb->sk;
	struct lic_half *half;
	struct lic_tag *tag;
	__u64 index = is_service;

	if (!ctl || !sk)
		return 1;
	tag = bpf_sk_storage_get(MAP(tags), sk, 0, 0);
	if (!tag)
		return 1;
	LIC_BOUND(index, 1);
	half = &tag->network + index; /* `service` comes next to it */
	return renew_half(ctl, tag, half, is_service, hook, skb);
}

LIC_PART int lic_decide_outgoing(struct __sk_buff *skb)
{
	struct lic_control *ctl = get_control();
	struct bpf_sock *sk = skb->sk;

	if (!ctl || !sk)
		return 1;
	return decide_outgoing(ctl, skb, bpf_sk_storage_get(MAP(tags), sk, 0, 0));
}

LIC_PART int lic_serves_unlicensed(struct __sk_buff *skb)
{
	struct lic_control *ctl = get_control();
	struct bpf_sock *sk = skb->sk;

	if (!ctl || !sk)
		return 0;
	return serves_unlicensed(ctl, skb, sk, bpf_sk_storage_get(MAP(tags), sk, 0, 0));
}

LIC_PART int lic_is_bare_reset(struct __sk_buff *skb)
{
	return is_bare_reset(skb);
}

LIC_PART int lic_meter_packet(struct __sk_buff *skb, __u32 direction)
{
	struct lic_control *ctl = get_control();
	struct bpf_sock *sk = skb->sk;

	if (ctl && sk)
		meter_packet(ctl, skb, sk, bpf_sk_storage_get(MAP(tags), sk, 0, 0), direction);
	return 0;
}

#define RENEW_NETWORK(ctl, tag, hook, skb) lic_renew(skb, 0, hook)
#define RENEW_SERVICE(ctl, tag, hook, skb) lic_renew(skb, 1, hook)
#define DECIDE_OUTGOING(ctl, skb, tag) lic_decide_outgoing(skb)
#define SERVES_UNLICENSED(ctl, skb, sk, tag) lic_serves_unlicensed(skb)
#define IS_BARE_RESET(skb) lic_is_bare_reset(skb)
#define METER_PACKET(ctl, skb, sk, tag, direction) lic_meter_packet(skb, direction)

#endif /* LICAGENT_PACKET_PARTS_H */
