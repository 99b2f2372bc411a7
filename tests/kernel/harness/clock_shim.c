// SPDX-License-Identifier: Apache-2.0
/*
 * A library for LD_PRELOAD that turns one program's wall clock, for tests that may not set the
 * machine's. The file CLOCK_SHIM holds two numbers: seconds to add to CLOCK_REALTIME, and whether
 * adjtimex(2) calls the clock synchronised. It is read at every call. CLOCK_BOOTTIME and the
 * kernel's programs see the true time.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <time.h>
#include <unistd.h>

static void setting(long *offset_s, int *synchronised)
{
	const char *path = getenv("CLOCK_SHIM");
	FILE *file = path ? fopen(path, "re") : NULL;

	*offset_s = 0;
	*synchronised = 0;
	if (!file)
		return;
	if (fscanf(file, "%ld %d", offset_s, synchronised) != 2)
		abort();
	fclose(file);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	int synchronised, result = syscall(SYS_clock_gettime, clock, now);
	long offset_s;

	if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
		setting(&offset_s, &synchronised);
		now->tv_sec += offset_s;
	}
	return result;
}

time_t time(time_t *result)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if (result)
		*result = now.tv_sec;
	return now.tv_sec;
}

int adjtimex(struct timex *timex)
{
	long offset_s;
	int synchronised, result = syscall(SYS_adjtimex, timex);

	setting(&offset_s, &synchronised);
	if (result < 0)
		return result;
	timex->status &= ~STA_UNSYNC;
	if (!synchronised)
		timex->status |= STA_UNSYNC;
	return synchronised ? TIME_OK : TIME_ERROR;
}
