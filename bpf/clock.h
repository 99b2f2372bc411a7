/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * CLOCK_BOOTTIME for the packet path.
 *
 * A license must also end while the machine sleeps, so deadlines are CLOCK_BOOTTIME. Reading it
 * takes tens of nanoseconds, which two hooks a packet would pay; the tick counter is one load. So
 * the first program of each tick reads the clock for all others: the answer is at most one tick
 * late (4 ms at HZ=250), also after a suspend, through which the counter stands still.
 */
#ifndef LICAGENT_CLOCK_H
#define LICAGENT_CLOCK_H

#include "core.h"

static __always_inline __u64 now_ns(void)
{
	__u32 zero = 0;
	struct lic_clock *clk = bpf_map_lookup_elem(MAP(clock), &zero);
	__u64 now, tick = bpf_jiffies64();

	if (!clk)
		return bpf_ktime_get_boot_ns();
	if (likely(*(volatile __u64 *)&clk->jiffies == tick))
		return *(volatile __u64 *)&clk->now_ns;
	now = bpf_ktime_get_boot_ns();
	/* The time first: who sees the new tick must not see an old time. */
	*(volatile __u64 *)&clk->now_ns = now;
	*(volatile __u64 *)&clk->jiffies = tick;
	return now;
}

#endif /* LICAGENT_CLOCK_H */
