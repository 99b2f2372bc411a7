// SPDX-License-Identifier: Apache-2.0
/* The probe's command line and its interleaved rounds: A B C, C B A, A B C, ... */
#define _GNU_SOURCE
#include "probe.h"
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

static const char usage[] =
	"usage: probe COMMAND [--cgroup-a DIR --cgroup-b DIR [--cgroup-c DIR]] [options]\n"
	"commands: tcp-connect tcp-rtt tcp-stream udp-sendto udp-send udp-mapped udp-connect udp-new\n"
	"          spawn (fork + exec + exit of /bin/true)\n"
	"          live (last byte of many sockets)   rate (steady new connections)\n"
	"  --variant NAME,cgroup=DIR,netns=FILE|host,addr=A,port=P   as often as needed\n"
	"  --addr A --port P      destination (127.0.0.2, 18080; the probe serves it itself)\n"
	"  --netns FILE|host      default: a namespace of the probe's own\n"
	"  --server-cgroup DIR    where the server's sockets are made (default: where you are)\n"
	"  --uid N                user of the client\n"
	"  --rounds N --batches N --ops N   N rounds, each the median of N batches of N operations\n"
	"  --limit S              no more rounds after S seconds, once there are 20\n"
	"  --remote               server in a process on --server-cpu (1); default: inline\n"
	"  --rtt spin|block       how remote tcp-rtt waits\n"
	"  --rst                  tcp-connect closes with RST\n"
	"  --sockets N --pace-us N --direction up|down   for live\n"
	"  --rate N --seconds S   for rate; --fork: each connection from a new process\n"
	"  --json\n";

static struct variant *add(struct options *o, const char *name)
{
	struct variant *v = &o->variants[o->count];

	if (o->count++ == MAX_VARIANTS) {
		fprintf(stderr, "probe: at most %d variants\n", MAX_VARIANTS);
		exit(2);
	}
	snprintf(v->name, sizeof(v->name), "%s", name);
	return v;
}

static void parse_variant(struct options *o, char *text)
{
	struct variant *v = add(o, strsep(&text, ","));
	char *part;

	while ((part = strsep(&text, ","))) {
		char *value = strchr(part, '=');

		if (value)
			*value++ = 0;
		if (value && !strcmp(part, "cgroup"))
			v->cgroup = value;
		else if (value && !strcmp(part, "netns"))
			v->netns = value;
		else if (value && !strcmp(part, "addr"))
			v->address = value;
		else if (value && !strcmp(part, "port"))
			v->port = atoi(value);
		else {
			fprintf(stderr, "probe: unknown part of a variant: %s\n", part);
			exit(2);
		}
	}
}

