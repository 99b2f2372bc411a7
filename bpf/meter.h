/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Counting packets: for whom, by which license, and how many bytes.
 *
 * A meter is one line of usage: a process, a license, a resource, a protocol. A socket's first
 * packet looks its meter up and leaves the index in the tag, so that the others pay one array
 * look-up. Two bytes counts are kept apart:
 *
 *   wire      IP packets that passed, repetitions included. A segmented packet (GSO, GRO) is seen
 *             once, so the headers that its other segments have on the wire are added back.
 *   payload   UDP and others: what the datagrams carry. TCP: what the peer has acknowledged, and
 *             what came in order, from the socket's own counters, so that loss changes nothing.
 *
 * The kernel counts the SYN and the FIN among acknowledged and received bytes. The SYN is taken
 * off where the connection is made (connect.bpf.c); a FIN may be in once the state is no longer
 * ESTABLISHED, so one byte is held back from then on, and usage.bpf.c settles it at the end.
 * TCP's counters are read while a packet is sent, because then the socket is locked.
 */
#ifndef LICAGENT_METER_H
#define LICAGENT_METER_H

#include "packet.h"
#include "subject.h"
#include "tag.h"

#define LIC_TCP_ESTABLISHED 1
#define LIC_TCP_SYN_SENT 2
#define LIC_TCP_CLOSE 7
#define LIC_TCP_LISTEN 10
#define LIC_LOOPBACK_IFINDEX 1 /* in every network namespace (net/core/dev.c, loopback first) */

static __always_inline int is_of_era(const struct lic_control *ctl, const struct lic_tag *tag)
{
	return !((tag->metered ^ ctl->era << LIC_METERED_ERA_SHIFT) & 0xff & ~LIC_METERED_LOOPBACK);
}

static __always_inline __u32 spilled_meter(__u32 protocol)
{
	switch (protocol) {
	case LIC_PROTO_TCP:
		return 1;
	case LIC_PROTO_UDP:
		return 2;
	case LIC_PROTO_ICMP:
		return 3;
	case LIC_PROTO_SCTP:
		return 4;
	default:
		return 5;
	}
}

/* License and resource by which a socket's packets pass. */
static __always_inline void charged(const struct lic_tag *tag, struct lic_flow_key *key)
{
	const struct lic_half *half =
		tag->network.kind == LIC_TAG_NONE ? &tag->service : &tag->network;
	struct lic_license *license;
	__u32 slot = half->slot;

	if (half->kind != LIC_TAG_LICENSED && half->kind != LIC_TAG_SHADOW &&
	    half->kind != LIC_TAG_GLASS)
		return;
	key->resource = half->resource;
	if (half->kind != LIC_TAG_LICENSED)
		return;
	license = bpf_map_lookup_elem(MAP(licenses), &slot);
	if (license)
		key->license = license->number;
}

static __always_inline struct lic_meter *meter_of(__u32 handle)
{
	__u32 index = handle & (LIC_METERS - 1);
	struct lic_meter *meter = bpf_map_lookup_elem(MAP(meters), &index);

	/* The daemon takes meters back that were idle, and others get them. */
	if (!meter || *(volatile __u32 *)&meter->generation << LIC_METER_BITS !=
			      (handle & ~(__u32)(LIC_METERS - 1)))
		return 0;
	return meter;
}

/* Take a free meter for this line. Its handle; 0: there is none, or somebody else was quicker. */
static __always_inline __u32 take_meter(const struct lic_flow_key *key)
{
	__u32 index = 0, handle, pid = key->pid;
	struct lic_process *process;
	struct lic_meter *meter;

	if (bpf_map_pop_elem(MAP(free_meters), &index))
		return 0;
	meter = bpf_map_lookup_elem(MAP(meters), &index);
	if (!meter)
		return 0;
	meter->key = *key;
	meter->start_ns = 0;
	meter->inode = 0;
	meter->device = 0;
	process = bpf_map_lookup_elem(MAP(processes), &pid);
	if (process && (__u32)process->exec_ns == key->exec_id) {
		meter->start_ns = process->start_ns;
		meter->inode = process->inode;
		meter->device = process->device;
	}
	handle = meter->generation << LIC_METER_BITS | index;
	if (bpf_map_update_elem(MAP(flows), key, &handle, BPF_NOEXIST)) {
		meter->key.is_free = 1;
		bpf_map_push_elem(MAP(free_meters), &index, BPF_ANY);
		return 0;
	}
	return handle;
}

