/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the kernel programs and the daemon agree on: numbers and struct layouts, by subject in
 * layout/.
 *
 * Python mirrors these structs (agent/licagent/kernel/layout.py has them all), and a test compares
 * both with the BTF of the built objects.
 */
#ifndef LICAGENT_H
#define LICAGENT_H

#include "layout/events.h"
#include "layout/guard.h"
#include "layout/identity.h"
#include "layout/numbers.h"
#include "layout/policy.h"
#include "layout/sockets.h"
#include "layout/usage.h"

#define LIC_SCHEMA 3 /* of all pinned maps; a daemon with another number migrates them */

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
	/* The daemon's memory of the wall clock, from one run to the next: licagent.kernel.control.
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

#endif /* LICAGENT_H */
