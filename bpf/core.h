/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* One source, two compilers: clang with libbpf, and bcc (see maps.h). */
#ifndef LICAGENT_CORE_H
#define LICAGENT_CORE_H

#ifdef LICAGENT_BCC
/* bcc brings linux/bpf.h and the helpers, and finds programs by function name. */
#define SEC(name)
#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif
#ifndef bpf_htons
#define bpf_htons(x) __builtin_bswap16(x)
#define bpf_ntohs(x) __builtin_bswap16(x)
#define bpf_htonl(x) __builtin_bswap32(x)
#define bpf_ntohl(x) __builtin_bswap32(x)
#endif
#else
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#ifndef LICAGENT_PLAIN
#define LICAGENT_TASK_BTF
#include "licagent.h"
#define LIC_NSEC_PER_SEC 1000000000ULL
#include "kernel.h"
#endif

/* Filled in by libbpf from uname(2); the verifier drops what this kernel does not have. */
extern int LINUX_KERNEL_VERSION __kconfig;

#define LIC_KERNEL(a, b) (((a) << 16) + ((b) << 8))
#endif

#include "licagent.h"
#include "maps.h"

#define LIC_AF_INET 2
#define LIC_AF_INET6 10
#define LIC_SOCK_STREAM 1
#define LIC_SOCK_DGRAM 2
#define LIC_SOCK_RAW 3
#define LIC_IPPROTO_IP 0
#define LIC_IPPROTO_ICMP 1
#define LIC_IPPROTO_TCP 6
#define LIC_IPPROTO_UDP 17
#define LIC_IPPROTO_ICMPV6 58
#define LIC_IPPROTO_SCTP 132
#define LIC_IPPROTO_UDPLITE 136
#define LIC_IPPROTO_MPTCP 262

#ifndef LIC_NSEC_PER_SEC
#define LIC_NSEC_PER_SEC 1000000000ULL
#endif

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/*
 * Call step(index, context) until it returns 1, at most `count` times. By bpf_loop where the
 * kernel has it (5.17, commit e6f2dd0f8067): the verifier walks the step once instead of `count`
 * times.
 */
#if defined(LICAGENT_BCC) || defined(LICAGENT_PLAIN)
#define LIC_LOOP(count, step, context)                              \
	for (__u32 lic_index = 0; lic_index < (count); lic_index++) \
		if (step(lic_index, context))                       \
			break;
#define LIC_STEP static __always_inline long
/* Each step is walked on its own here; more than these are beyond old verifiers' patience. What
 * is not found within them is denied. 96 are 12 shapes with 8 scopes each. */
#define LIC_MAX_STEPS 96
#else
#define LIC_MAX_STEPS (LIC_MAX_SHAPES * (LIC_MAX_SCOPES + 1))
#define LIC_LOOP(count, step, context) bpf_loop(count, step, context, 0)
#define LIC_STEP static long
#endif

static __always_inline struct lic_control *get_control(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(MAP(control), &zero);
}

/*
 * Make the verifier forget what it knows of a number, by adding a zero that it cannot see.
 * Without this it follows every combination of protocol, address form and identity through the
 * rule look-up, and gives up at a million steps.
 */
static __always_inline __u32 forget(const struct lic_control *ctl, __u32 value)
{
	return value + *(const volatile __u32 *)&ctl->zero;
}

/* Tell the verifier that an index is within a power of two; the compiler would drop a plain mask
 * that it has proved to change nothing. */
#define LIC_BOUND(index, mask) asm volatile("%0 &= %1" : "+r"(index) : "i"(mask))

static __always_inline __u32 policy_flags(const struct lic_control *ctl)
{
	return ctl->generation >> 32;
}

static __always_inline struct lic_policy *get_policy(__u32 generation)
{
	__u32 slot = generation & 1;

	return bpf_map_lookup_elem(MAP(policies), &slot);
}

/* Numbers of the selectors that an executable answers to; 0: none. `process` may be null. */
static __always_inline __u32 known_path(const struct lic_process *process)
{
	return process && process->path.exec_id == (__u32)process->exec_ns ? process->path.number
									   : 0;
}

static __always_inline __u32 known_digest(const struct lic_process *process)
{
	return process && process->digest.exec_id == (__u32)process->exec_ns
		       ? process->digest.number
		       : 0;
}

static __always_inline void note_fault(__u32 fault)
{
	__u64 *count = bpf_map_lookup_elem(MAP(faults), &fault);

	if (count)
		__sync_fetch_and_add(count, 1);
}

/* The protocol as the policy knows it (enum lic_protocol). */
static __always_inline __u8 fold_protocol(__u32 protocol)
{
	switch (protocol) {
	case LIC_IPPROTO_TCP:
	case LIC_IPPROTO_MPTCP:
		return LIC_PROTO_TCP;
	case LIC_IPPROTO_UDP:
	case LIC_IPPROTO_UDPLITE:
		return LIC_PROTO_UDP;
	case LIC_IPPROTO_ICMP:
	case LIC_IPPROTO_ICMPV6:
		return LIC_PROTO_ICMP;
	case LIC_IPPROTO_SCTP:
		return LIC_PROTO_SCTP;
	default:
		return LIC_PROTO_OTHER;
	}
}

#endif /* LICAGENT_CORE_H */