/* The slow path: which meter is this socket's? Remembered in its tag. */
static __always_inline struct lic_meter *find_meter(struct lic_tag *tag)
{
	struct lic_flow_key key = {};
	__u32 handle = 0, *known;
	struct lic_meter *meter;

	key.cgroup = tag->cgroup;
	key.pid = tag->pid;
	key.exec_id = tag->exec_id;
	key.uid = tag->uid;
	key.gid = tag->gid;
	key.protocol = tag->protocol;
	charged(tag, &key);
	known = bpf_map_lookup_elem(MAP(flows), &key);
	if (known)
		handle = *known;
	else
		handle = take_meter(&key);
	if (!handle) {
		known = bpf_map_lookup_elem(MAP(flows), &key);
		if (known) {
			handle = *known;
		} else {
			/* Not remembered: its next packet may find one. */
			note_fault(LIC_FAULT_METER_SPILLED);
			return meter_of(spilled_meter(tag->protocol));
		}
	}
	meter = meter_of(handle);
	if (!meter) /* taken back at this moment */
		return meter_of(spilled_meter(tag->protocol));
	tag->meter = handle;
	return meter;
}

static __always_inline struct lic_meter *get_meter(struct lic_tag *tag)
{
	struct lic_meter *meter = 0;

	if (likely(tag->meter))
		meter = meter_of(tag->meter);
	return likely(meter) ? meter : find_meter(tag);
}

/* A socket that no hook has seen: older than the agent, the kernel's own, listening without bind. */
static __always_inline struct lic_tag *tag_stranger(struct __sk_buff *skb, struct bpf_sock *sk)
{
	struct lic_subject subject;
	struct bpf_tcp_sock *tcp;
	struct lic_control *ctl;
	struct lic_tag *tag;

	sk = bpf_sk_fullsock(sk);
	/* The kernel's own raw sockets are decided by having none; see packet.bpf.c. */
	if (!sk || sk->type == LIC_SOCK_RAW)
		return 0;
	tag = bpf_sk_storage_get(MAP(tags), sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!tag || tag->since_s)
		return tag;
	packet_subject(skb, &subject);
	fill_subject(tag, &subject);
	tag->protocol = fold_protocol(sk->protocol);
	tag->since_s = now_s();
	ctl = get_control();
	if (ctl)
		tag->metered = metered_mark(ctl, 0);
	tcp = bpf_tcp_sock(sk);
	if (tcp) { /* what it did before is nobody's; see connect.bpf.c for the one */
		tag->tx_bytes = sk->state == LIC_TCP_SYN_SENT ? 1 : tcp->bytes_acked;
		tag->rx_bytes = tcp->bytes_received;
	}
	return tag;
}

/* Length of the IP header in bytes, and the protocol; 0 where it cannot be read. */
static __always_inline __u32 ip_header(struct __sk_buff *skb, __u32 *protocol)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (skb->protocol == bpf_htons(LIC_ETH_P_IP)) {
		struct lic_ipv4 *ip = data;

		if (data + sizeof(*ip) > end)
			return 0;
		*protocol = ip->protocol;
		return (ip->version_ihl & 15) * 4;
	}
	if (skb->protocol == bpf_htons(LIC_ETH_P_IPV6)) {
		struct lic_ipv6 *ip = data;

		if (data + sizeof(*ip) > end)
			return 0;
		*protocol = ip->next_header;
		return sizeof(*ip);
	}
	return 0;
}

