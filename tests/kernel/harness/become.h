// SPDX-License-Identifier: Apache-2.0
/*
 * Anybody may say what /proc/PID/exe is once nothing of the old file is mapped, in a user namespace
 * of their own (prctl(2), PR_SET_MM_MAP).
 */
#pragma once
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/prctl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

static struct {
	unsigned long from, to;
	int protection;
} parts[32];

static int is_apart;

static int become(const char *other)
{
	char line[512], me[256], stat[2048], *word;
	unsigned long long fields[60] = { 0 };
	int count = 0, at = 3, file = open(other, O_RDONLY);
	long length = readlink("/proc/self/exe", me, sizeof(me) - 1);
	FILE *maps;

	if (!is_apart && unshare(CLONE_NEWUSER))
		return errno;
	is_apart = 1;
	me[length] = 0;
	maps = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof(line), maps)) {
		unsigned long from, to;
		char may[8];

		if (!strstr(line, me) || sscanf(line, "%lx-%lx %7s", &from, &to, may) != 3)
			continue;
		parts[count].from = from;
		parts[count].to = to;
		parts[count++].protection =
			(may[0] == 'r') | (may[1] == 'w') * 2 | (may[2] == 'x') * 4;
	}
	fclose(maps);
	for (int i = 0; i < count; i++) {
		size_t size = parts[i].to - parts[i].from;
		void *copy = mmap(0, size, 7, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		memcpy(copy, (void *)parts[i].from, size);
		mprotect(copy, size, parts[i].protection ? parts[i].protection : 1);
		if (mremap(copy, size, size, MREMAP_MAYMOVE | MREMAP_FIXED,
			   (void *)parts[i].from) == MAP_FAILED)
			return errno;
	}
	length = read(open("/proc/self/stat", O_RDONLY), stat, sizeof(stat) - 1);
	stat[length] = 0;
	for (word = strtok(strrchr(stat, ')') + 2, " "); word && at < 60; word = strtok(0, " "))
		fields[at++] = strtoull(word, 0, 10);
	struct prctl_mm_map map = {
		.start_code = fields[26],
		.end_code = fields[27],
		.start_data = fields[45],
		.end_data = fields[46],
		.start_brk = fields[47],
		.brk = (unsigned long)sbrk(0),
		.start_stack = fields[28],
		.arg_start = fields[48],
		.arg_end = fields[49],
		.env_start = fields[50],
		.env_end = fields[51],
		.exe_fd = file,
	};
	return prctl(PR_SET_MM, PR_SET_MM_MAP, &map, sizeof(map), 0) ? errno : 0;
}