static void parse(struct options *o, int argc, char **argv)
{
	enum { VARIANT = 256, ADDR, PORT, NETNS, SERVER_CGROUP, UID, ROUNDS, BATCHES, OPS, REMOTE,
	       RTT, RST, SOCKETS, PACE, DIRECTION, RATE, SECONDS, LIMIT, FORK, JSON, CPU, SERVER_CPU };
	static const struct option known[] = {
		{"cgroup-a", 1, 0, 'a'}, {"cgroup-b", 1, 0, 'b'}, {"cgroup-c", 1, 0, 'c'},
		{"variant", 1, 0, VARIANT}, {"addr", 1, 0, ADDR}, {"port", 1, 0, PORT},
		{"netns", 1, 0, NETNS}, {"server-cgroup", 1, 0, SERVER_CGROUP}, {"uid", 1, 0, UID},
		{"rounds", 1, 0, ROUNDS}, {"batches", 1, 0, BATCHES}, {"ops", 1, 0, OPS},
		{"remote", 0, 0, REMOTE}, {"rtt", 1, 0, RTT}, {"rst", 0, 0, RST},
		{"sockets", 1, 0, SOCKETS}, {"pace-us", 1, 0, PACE}, {"direction", 1, 0, DIRECTION},
		{"rate", 1, 0, RATE}, {"seconds", 1, 0, SECONDS}, {"fork", 0, 0, FORK}, {"limit", 1, 0, LIMIT},
		{"json", 0, 0, JSON},
		{"cpu", 1, 0, CPU}, {"server-cpu", 1, 0, SERVER_CPU}, {0}};
	int key;

	while ((key = getopt_long(argc, argv, "", known, NULL)) != -1) {
		switch (key) {
		case 'a': case 'b': case 'c':
			add(o, key == 'a' ? "A" : key == 'b' ? "B" : "C")->cgroup = optarg;
			break;
		case VARIANT: parse_variant(o, optarg); break;
		case ADDR: o->address = optarg; break;
		case PORT: o->port = atoi(optarg); break;
		case NETNS: o->netns = optarg; break;
		case SERVER_CGROUP: o->server_cgroup = optarg; break;
		case UID: o->uid = atoi(optarg); break;
		case ROUNDS: o->rounds = atoi(optarg); break;
		case BATCHES: o->batches = atoi(optarg); break;
		case OPS: o->ops = atoi(optarg); break;
		case REMOTE: o->remote = true; break;
		case RTT: o->rtt = optarg; break;
		case RST: o->rst = true; break;
		case SOCKETS: o->sockets = atoi(optarg); break;
		case PACE: o->pace_us = atoi(optarg); break;
		case DIRECTION: o->direction = optarg; break;
		case RATE: o->rate = atoi(optarg); break;
		case SECONDS: o->seconds = atof(optarg); break;
		case LIMIT: o->limit = atof(optarg); break;
		case FORK: o->fork = true; break;
		case JSON: o->json = true; break;
		case CPU: o->client_cpu = atoi(optarg); break;
		case SERVER_CPU: o->server_cpu = atoi(optarg); break;
		default: fputs(usage, stderr); exit(2);
		}
	}
	if (optind + 1 != argc) {
		fputs(usage, stderr);
		exit(2);
	}
	o->command = argv[optind];
}

int main(int argc, char **argv)
{
	struct options o = {.address = "127.0.0.2", .port = DEFAULT_PORT, .rounds = 200,
			    .batches = 0, .ops = 0, .server_cpu = 1, .rtt = "spin", .sockets = 1000,
			    .pace_us = 5000, .direction = "up", .rate = 1000, .seconds = 10};
	struct rlimit files = {.rlim_cur = 65536, .rlim_max = 65536};
	batch_fn run;
	uint64_t start;

	parse(&o, argc, argv);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGCHLD, SIG_DFL);
	setrlimit(RLIMIT_NOFILE, &files);
	if (!o.count)
		add(&o, "here");
	for (int i = 0; i < o.count; i++) {
		struct variant *v = &o.variants[i];

		v->address = v->address ? v->address : o.address;
		v->port = v->port ? v->port : o.port;
		v->netns = v->netns ? v->netns : o.netns;
		v->ns = calloc(o.rounds, sizeof(double));
	}
	if (!o.ops)
		o.ops = !strcmp(o.command, "tcp-stream") ? 16384 : !strcmp(o.command, "tcp-connect") ? 4 :
			!strcmp(o.command, "spawn") ? 1 : 64;
	if (!o.batches)
		o.batches = !strcmp(o.command, "tcp-stream") ? 8 : !strcmp(o.command, "tcp-connect") ? 32 : 16;
	pin(o.client_cpu);
	places_open(&o);
	if (!strcmp(o.command, "live"))
		return live_main(&o);
	if (!strcmp(o.command, "rate"))
		return rate_main(&o);
	run = latency_find(o.command);
	if (!run) {
		fputs(usage, stderr);
		return 2;
	}
	latency_servers(&o);
	start = now_ns();
	for (int round = -1; round < o.rounds; round++) { /* the first is thrown away */
		if (o.limit && round >= MIN_ROUNDS && now_ns() - start > o.limit * 1e9)
			o.rounds = round;
		if (round >= o.rounds)
			break;
		for (int i = 0; i < o.count; i++) {
			struct variant *v = &o.variants[round & 1 ? o.count - 1 - i : i];
			double ns;

			place_enter(&o, v);
			ns = run(&o, v);
			place_leave(&o);
			if (round >= 0)
				v->ns[round] = ns;
		}
	}
	report(&o);
	return 0;
}
