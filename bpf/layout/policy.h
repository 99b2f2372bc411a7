/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The tables of the policy and of the licenses. Rules, with examples:
 *
 *   destination -> class      networks4/6, longest prefix, flattened in userspace
 *   class, protocol, port     ports, longest prefix: "5432" is a /16 of the port,
 *                             "6432-6440" is 6432/13 + 6440/16
 *   resource, subject -> rule rules, one exact look-up for each shape in use, most specific first
 *   rule -> license           licenses[slot], valid while epoch and time say so
 *
 * Every key begins with the policy's generation. A switch of policy writes the whole new
 * generation beside the old one and then one 64-bit word, `control.generation`, which carries the
 * policy's flags as well.
 */
#ifndef LICAGENT_LAYOUT_POLICY_H
#define LICAGENT_LAYOUT_POLICY_H

#include "layout/numbers.h"

enum lic_port_flag {
	LIC_PORT_ENFORCE = 1,
};

enum lic_policy_flag {
	LIC_POLICY_ENFORCE = 1, /* the agent enforces, and so does some resource */
	LIC_POLICY_HAS_NETWORKS = 2,
	LIC_POLICY_HAS_SERVICES = 4,
	LIC_POLICY_KEEP_EXISTING = 8, /* sockets older than the agent are kept, as shadow usage */
	LIC_POLICY_HAS_SCOPES = 16,   /* some rule names a cgroup */
	LIC_POLICY_ENFORCES_NETWORKS = 32, /* some network is enforced, not services alone */
};

/* One generation's constants; slot generation & 1. */
struct lic_policy {
	__u32 generation;
	__u32 flags; /* enum lic_policy_flag */
	__u32 shape_count;
	__u32 reserved;
	__u8 shapes[LIC_MAX_SHAPES]; /* most specific first */
};

struct lic_net4_key {
	__u32 prefix_bits; /* 32 for the generation + length of the network */
	__u32 generation;
	__u32 address; /* network order */
};

struct lic_net6_key {
	__u32 prefix_bits;
	__u32 generation;
	__u32 address[4];
};

struct lic_port_key {
	__u32 prefix_bits; /* 80 + leading bits of the port */
	__u32 generation;
	__u32 class_number;
	__u8 protocol;
	__u8 reserved;
	__u16 port; /* network order */
};

struct lic_port {
	__u32 resource;
	__u32 flags; /* enum lic_port_flag */
};

struct lic_rule_key {
	__u32 generation;
	__u32 resource;
	__u32 path;
	__u32 digest;
	__u32 scope;
	__u32 uid;
	__u32 gid;
	__u32 reserved;
};

struct lic_rule {
	__u32 number;
	__u32 license_count;
	__u32 slots[LIC_RULE_LICENSES];
};

/* A license on this host. Mapped into the daemon; each word is written on its own. */
struct lic_license {
	__u32 number; /* fleet-wide; 0: the slot is free */
	__u32 epoch;  /* only grows; moves with every change of `state` or `number` */
	__u32 state;  /* LIC_REASON_LICENSED, or the reason why it grants nothing */
	/* Why it ends at not_after_ns: its own end (0, or EXPIRED), that of its lease or of what
	 * was last known of its conditions. Words only: the end holds whatever stands here. */
	__u32 end_reason;
	__u64 not_before_ns; /* CLOCK_BOOTTIME */
	__u64 not_after_ns;  /* CLOCK_BOOTTIME, first instant that is too late */
};

#endif /* LICAGENT_LAYOUT_POLICY_H */
