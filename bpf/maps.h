/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * All maps, pinned by name under the agent's bpffs folder and shared by every object.
 *
 * libbpf creates them from these definitions. Under bcc they exist already, and their file
 * descriptors arrive as macros: MAP(control) is &control for clang and the descriptor
 * control_fd for bcc, so that one source serves both.
 */
#ifndef LICAGENT_MAPS_H
#define LICAGENT_MAPS_H

#ifdef LICAGENT_BCC
#define MAP(name) ((void *)bpf_pseudo_fd(1, name##_fd))
#else
#define MAP(name) (&(name))

/* Written by the daemon through a memory map, read by every program. One element. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lic_control);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} control SEC(".maps");

/* Written and read by the programs; apart from `control` so that its cache line stays shared. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lic_clock);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} clock SEC(".maps");

/* Written by the daemon, the slot that is not in force. Two generations. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct lic_policy);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policies SEC(".maps");

/* Written by the daemon. 65,536 networks in each of two generations; memory grows with use. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct lic_net4_key);
	__type(value, __u32); /* class */
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} networks4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct lic_net6_key);
	__type(value, __u32); /* class */
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} networks6 SEC(".maps");

/* Written by the daemon. Ports of each class as prefixes; memory grows with use. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct lic_port_key);
	__type(value, struct lic_port);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ports SEC(".maps");

/*
 * Written by the daemon: one bit a port that some service resource names, so that packets to
 * other ports pay one array look-up. 2 generations x (TCP, UDP) x 1,024 words.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} service_ports SEC(".maps");

/* Written by the daemon. 131,072 rules in each of two generations; memory grows with use. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct lic_rule_key);
	__type(value, struct lic_rule);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} rules SEC(".maps");

/* Written by the daemon through a memory map. Slots, so that a packet pays no hash look-up. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 131072);
	__type(key, __u32);
	__type(value, struct lic_license);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} licenses SEC(".maps");

/* Written by the daemon: directory entries that unix:path selectors name. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct lic_path_key);
	__type(value, __u32); /* path number */
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} paths SEC(".maps");

/* Written by the daemon: measured files. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct lic_content_key);
	__type(value, struct lic_content);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} contents SEC(".maps");

/*
 * Written by the exec, fork and exit programs and by iter/task, read by every decision. A plain
 * hash by process id: task storage cannot be read from connect4 before 6.18.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, __u32);
	__type(value, struct lic_process);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} processes SEC(".maps");

/* Written by the daemon: names by which a new cgroup is recognised. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct lic_scope_key);
	__type(value, __u32); /* scope number */
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} scope_names SEC(".maps");

/* Written by cgroup_mkdir/rmdir and by the daemon; only cgroups that some selector names, and
 * their descendants, have an entry. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u64); /* cgroup id */
	__type(value, struct lic_cgroup);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} cgroups SEC(".maps");

/* Written by every hook; one a socket, freed with it. Accepted sockets get a copy. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct lic_tag);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tags SEC(".maps");

/* Exact numbers of decisions, also when events are dropped. Spills into (0, 0, verdict, reason). */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct lic_counter_key);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} counters SEC(".maps");

/* Decisions of the last minute by process, for folding repeats. The oldest make room. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct lic_repeat_key);
	__type(value, struct lic_repeat);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} repeats SEC(".maps");

/* To the daemon. 512 KiB hold about 2,700 events; what does not fit is counted in `faults`. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 512 * 1024);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} events SEC(".maps");

/* Written by the loader: which build the attached programs are of, so that a restart of the
 * daemon finds them as they should be and leaves them alone. One element, a SHA-256 in hex. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__uint(value_size, 80);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} build SEC(".maps");

/* Written by the daemon, read by nobody else: it must survive the daemon. Index: sheet & 1. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct lic_sheet);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} sheets SEC(".maps");

/*
 * Written by every packet, in the meter that its socket's tag names; read and emptied by the
 * daemon through a memory map, the half of the closed sheet only. A meter is one process, license,
 * resource and protocol: 16,384 of them are 4 MiB, and what comes beyond has no owner.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, LIC_METERS);
	__type(key, __u32);
	__type(value, struct lic_meter);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} meters SEC(".maps");

/* Written by a socket's first packet, which looks its meter up; the daemon takes meters out. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, LIC_METERS);
	__type(key, struct lic_flow_key);
	__type(value, __u32); /* handle: generation << LIC_METER_BITS | index of `meters` */
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flows SEC(".maps");

/* Filled by the daemon, taken from by a socket's first packet: meters that nobody has. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, LIC_METERS);
	__uint(value_size, 4);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} free_meters SEC(".maps");

/* Index: enum lic_fault. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LIC_FAULT_COUNT);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} faults SEC(".maps");

#endif /* LICAGENT_BCC */
#endif /* LICAGENT_MAPS_H */
