// SPDX-License-Identifier: Apache-2.0
/* live: many sockets that keep talking; the receiver notes when each one's last byte came.
 * rate: a steady number of new connections a second, by one process or each by a new one.
 *
 * live says READY on stdout once every socket has carried data for half a second, goes on until
 * its stdin ends, then prints for each socket the CLOCK_MONOTONIC time of its last received byte
 * and of the sender's first error (0: none).
 */
#define _GNU_SOURCE
#include "probe.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

struct shared {
	volatile int stop;
	struct {
		volatile uint64_t last_ns, error_ns, bytes;
	} at[];
};

static struct shared *shared;
static int *clients, *servers;

static void sleep_until(uint64_t deadline_ns)
{
	struct timespec t = {.tv_sec = deadline_ns / 1000000000ull,
			     .tv_nsec = deadline_ns % 1000000000ull};

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static void receive_all(const int *fds, int n)
{
	int poller = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event events[256];
	char data[65536];

	for (int i = 0; i < n; i++) {
		struct epoll_event e = {.events = EPOLLIN, .data.u32 = i};

		epoll_ctl(poller, EPOLL_CTL_ADD, fds[i], &e);
	}
	while (!shared->stop) {
		int ready = epoll_wait(poller, events, 256, 50);

		for (int k = 0; k < ready; k++) {
			int i = events[k].data.u32;
			ssize_t got = recv(fds[i], data, sizeof(data), MSG_DONTWAIT);

			if (got > 0) {
				shared->at[i].last_ns = now_ns();
				shared->at[i].bytes += got;
			} else if (got == 0 || errno != EAGAIN) {
				epoll_ctl(poller, EPOLL_CTL_DEL, fds[i], NULL);
			}
		}
	}
}

static void send_all(const int *fds, int n, int pace_us)
{
	uint64_t next = now_ns();
	char data[64] = {1};

	while (!shared->stop) {
		for (int i = 0; i < n; i++) {
			if (shared->at[i].error_ns)
				continue;
			if (send(fds[i], data, sizeof(data), MSG_DONTWAIT | MSG_NOSIGNAL) < 0 &&
			    errno != EAGAIN)
				shared->at[i].error_ns = now_ns();
		}
		next += pace_us * 1000ull;
		if (next > now_ns())
			sleep_until(next);
		else
			next = now_ns();
	}
}

int live_main(struct options *o)
{
	struct variant *v = &o->variants[0];
	bool down = !strcmp(o->direction, "down");
	int n = o->sockets, pid, carrying;
	char end[16];

	shared = mmap(NULL, sizeof(*shared) + n * sizeof(shared->at[0]), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	clients = calloc(n, sizeof(int));
	servers = calloc(n, sizeof(int));
	place_enter(o, v);
	for (int i = 0; i < n; i++) {
		clients[i] = socket(v->to.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (clients[i] < 0 || connect(clients[i], (void *)&v->to, v->to_len))
			die("connect in variant", v->name);
		servers[i] = accept(v->listener, NULL, NULL);
	}
	for (int role = 0; role < 2; role++) { /* 0: the licensed end, 1: the far end */
		const int *mine = role ? servers : clients, *theirs = role ? clients : servers;

		pid = fork();
		if (pid)
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pin(role ? o->server_cpu : o->client_cpu);
		for (int i = 0; i < n; i++)
			close(theirs[i]);
		if ((role == 0) == !down)
			send_all(mine, n, o->pace_us);
		else
			receive_all(mine, n);
		_exit(0);
	}
	for (int i = 0; i < n; i++) {
		close(clients[i]);
		close(servers[i]);
	}
	do {
		usleep(100000);
		carrying = 0;
		for (int i = 0; i < n; i++)
			carrying += shared->at[i].last_ns != 0;
	} while (carrying < n);
	usleep(500000);
	printf("READY\n");
	fflush(stdout);
	while (read(0, end, sizeof(end)) > 0)
		;
	shared->stop = 1;
	printf("{\"last_ns\":[");
	for (int i = 0; i < n; i++)
		printf("%s%llu", i ? "," : "", (unsigned long long)shared->at[i].last_ns);
	printf("],\"error_ns\":[");
	for (int i = 0; i < n; i++)
		printf("%s%llu", i ? "," : "", (unsigned long long)shared->at[i].error_ns);
	printf("]}\n");
	return 0;
}

/* 0 when a process made for it has connected. vfork: the cost is the daemon's, not fork's. */
static int connect_in_child(int fd, const struct variant *v)
{
	int status = 1, pid = vfork();

	if (!pid)
		_exit(connect(fd, (void *)&v->to, v->to_len) ? 1 : 0);
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		die("cannot run a process", NULL);
	return status;
}

int rate_main(struct options *o)
{
	struct variant *v = &o->variants[0];
	uint64_t start, interval = 1000000000ull / o->rate, next;
	long made = 0, failed = 0, total = (long)(o->rate * o->seconds);

	place_enter(o, v);
	start = next = now_ns();
	for (long i = 0; i < total; i++, next += interval) {
		int fd = socket(v->to.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

		if (next > now_ns())
			sleep_until(next);
		if (o->fork ? connect_in_child(fd, v) : connect(fd, (void *)&v->to, v->to_len)) {
			failed++;
		} else {
			made++;
			close(accept(v->listener, NULL, NULL));
		}
		close(fd);
	}
	printf("{\"connections\":%ld,\"failed\":%ld,\"seconds\":%.3f}\n", made, failed,
	       (double)(now_ns() - start) / 1e9);
	return 0;
}
