/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the kernel programs and the daemon agree on: numbers and struct layouts.
 *
 * Python mirrors these structs in agent/licagent/kernel/layout.py, and a test compares both
 * with the BTF of the built objects. Rules of the tables, with examples:
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
#ifndef LICAGENT_H
#define LICAGENT_H

#define LIC_SCHEMA 3 /* of all pinned maps; a daemon with another number migrates them */

#define LIC_ANY_ID 0
#define LIC_NO_ID 0xffffffffU /* of a subject: never the number of anything */
#define LIC_ANY_OWNER 0xffffffffU
#define LIC_NO_OWNER 0xfffffffeU /* of a subject: not known */
#define LIC_FAILSAFE_RESOURCE 0xffffffffU
#define LIC_FAMILY_RESOURCE \
	0xfffffffeU /* sockets of other families, where no resource names them */
#define LIC_SERVICE_CLASS 0
#define LIC_RULE_LICENSES 4
#define LIC_MAX_SHAPES 32
#define LIC_MAX_SCOPES 8
#define LIC_NAME_LEN 64
#define LIC_SCOPE_NAME_LEN 252
#define LIC_COMM_LEN 16

enum lic_protocol {
	LIC_PROTO_ICMP = 1,
	LIC_PROTO_TCP = 6,
	LIC_PROTO_UDP = 17,
	LIC_PROTO_SCTP = 132,
	LIC_PROTO_OTHER = 255,
};

enum lic_shape {
	LIC_SHAPE_GID = 1,
	LIC_SHAPE_UID = 2,
	LIC_SHAPE_SCOPE = 4,
	LIC_SHAPE_PATH = 8,
	LIC_SHAPE_DIGEST = 16,
};

enum lic_verdict {
	LIC_VERDICT_NONE = 0,
	LIC_VERDICT_ALLOW = 1,
	LIC_VERDICT_DENY = 2,
	LIC_VERDICT_SHADOW = 3, /* observe: let through, would have been denied */
	LIC_VERDICT_CUT = 4,    /* packet of an open socket dropped */
};

enum lic_reason {
	LIC_REASON_NONE = 0,
	LIC_REASON_LICENSED = 1,
	LIC_REASON_NO_RESOURCE = 2,
	LIC_REASON_FAILSAFE = 3,
	LIC_REASON_BREAK_GLASS = 4,
	LIC_REASON_NO_BINDING = 5,
	LIC_REASON_EXPIRED = 6,
	LIC_REASON_NOT_YET_VALID = 7,
	LIC_REASON_LEASE_LOST = 8,
	LIC_REASON_REVOKED = 9,
	LIC_REASON_CONDITION = 10,
	LIC_REASON_NO_SEAT = 11,
	LIC_REASON_QUOTA = 12,
	LIC_REASON_MALFORMED = 13,
};

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

/* What is switched and what time it is. One element, mapped into the daemon. */
struct lic_control {
	/*
	 * Of the policy in force, in the low half; its enum lic_policy_flag in the high half, so
	 * that one store switches both. 0: no policy yet, everything passes.
	 */
	__u64 generation;
	__u64 break_glass_until_ns; /* CLOCK_BOOTTIME; nothing is denied before it */
	__u64 root_cgroup;          /* id of the cgroup the programs are attached to */
	__u32 measure;              /* some selector is a digest: report unmeasured executables */
	__u32 zero;                 /* always 0; see forget() in core.h */
	__u32 sheet;                /* usage adds up in this one; 0: nothing is metered */
	__u32 discarded;            /* the last sheet that was billed and emptied */
	__u32 page_bytes;
	__u32 era;              /* moves when metering is begun anew: marks of before are void */
	__u64 metered_since_ns; /* CLOCK_BOOTTIME; what older threads used before is nobody's */
	/* The daemon's memory of the wall clock, from one run to the next: licagent.kernel.walltime.
	 * CLOCK_REALTIME - CLOCK_BOOTTIME, signed; all zero: never looked at. */
	__u64 wall_offset_ns;
	__u64 wall_lowest_ns;
	__u64 wall_since_ns; /* CLOCK_BOOTTIME; not set forward since then */
};

