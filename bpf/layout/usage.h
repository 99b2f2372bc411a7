/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Usage. It adds up in sheets: `control.sheet` names the open one. Closing it is one store, and
 * once the programs that run have ended, what it holds is final; it stays until the daemon has
 * billed it. See licagent.kernel.usage.
 */
#ifndef LICAGENT_LAYOUT_USAGE_H
#define LICAGENT_LAYOUT_USAGE_H

#include "layout/numbers.h"

#define LIC_METERS 16384
#define LIC_METERED_LOOPBACK 1
#define LIC_METERED_ERA_SHIFT 1
#define LIC_METER_BITS 14    /* of a handle: the index; above it, the meter's generation */
#define LIC_METERS_SPILLED 5 /* meters 1..5 have no owner: one for each enum lic_protocol */

/* Times of a sheet. Index: its number & 1. */
struct lic_sheet {
	__u64 opened_ns; /* CLOCK_BOOTTIME */
	__u64 closed_ns;
};

/* Whose packets a meter counts, and by which license. */
struct lic_flow_key {
	__u64 cgroup;
	__u32 pid; /* 0: the socket's process is not known */
	__u32 exec_id;
	__u32 uid;
	__u32 gid;
	__u32 license; /* 0: none */
	__u32 resource;
	__u32 protocol; /* enum lic_protocol */
	__u32 is_free;  /* of a meter: it waits in free_meters; of a key: 0 */
};

struct lic_flow_count {
	__u64 payload_bytes;
	__u64 wire_bytes; /* IP packets, each segment with its headers */
	__u64 packets;
};

enum lic_direction {
	LIC_DIRECTION_TX = 0,
	LIC_DIRECTION_RX = 1,
};

/* One line of network usage: 64 bytes that say whose, and the counts of two sheets. */
struct lic_meter {
	struct lic_flow_key key;
	__u64 start_ns; /* CLOCK_BOOTTIME at which the process began; 0: not known */
	__u64 inode;    /* the executable */
	__u32 device;
	__u32 generation; /* moves when the daemon takes the meter back */
	/* by sheet & 1, loopback, enum lic_direction */
	struct lic_flow_count counts[2][2][2];
};

/* Who used it. */
struct lic_owner {
	__u64 start_ns; /* CLOCK_BOOTTIME at which the process began */
	__u64 cgroup;
	__u64 inode; /* the executable; 0: none, or not known */
	__u32 device;
	__u32 pid; /* 0: several processes that lived and died between two samples */
	__u32 uid;
	__u32 gid;
};

struct lic_work_key {
	__u32 sheet;
	__u32 path; /* one file may have several names, and they several licenses */
	struct lic_owner owner;
};

struct lic_work {
	__u64 cpu_ns;
	__u64 read_bytes;
	__u64 write_bytes;
	__u64 cancelled_bytes;
	__u64 memory_byte_ms;
	__u32 processes; /* that ended */
	__u32 digest;
	char comm[LIC_COMM_LEN];
};

/* A process in the books. */
struct lic_account {
	struct lic_owner owner; /* of its present segment: exec and a new cgroup begin another */
	__u64 since_ns; /* CLOCK_BOOTTIME: what threads older than this used before is not ours */
	__u64 seen_ns;  /* CLOCK_BOOTTIME until which its memory is counted */
	__u32 path;
	__u32 digest;
	__u32 sampled;        /* lived through a sample: has lines of its own */
	__u32 resident_pages; /* as of the last sample */
	__u32 threads;        /* that are not freed yet; 0: not counted, older than the account */
	__u32 reserved;
	char comm[LIC_COMM_LEN];
};

/* What of a thread's use is in the books. */
struct lic_taken {
	__u64 cpu_ns;
	__u64 read_bytes;
	__u64 write_bytes;
	__u64 cancelled_bytes;
	__u32 era;
	__u32 reserved;
};

#endif /* LICAGENT_LAYOUT_USAGE_H */
