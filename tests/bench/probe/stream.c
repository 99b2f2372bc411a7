// SPDX-License-Identifier: Apache-2.0
/* Bulk TCP to a sink on the server's CPU: nanoseconds per KiB that the sink has taken. */
#define _GNU_SOURCE
#include "probe.h"
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHUNK (128 << 10)
static char chunk[CHUNK];

static void sink(struct options *o, struct variant *v)
{
	int fd = accept(v->listener, NULL, NULL);
	char ack = 1;

	(void)o;
	while (read(fd, chunk, sizeof(chunk)) > 0)
		;
	if (write(fd, &ack, 1) != 1)
		_exit(1);
	close(fd);
}

double stream_batch(struct options *o, struct variant *v)
{
	int server, fd = socket(v->to.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	long total = (long)o->ops * o->batches;
	uint64_t start;
	char ack;

	if (connect(fd, (void *)&v->to, v->to_len))
		die("connect in variant", v->name);
	server = server_process(o, sink, v);
	for (int i = 0; i < 16; i++) /* opens the window */
		if (write(fd, chunk, sizeof(chunk)) < 0)
			die("write in variant", v->name);
	start = now_ns();
	for (long sent = 0; sent < total;) {
		ssize_t n = write(fd, chunk, sizeof(chunk));

		if (n < 0)
			die("write in variant", v->name);
		sent += n >> 10;
	}
	shutdown(fd, SHUT_WR);
	if (read(fd, &ack, 1) != 1)
		die("no answer of the sink in variant", v->name);
	start = now_ns() - start;
	close(fd);
	waitpid(server, NULL, 0);
	return (double)start / total;
}