/* CLOCK_BOOTTIME, read once a tick: see clock.h. Written by the programs only. */
struct lic_clock {
	__u64 now_ns;
	__u64 jiffies; /* the tick in which it was read */
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

struct lic_path_key {
	__u32 device; /* kernel's s_dev of the folder: major << 20 | minor */
	__u32 reserved;
	__u64 inode; /* of the folder */
	char name[LIC_NAME_LEN];
};

struct lic_content_key {
	__u32 device;
	__u32 reserved;
	__u64 inode;
	__u64 ctime_ns;
};

/* What the daemon measured under a lic_content_key. */
struct lic_content {
	__u32 number; /* of unix:sha256; 0: none that the policy names */
	__u32 reserved;
	/* CLOCK_BOOTTIME: only what was executed at this time or later had this content for sure.
	 * Before it, the file may have held something else under the same change time. */
	__u64 from_ns;
};

/*
 * Number of a selector, and for which exec it holds; for any other one it is none. iter/task writes
 * both in one store of 64 bits into an element that may, by then, be another process's: a hash
 * gives what it frees to the next who asks (since 6.1, bpf_mem_alloc). The exec comes
 * first: whoever copies a new element over it front to back cannot end with its own exec and a
 * foreign number.
 */
struct lic_known {
	__u32 exec_id; /* low bits of lic_process.exec_ns */
	__u32 number;  /* 0: none that the policy names, or not measured yet */
} __attribute__((aligned(8)));

/* What runs in a process, fixed at exec. `exec_ns` after the identity: see tell_known(). */
struct lic_process {
	__u64 inode;
	__u64 ctime_ns;
	__u32 device;
	__u32 measured; /* at exec: the content was looked up and known */
	__u64 exec_ns; /* CLOCK_BOOTTIME of the exec, or of the agent's start for older processes */
	struct lic_known path;   /* unix:path */
	struct lic_known digest; /* unix:sha256 */
	/* the license it used last: repeats within a minute are one event (report.h) */
	__u64 allowed_ns; /* CLOCK_BOOTTIME of the last event */
	__u32 allowed_license;
	__u32 allowed_resource;
	__u64 allowed_pending; /* decisions since */
	__u64 start_ns;        /* CLOCK_BOOTTIME at which the process began; 0: not known */
};

/* A cgroup as the policy sees it: named scopes of itself and its ancestors, deepest first. */
struct lic_cgroup {
	__u32 count;
	__u32 scopes[LIC_MAX_SCOPES];
};

enum lic_scope_kind {
	LIC_SCOPE_UNIT = 1,      /* base name; all ancestors below the root are slices */
	LIC_SCOPE_PATH = 2,      /* path from the root of the hierarchy */
	LIC_SCOPE_CONTAINER = 3, /* base name; no ancestor is user@*.service */
};

struct lic_scope_key {
	__u32 kind;
	char name[LIC_SCOPE_NAME_LEN];
};

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

/*
 * Usage. It adds up in sheets: `control.sheet` names the open one. Closing it is one store, and
 * once the programs that run have ended, what it holds is final; it stays until the daemon has
 * billed it. See licagent.kernel.usage.
 */
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

/* What the guard protects. Kind of an entry of `guarded`, and `rule` of its events. */
enum lic_guarded {
	LIC_GUARDED_LINK = 1,    /* by the kernel's id: detached, or given another program */
	LIC_GUARDED_MAP = 2,     /* by the kernel's id: written, or used by a foreign program */
	LIC_GUARDED_FOLDER = 3,  /* by device and inode: a pin in it removed or renamed */
	LIC_GUARDED_MOUNT = 4,   /* by device: taken away in the host's mount namespace */
	LIC_GUARDED_PROCESS = 5, /* the daemon: traced, its memory or descriptors taken */
	LIC_GUARDED_PROGRAM = 6, /* by the kernel's id: a function of it replaced (freplace) */
};

struct lic_guarded_key {
	__u32 kind;   /* enum lic_guarded */
	__u32 device; /* kernel's s_dev; 0 for ids */
	__u64 number; /* id or inode; 0 for a mount */
};

/* Whose the kernel side is. One element; nobody but the daemon writes it while it is locked. */
struct lic_guard {
	__u32 daemon; /* its process id; who descends from it is the daemon, too */
	__u32 locked; /* 0: everybody may do as root may; so it is while no daemon lives */
	__u32 network_namespace; /* of the host */
	__u32 mount_namespace;   /* of the host */
	__u32 seen; /* bits: an LSM program has run: of the families 1, of the guard 2 */
	__u32 reserved;
	__u64 told_ns; /* CLOCK_BOOTTIME of the last event */
	__u64 refused; /* attempts since */
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

#endif /* LICAGENT_H */
