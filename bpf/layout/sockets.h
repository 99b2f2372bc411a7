/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a socket carries, and how an iterator reports it. */
#ifndef LICAGENT_LAYOUT_SOCKETS_H
#define LICAGENT_LAYOUT_SOCKETS_H

enum lic_tag_kind {
	LIC_TAG_NONE = 0,
	LIC_TAG_FREE = 1,     /* no resource, or failsafe; holds for one generation */
	LIC_TAG_LICENSED = 2, /* holds for one generation, one epoch, and until the license ends */
	LIC_TAG_SHADOW = 3,   /* observed: would have been denied; holds for one generation */
	LIC_TAG_GLASS = 4,    /* let through by break-glass; holds until its end */
	LIC_TAG_DENIED = 5,   /* the license ended while the socket was open */
	LIC_TAG_PACKET = 6,   /* raw, ICMP, SCTP...: decided packet by packet */
};

/* One half of a tag: what the socket uses (network) or what it offers (service). */
struct lic_half {
	__u32 generation;
	__u32 slot;
	__u32 epoch;
	__u32 resource;
	__u8 kind;   /* enum lic_tag_kind */
	__u8 reason; /* enum lic_reason */
	__u16 reserved;
};

/*
 * What a socket carries. Dies with the socket; accepted sockets inherit the listener's. 120 bytes,
 * so that the kernel's element around it fits a 192-byte object: the next size is dearer for
 * every connect. The license is its slot and epoch, the rule follows from the subject.
 */
struct lic_tag {
	struct lic_half network;
	struct lic_half service;
	__u32 address[4]; /* destination the network half was decided for, network order */
	__u16 port;       /* host order */
	__u8 protocol;    /* enum lic_protocol */
	__u8 is_ipv6;
	__u16 local_port; /* host order; of the service half */
	__u8 kept;        /* older than the policy and unlicensed, but kept by its owner's wish */
	__u8 metered; /* LIC_METERED_LOOPBACK of its last TCP packet, and the era of its marks */
	/* the subject at the time of the decision */
	__u32 pid;
	__u32 uid;
	__u32 gid;
	__u32 path;
	__u32 digest;
	__u32 exec_id; /* which exec of the process; see subject.h */
	__u64 cgroup;
	__u32 since_s; /* CLOCK_BOOTTIME of the first decision */
	__u32 meter;   /* handle of where its packets are counted; 0: not looked up yet */
	/* Payload that is metered already. TCP: as tcp_sock counts it, the SYN included. */
	__u64 tx_bytes;
	__u64 rx_bytes;
};

/* A socket as an iterator reports it. */
struct lic_socket_record {
	struct lic_tag tag;
	__u64 cookie;
	__u32 holder_pid;
	__u32 fd;
	__u32 source[4];
	__u32 destination[4];
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	__u8 is_ipv6;
	__u8 state; /* TCP state, include/net/tcp_states.h */
	__u8 tagged;
	__u32 uid;
	__u32 destroyed;
	__u64 inode;
};

#endif /* LICAGENT_LAYOUT_SOCKETS_H */
