// SPDX-License-Identifier: Apache-2.0
/* The short operations. Each returns the nanoseconds of one operation: the median of several
 * batches, so that a timer tick or a stolen slice spoils a batch and not the result.
 *
 * Inline (the default): the client and the server's sockets are in one thread on one CPU. Loopback
 * delivers within send(2), so nothing sleeps, no other CPU is woken, and the noise is least.
 * Remote: the server is a process on a CPU of its own, as in the field; wake-ups are part of it.
 */
#define _GNU_SOURCE
#include "probe.h"
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_BATCH 4096

static int client_socket(struct variant *v, int type)
{
	int fd = socket(v->to.ss_family, type | SOCK_CLOEXEC, 0);

	if (fd < 0)
		die("socket in variant", v->name);
	return fd;
}

static void connect_to(struct variant *v, int fd)
{
	if (connect(fd, (void *)&v->to, v->to_len))
		die("connect in variant", v->name);
}

static void no_delay(int fd)
{
	int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

static double result(double *batches, int n)
{
	return median(batches, n);
}

/* ---- TCP connect + close ---------------------------------------------------------------- */
static void accept_and_close(struct variant *v, int n)
{
	for (int i = 0; i < n; i++) {
		int fd = accept(v->listener, NULL, NULL);

		if (fd < 0)
			die("accept in variant", v->name);
		close(fd);
	}
}

static double tcp_connect(struct options *o, struct variant *v)
{
	struct linger hard = {.l_onoff = 1};
	double batches[o->batches];

	for (int b = 0; b < o->batches; b++) {
		uint64_t start = now_ns();

		for (int i = 0; i < o->ops; i++) {
			int fd = client_socket(v, SOCK_STREAM);

			if (o->rst)
				setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
			connect_to(v, fd);
			close(fd);
		}
		batches[b] = (double)(now_ns() - start) / o->ops;
		if (!o->remote)
			accept_and_close(v, o->ops);
	}
	return result(batches, o->batches);
}

/* ---- TCP round trip of one byte ----------------------------------------------------------- */
static inline void wait_readable(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	while (poll(&p, 1, 0) == 0)
		;
}

static double tcp_rtt(struct options *o, struct variant *v)
{
	double batches[o->batches];
	int client = client_socket(v, SOCK_STREAM), server = -1;
	bool spin = o->remote && !strcmp(o->rtt, "spin");
	char byte = 1;

	connect_to(v, client);
	no_delay(client);
	if (!o->remote) {
		server = accept(v->listener, NULL, NULL);
		no_delay(server);
	}
	for (int b = -1; b < o->batches; b++) { /* the first warms up */
		uint64_t start = now_ns();

		for (int i = 0; i < o->ops; i++) {
			if (send(client, &byte, 1, 0) != 1)
				die("send in variant", v->name);
			if (server >= 0 && (recv(server, &byte, 1, 0) != 1 ||
					    send(server, &byte, 1, 0) != 1))
				die("echo in variant", v->name);
			if (spin)
				wait_readable(client);
			if (recv(client, &byte, 1, 0) != 1)
				die("recv in variant", v->name);
		}
		if (b >= 0)
			batches[b] = (double)(now_ns() - start) / o->ops;
	}
	close(client);
	if (server >= 0)
		close(server);
	return result(batches, o->batches);
}

/* ---- UDP ---------------------------------------------------------------------------------- */
static void drain(struct variant *v, int expected)
{
	char data[256];
	int got = 0;

	while (recv(v->receiver, data, sizeof(data), 0) > 0)
		got++;
	if (got < expected) {
		fprintf(stderr, "probe: variant %s: %d of %d datagrams arrived\n", v->name, got,
			expected);
		exit(1);
	}
}

static double udp(struct options *o, struct variant *v, bool connected, int family)
{
	double batches[o->batches];
	struct sockaddr_in6 mapped = {.sin6_family = AF_INET6};
	const void *to = &v->to;
	socklen_t to_len = v->to_len;
	char data[64] = {1};
	int fd;

	if (family == AF_INET6 && v->to.ss_family == AF_INET) { /* ::ffff:a.b.c.d on a v6 socket */
		const struct sockaddr_in *in4 = (void *)&v->to;

		mapped.sin6_port = in4->sin_port;
		mapped.sin6_addr.s6_addr[10] = mapped.sin6_addr.s6_addr[11] = 0xff;
		memcpy(&mapped.sin6_addr.s6_addr[12], &in4->sin_addr, 4);
		to = &mapped;
		to_len = sizeof(mapped);
	}
	fd = socket(((const struct sockaddr *)to)->sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (connected) {
		if (connect(fd, to, to_len))
			die("connect in variant", v->name);
		to = NULL;
		to_len = 0;
	}
	for (int b = -1; b < o->batches; b++) {
		uint64_t start = now_ns();

		for (int i = 0; i < o->ops; i++)
			if (sendto(fd, data, sizeof(data), 0, to, to_len) != sizeof(data))
				die("sendto in variant", v->name);
		if (b >= 0)
			batches[b] = (double)(now_ns() - start) / o->ops;
		drain(v, o->ops);
	}
	close(fd);
	return result(batches, o->batches);
}

static double udp_sendto(struct options *o, struct variant *v)
{
	return udp(o, v, false, 0);
}

static double udp_send(struct options *o, struct variant *v)
{
	return udp(o, v, true, 0);
}

static double udp_mapped(struct options *o, struct variant *v)
{
	return udp(o, v, false, AF_INET6);
}

/* connect(2) again and again on one UDP socket. */
static double udp_connect(struct options *o, struct variant *v)
{
	double batches[o->batches];
	int fd = client_socket(v, SOCK_DGRAM);

	for (int b = -1; b < o->batches; b++) {
		uint64_t start = now_ns();

		for (int i = 0; i < o->ops; i++)
			connect_to(v, fd);
		if (b >= 0)
			batches[b] = (double)(now_ns() - start) / o->ops;
	}
	close(fd);
	return result(batches, o->batches);
}

/* socket + connect + close of a UDP socket: what a resolver does. */
static double udp_new(struct options *o, struct variant *v)
{
	double batches[o->batches];

	for (int b = 0; b < o->batches; b++) {
		uint64_t start = now_ns();

		for (int i = 0; i < o->ops; i++) {
			int fd = client_socket(v, SOCK_DGRAM);

			connect_to(v, fd);
			close(fd);
		}
		batches[b] = (double)(now_ns() - start) / o->ops;
	}
	return result(batches, o->batches);
}

/* ---- servers of the remote mode ------------------------------------------------------------ */
static void accept_loop(struct options *o, struct variant *v)
{
	char data[64];

	(void)o;
	for (;;) {
		int fd = accept(v->listener, NULL, NULL);

		while (fd >= 0 && read(fd, data, sizeof(data)) > 0)
			;
		close(fd);
	}
}

static void echo_loop(struct options *o, struct variant *v)
{
	bool spin = !strcmp(o->rtt, "spin");
	char byte;

	for (;;) {
		int fd = accept(v->listener, NULL, NULL);

		no_delay(fd);
		for (;;) {
			if (spin)
				wait_readable(fd);
			if (recv(fd, &byte, 1, 0) != 1 || send(fd, &byte, 1, 0) != 1)
				break;
		}
		close(fd);
	}
}

void latency_servers(struct options *o)
{
	bool rtt = !strcmp(o->command, "tcp-rtt");

	for (int i = 0; i < o->count && o->remote; i++) {
		bool shared = false;

		for (int j = 0; j < i; j++)
			shared |= o->variants[j].listener == o->variants[i].listener;
		if (!shared)
			server_process(o, rtt ? echo_loop : accept_loop, &o->variants[i]);
	}
}

/* ---- fork + exec + exit of /bin/true, until it is reaped ----------------------------------- */
/* CPU time of this process and of children that were reaped: what others do meanwhile is not in. */
static uint64_t used_ns(void)
{
	struct rusage children;
	struct timespec own;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &own);
	getrusage(RUSAGE_CHILDREN, &children);
	return (uint64_t)own.tv_sec * 1000000000ull + (uint64_t)own.tv_nsec +
	       (uint64_t)(children.ru_utime.tv_sec + children.ru_stime.tv_sec) * 1000000000ull +
	       (uint64_t)(children.ru_utime.tv_usec + children.ru_stime.tv_usec) * 1000ull;
}

static double spawn(struct options *o, struct variant *v)
{
	double ns[MAX_BATCH];
	int status;

	for (int batch = 0; batch < o->batches; batch++) {
		uint64_t start = used_ns();

		for (int i = 0; i < o->ops; i++) {
			pid_t pid = fork();

			if (!pid) {
				execl("/bin/true", "true", NULL);
				_exit(127);
			}
			if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
				die("cannot run /bin/true in variant", v->name);
		}
		ns[batch] = (double)(used_ns() - start) / o->ops;
	}
	return result(ns, o->batches);
}

static const struct {
	const char *name;
	batch_fn run;
} commands[] = {
	{"tcp-connect", tcp_connect}, {"tcp-rtt", tcp_rtt},	{"udp-sendto", udp_sendto},
	{"udp-send", udp_send},	      {"udp-mapped", udp_mapped}, {"udp-connect", udp_connect},
	{"udp-new", udp_new},	      {"tcp-stream", stream_batch},
	{"spawn", spawn},
};

batch_fn latency_find(const char *command)
{
	for (unsigned i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		if (!strcmp(commands[i].name, command))
			return commands[i].run;
	return NULL;
}
