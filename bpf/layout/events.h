/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is counted and told: decisions, events, lost work. */
#ifndef LICAGENT_LAYOUT_EVENTS_H
#define LICAGENT_LAYOUT_EVENTS_H

#include "layout/numbers.h"

struct lic_counter_key {
	__u32 license;
	__u32 resource;
	__u32 verdict;
	__u32 reason;
};

/* Repeats of one decision by one process are folded into one event a window. */
struct lic_repeat_key {
	__u32 pid;
	__u32 license;
	__u32 resource;
	__u16 verdict;
	__u16 reason;
	__u32 exec_id;
};

struct lic_repeat {
	__u64 emitted_ns; /* CLOCK_BOOTTIME */
	__u64 pending;    /* decisions since, not yet in an event */
};

enum lic_event_kind {
	LIC_EVENT_DECISION = 1,
	LIC_EVENT_EXEC = 2,  /* an executable whose content was never measured */
	LIC_EVENT_GUARD = 3, /* somebody else tried to change what is ours; see guard.h */
};

struct lic_event {
	__u32 kind; /* enum lic_event_kind */
	__u16 verdict;
	__u16 reason;
	__u64 at_ns; /* CLOCK_BOOTTIME */
	__u64 count; /* decisions this event stands for */
	__u32 license;
	__u32 resource;
	__u32 rule;
	__u32 pid;
	__u32 uid;
	__u32 gid;
	__u32 path;
	__u32 digest;
	__u64 cgroup;
	__u64 cookie;
	__u64 exec_ns; /* LIC_EVENT_EXEC */
	__u32 source[4];
	__u32 destination[4];
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	__u8 is_ipv6;
	__u8 hook; /* enum lic_hook */
	__u8 reserved;
	char comm[LIC_COMM_LEN];
	__u32 device;  /* LIC_EVENT_EXEC: the executable */
	__u32 exec_id; /* LIC_EVENT_DECISION: which exec of the process */
	__u64 inode;
	__u64 ctime_ns;
};

enum lic_hook {
	LIC_HOOK_CONNECT = 1,
	LIC_HOOK_SENDMSG = 2,
	LIC_HOOK_BIND = 3,
	LIC_HOOK_POST_BIND = 4,
	LIC_HOOK_EGRESS = 5,
	LIC_HOOK_INGRESS = 6,
	LIC_HOOK_SOCKET = 7,
	LIC_HOOK_ADOPT = 8,
	LIC_HOOK_EXEC = 9,
	LIC_HOOK_INTERFACE = 10,
	LIC_HOOK_FAMILY = 11,
	LIC_HOOK_GUARD = 12,
};

/* Lost work, per CPU. Index of the `faults` map. */
enum lic_fault {
	LIC_FAULT_EVENT_DROPPED = 0,   /* ring buffer full */
	LIC_FAULT_COUNTER_SPILLED = 1, /* counters full: counted under license 0, resource 0 */
	LIC_FAULT_TAG_FAILED = 2,      /* no memory for a tag: denied in enforce */
	LIC_FAULT_PROCESS_FAILED = 3,  /* processes full: identity unknown */
	LIC_FAULT_CGROUP_FAILED = 4,
	LIC_FAULT_EVENT_EMITTED = 5,
	LIC_FAULT_METER_SPILLED = 6, /* no meter free: counted without an owner */
	LIC_FAULT_WORK_SPILLED = 7,  /* work or accounts full: the same */
	LIC_FAULT_COUNT = 8,
};

#endif /* LICAGENT_LAYOUT_EVENTS_H */
