// SPDX-License-Identifier: Apache-2.0
/* Shared parts of the bench probe: where an operation runs (place), what it costs (stats). */
#ifndef PROBE_H
#define PROBE_H
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <time.h>

#define MAX_VARIANTS 6
#define DEFAULT_PORT 18080
#define MIN_ROUNDS 20

/* One way of running the same operation: a cgroup, a network namespace and a destination. */
struct variant {
	char name[32];
	const char *cgroup;   /* folder of a cgroup v2 group; NULL: where the probe was started */
	const char *netns;    /* file of a namespace, "host", or NULL: the probe's private one */
	const char *address;
	int port;
	int cgroup_fd, netns_fd;
	int listener;         /* shared by variants with the same namespace and destination */
	int receiver;         /* UDP socket with a large buffer */
	struct sockaddr_storage to;
	socklen_t to_len;
	double *ns;           /* result of each round: nanoseconds per operation */
};

struct options {
	const char *command;
	struct variant variants[MAX_VARIANTS];
	int count;
	const char *address, *netns, *server_cgroup, *direction, *rtt;
	int port, rounds, ops, batches, client_cpu, server_cpu, uid, sockets, rate, pace_us;
	double seconds, limit;
	bool remote, json, rst, fork, same_process_uid;
};

static inline uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/* place.c */
void die(const char *what, const char *detail) __attribute__((noreturn));
void pin(int cpu);
void places_open(struct options *o);
void place_enter(const struct options *o, const struct variant *v);
void place_leave(const struct options *o);
int server_process(const struct options *o, void (*body)(struct options *, struct variant *),
		   struct variant *v);
void serve_tcp(struct variant *v, bool listen_now);

/* stats.c */
double median(double *values, int n);
void report(struct options *o);

/* latency.c, stream.c, live.c */
typedef double (*batch_fn)(struct options *, struct variant *);
batch_fn latency_find(const char *command);
void latency_servers(struct options *o);
double stream_batch(struct options *o, struct variant *v);
int live_main(struct options *o);
int rate_main(struct options *o);
#endif
