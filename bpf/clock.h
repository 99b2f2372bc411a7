/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * CLOCK_BOOTTIME for the packet path.
 *
 * A license must also end while the machine sleeps, so deadlines are CLOCK_BOOTTIME. Reading it
 * costs about 20 ns, which two hooks a packet would pay; the coarse monotonic clock costs 4 ns but
 * stands still in suspend. So: coarse clock + an offset that is compared with the real clock
 * every 10 ms at the most. The answer is at most one tick (4 ms at HZ=250) late, and within 10 ms
 * of a resume at most as old as the suspend began.
 */
#ifndef LICAGENT_CLOCK_H
#define LICAGENT_CLOCK_H

#include "core.h"

#define LIC_CLOCK_REFRESH_NS 10000000ULL

static __always_inline __u64 now_ns(void)
{
#ifdef LICAGENT_NO_COARSE_CLOCK /* iterators; under bcc kernels before 5.11 */
	return bpf_ktime_get_boot_ns();
#else
	__u32 zero = 0;
	struct lic_clock *clk;
	__u64 coarse;

#ifndef LICAGENT_BCC
	if (LINUX_KERNEL_VERSION < LIC_KERNEL(5, 11)) /* commit d05512618056 */
		return bpf_ktime_get_boot_ns();
#endif
	clk = bpf_map_lookup_elem(MAP(clock), &zero);
	coarse = bpf_ktime_get_coarse_ns();
	if (!clk)
		return bpf_ktime_get_boot_ns();
	if (unlikely(coarse - clk->refreshed_ns > LIC_CLOCK_REFRESH_NS)) {
		__u64 boot = bpf_ktime_get_boot_ns();

		/* Two CPUs may both do this: each stores a right answer. */
		clk->offset_ns = boot - coarse;
		clk->refreshed_ns = coarse;
		return boot;
	}
	return coarse + clk->offset_ns;
#endif
}

#endif /* LICAGENT_CLOCK_H */