/* Bytes that the other segments of this packet have on the wire besides what is in it. */
static __always_inline __u64 header_bytes(struct __sk_buff *skb, __u32 segments, __u32 network,
					  __u32 protocol)
{
	__u32 transport = 8;
	__u8 offset;

	if (protocol == LIC_IPPROTO_TCP) {
		if (bpf_skb_load_bytes(skb, network + 12, &offset, sizeof(offset)))
			return 0;
		transport = (offset >> 4) * 4;
	}
	return (__u64)(segments - 1) * (network + transport);
}

/* Bring a TCP socket's payload up to these positions. The socket is locked. */
static __always_inline void add_tcp_payload(struct lic_tag *tag, struct lic_meter *meter,
					    __u32 bank, __u64 acked, __u64 received)
{
	__u32 loopback = tag->metered & LIC_METERED_LOOPBACK;
	struct lic_flow_count *counts = meter->counts[bank & 1][loopback & 1];

	if (acked > tag->tx_bytes) {
		__sync_fetch_and_add(&counts[LIC_DIRECTION_TX].payload_bytes,
				     acked - tag->tx_bytes);
		tag->tx_bytes = acked;
	}
	if (received > tag->rx_bytes) {
		__sync_fetch_and_add(&counts[LIC_DIRECTION_RX].payload_bytes,
				     received - tag->rx_bytes);
		tag->rx_bytes = received;
	}
}

/* A packet that passes. */
static __always_inline void meter_packet(const struct lic_control *ctl, struct __sk_buff *skb,
					 struct bpf_sock *sk, struct lic_tag *tag, __u32 direction)
{
	__u32 loopback = skb->ifindex == LIC_LOOPBACK_IFINDEX;
	__u32 bank = *(const volatile __u32 *)&ctl->sheet & 1;
	__u32 segments = skb->gso_segs, network, protocol = 0;
	struct lic_flow_count *count;
	struct lic_meter *meter;
	__u64 wire = skb->len;

	network = ip_header(skb, &protocol);
	if (segments > 1)
		wire += header_bytes(skb, segments, network, protocol);
	else
		segments = 1;
	if (!tag)
		tag = tag_stranger(skb, sk);
	if (tag) {
		meter = get_meter(tag);
	} else {
		__u32 index = spilled_meter(fold_protocol(protocol));

		meter = bpf_map_lookup_elem(MAP(meters), &index);
	}
	if (!meter)
		return;
	count = &meter->counts[bank & 1][loopback & 1][direction & 1];
	__sync_fetch_and_add(&count->wire_bytes, wire);
	__sync_fetch_and_add(&count->packets, segments);
	if (protocol == LIC_IPPROTO_TCP) {
		struct bpf_tcp_sock *tcp;
		__u64 acked, received;

		if (direction == LIC_DIRECTION_RX || !tag)
			return;
		tcp = bpf_tcp_sock(sk);
		/* Closed: it is settled (usage.bpf.c), and what is sent yet is a reset. */
		if (!tcp || sk->state == LIC_TCP_CLOSE)
			return;
		acked = tcp->bytes_acked;
		received = tcp->bytes_received;
		if (sk->state != LIC_TCP_ESTABLISHED) {
			acked -= acked ? 1 : 0;
			received -= received ? 1 : 0;
		}
		if (unlikely(!is_of_era(ctl, tag))) {
			/* Nothing was metered for a while: what went by then is nobody's. */
			tag->tx_bytes = acked;
			tag->rx_bytes = received;
		}
		if (tag->metered != metered_mark(ctl, loopback))
			tag->metered = metered_mark(ctl, loopback);
		add_tcp_payload(tag, meter, bank, acked, received);
	} else {
		__u32 header = network + (protocol == LIC_IPPROTO_UDP ? 8 : 0);
		__u64 payload = skb->len > header ? skb->len - header : 0;

		__sync_fetch_and_add(&count->payload_bytes, payload);
		if (tag && direction == LIC_DIRECTION_TX)
			__sync_fetch_and_add(&tag->tx_bytes, payload);
		else if (tag)
			__sync_fetch_and_add(&tag->rx_bytes, payload);
	}
}

#endif /* LICAGENT_METER_H */
