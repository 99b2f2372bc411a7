// SPDX-License-Identifier: Apache-2.0
/* Moving the probe between cgroups, network namespaces and users.
 *
 * A socket keeps the cgroup and the namespace it was made in, so the server's sockets, made once
 * at the start, stay where they are when the client is moved from batch to batch.
 */
#define _GNU_SOURCE
#include "probe.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <signal.h>
#include <unistd.h>

static int current_cgroup = -1, current_netns = -1;
static int home_netns = -1;

void die(const char *what, const char *detail)
{
	fprintf(stderr, "probe: %s%s%s: %s\n", what, detail ? " " : "", detail ? detail : "",
		strerror(errno));
	exit(1);
}

void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("cannot pin to the CPU", NULL);
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		die("cannot write", path);
	close(fd);
}

/* A namespace of our own: lo up, no TIME_WAIT (or a long run ends up measuring port search). */
static void namespace_prepare(void)
{
	struct ifreq lo = {.ifr_flags = IFF_UP | IFF_LOOPBACK};
	int s = socket(AF_INET, SOCK_DGRAM, 0);

	strcpy(lo.ifr_name, "lo");
	if (s < 0 || ioctl(s, SIOCSIFFLAGS, &lo))
		die("cannot bring lo up", NULL);
	close(s);
	write_file("/proc/sys/net/ipv4/tcp_max_tw_buckets", "0");
	write_file("/proc/sys/net/core/somaxconn", "65535");
}

static int open_cgroup(const char *folder)
{
	char path[4096];
	int fd;

	snprintf(path, sizeof(path), "%s/cgroup.procs", folder);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		die("cannot open the cgroup", path);
	return fd;
}

static void enter_cgroup(int fd)
{
	if (fd >= 0 && fd != current_cgroup && write(fd, "0", 1) != 1)
		die("cannot enter the cgroup", NULL);
	if (fd >= 0)
		current_cgroup = fd;
}

static void enter_netns(int fd)
{
	if (fd != current_netns && setns(fd, CLONE_NEWNET))
		die("cannot enter the network namespace", NULL);
	current_netns = fd;
}

static void resolve(struct variant *v)
{
	struct sockaddr_in *in4 = (void *)&v->to;
	struct sockaddr_in6 *in6 = (void *)&v->to;

	if (inet_pton(AF_INET, v->address, &in4->sin_addr) == 1) {
		in4->sin_family = AF_INET;
		in4->sin_port = htons(v->port);
		v->to_len = sizeof(*in4);
	} else if (inet_pton(AF_INET6, v->address, &in6->sin6_addr) == 1) {
		in6->sin6_family = AF_INET6;
		in6->sin6_port = htons(v->port);
		v->to_len = sizeof(*in6);
	} else {
		errno = EINVAL;
		die("not an address:", v->address);
	}
}

static void make_servers(struct variant *v)
{
	int one = 1, size = 256 << 20;

	v->listener = socket(v->to.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	v->receiver = socket(v->to.ss_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	setsockopt(v->listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	setsockopt(v->receiver, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
	if (bind(v->listener, (void *)&v->to, v->to_len) || listen(v->listener, 65535))
		die("cannot listen on", v->address);
	if (bind(v->receiver, (void *)&v->to, v->to_len))
		die("cannot bind UDP on", v->address);
}

void places_open(struct options *o)
{
	int host = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), private_ns = -1;

	home_netns = current_netns = host;
	if (o->server_cgroup)
		enter_cgroup(open_cgroup(o->server_cgroup));
	for (int i = 0; i < o->count; i++) {
		struct variant *v = &o->variants[i];

		if (!v->netns) {
			if (private_ns < 0) {
				if (unshare(CLONE_NEWNET))
					die("cannot make a network namespace", NULL);
				namespace_prepare();
				private_ns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
				current_netns = private_ns;
			}
			v->netns_fd = private_ns;
		} else if (!strcmp(v->netns, "host")) {
			v->netns_fd = host;
		} else {
			v->netns_fd = -1;
			for (int j = 0; j < i; j++)
				if (o->variants[j].netns && !strcmp(o->variants[j].netns, v->netns))
					v->netns_fd = o->variants[j].netns_fd;
			if (v->netns_fd < 0)
				v->netns_fd = open(v->netns, O_RDONLY | O_CLOEXEC);
			if (v->netns_fd < 0)
				die("cannot open the namespace", v->netns);
		}
		enter_netns(v->netns_fd);
		resolve(v);
		v->listener = v->receiver = -1;
		for (int j = 0; j < i; j++) {
			struct variant *p = &o->variants[j];

			if (p->netns_fd == v->netns_fd && p->to_len == v->to_len &&
			    !memcmp(&p->to, &v->to, v->to_len))
				v->listener = p->listener, v->receiver = p->receiver;
		}
		if (v->listener < 0)
			make_servers(v);
	}
	for (int i = 0; i < o->count; i++) {
		struct variant *v = &o->variants[i];

		v->cgroup_fd = -1;
		for (int j = 0; v->cgroup && j < i; j++)
			if (o->variants[j].cgroup && !strcmp(o->variants[j].cgroup, v->cgroup))
				v->cgroup_fd = o->variants[j].cgroup_fd;
		if (v->cgroup && v->cgroup_fd < 0)
			v->cgroup_fd = open_cgroup(v->cgroup);
	}
}

void place_enter(const struct options *o, const struct variant *v)
{
	enter_cgroup(v->cgroup_fd);
	enter_netns(v->netns_fd);
	if (o->uid && setresuid(o->uid, o->uid, 0))
		die("cannot become the user", NULL);
}

void place_leave(const struct options *o)
{
	if (o->uid && setresuid(0, 0, 0))
		die("cannot become root again", NULL);
}

/* Forks a server that ends with the probe, on its own CPU, in the server's cgroup. */
int server_process(const struct options *o, void (*body)(struct options *, struct variant *),
		   struct variant *v)
{
	int pid = fork();

	if (pid < 0)
		die("cannot fork the server", NULL);
	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	pin(o->server_cpu);
	body((struct options *)o, v);
	_exit(0);
}
