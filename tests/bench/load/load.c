// SPDX-License-Identifier: Apache-2.0
/* Load for the meter: processes that live, are born and die, burn CPU and send, and its reference.
 *
 * Every process but this one and the sink is made inside the measured cgroup (clone3 with
 * CLONE_INTO_CGROUP), and everything it used is known from outside of any meter: CPU from the
 * rusage of wait4 and, finer, from the process's own CPU clock while it is a zombie; bytes from
 * what the sink received. Lines on stdin: `births N RATE` starts N processes, RATE a second (0:
 * one after the other on each CPU); `sum` tells what ended so far; the end of stdin ends the rest.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/sched.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char usage[] =
	"usage: load --cgroup DIR [options]\n"
	"  --live N --wake-ms W --live-burn-us B   processes that stay; 0: they only sleep;\n"
	"                   of ten that wake one burns B microseconds, nine a tenth of it\n"
	"  --burn-us B      CPU time of each born process, its own start included\n"
	"  --name NAME      prefix of the processes' names: NAME-job, NAME-live\n"
	"  --job FILE       a born process executes this copy of the program; else only forks\n"
	"  --netns FILE --sink-netns FILE --to ADDRESS --port P\n"
	"  --send BYTES     that each process sends over TCP, a living one at each waking\n";

static struct {
	const char *cgroup, *netns, *sink_netns, *to, *job, *name;
	int live, wake_ms, live_burn_us, burn_us, send, port;
} o = { .to = "127.0.0.2", .port = 18080, .name = "licload" };

/* Written by all processes. */
static struct {
	uint64_t received, connections, failed_connects;
} * shared;

static struct {
	uint64_t ended, failed, rusage_us, clock_ns, born;
} total;

static int cgroup_fd = -1;
static struct sockaddr_in sink_address;

static void die(const char *what)
{
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t clock_ns(clockid_t id)
{
	struct timespec t;

	if (clock_gettime(id, &t))
		return 0;
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void burn_until(uint64_t ns)
{
	while (clock_ns(CLOCK_PROCESS_CPUTIME_ID) < ns)
		;
}

static void enter_netns(const char *file)
{
	int fd = open(file, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || setns(fd, CLONE_NEWNET))
		die(file);
	close(fd);
}

static int connected(void)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || connect(fd, (void *)&sink_address, sizeof(sink_address))) {
		if (shared)
			__atomic_add_fetch(&shared->failed_connects, 1, __ATOMIC_RELAXED);
		close(fd);
		return -1;
	}
	return fd;
}

static void send_bytes(int fd, int bytes)
{
	static char data[65536];

	while (bytes > 0) {
		ssize_t sent = send(fd, data, bytes < 65536 ? bytes : 65536, MSG_NOSIGNAL);

		if (sent <= 0)
			return;
		bytes -= sent;
	}
}

static void take_name(const char *what)
{
	char name[32];

	snprintf(name, sizeof(name), "%s-%s", o.name, what);
	prctl(PR_SET_NAME, name); /* the first 15 characters */
}

/* What a born process does. It ends when the sink has everything and has closed its end. */
static void job(int burn_us, int bytes)
{
	char rest[16];

	if (bytes) {
		int fd = connected();

		if (fd < 0)
			_exit(1);
		send_bytes(fd, bytes);
		shutdown(fd, SHUT_WR);
		while (read(fd, rest, sizeof(rest)) > 0)
			;
		close(fd);
	}
	burn_until(burn_us * 1000ull);
	_exit(0);
}

/* What a living process does until it is killed. */
static void stay(int number)
{
	struct timespec pause = { .tv_sec = o.wake_ms / 1000,
				  .tv_nsec = o.wake_ms % 1000 * 1000000l };
	/* As on most machines: a few do most of the work. */
	uint64_t burn_ns = (uint64_t)o.live_burn_us * (number % 10 ? 100 : 1000);
	int fd = o.send ? connected() : -1;

	if (!o.wake_ms)
		for (;;)
			sleep(3600);
	/* Spread over the period, so that they do not wake as one. */
	usleep((useconds_t)((uint64_t)number * 7919 % (uint64_t)o.wake_ms * 1000));
	for (;;) {
		if (fd >= 0)
			send_bytes(fd, o.send);
		burn_until(clock_ns(CLOCK_PROCESS_CPUTIME_ID) + burn_ns);
		nanosleep(&pause, NULL);
	}
}

/* fork() into the measured cgroup: what the child uses is in it from its first instruction. */
static pid_t born(void)
{
	struct clone_args args = { .flags = CLONE_INTO_CGROUP,
				   .exit_signal = SIGCHLD,
				   .cgroup = (uint64_t)cgroup_fd };
	pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof(args));

	if (pid < 0)
		die("clone3 into the cgroup");
	if (!pid)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	return pid;
}

static void sink(void)
{
	struct epoll_event event = { .events = EPOLLIN }, ready[256];
	int one = 1, poller = epoll_create1(EPOLL_CLOEXEC), listener;
	static char data[65536];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (o.sink_netns)
		enter_netns(o.sink_netns);
	listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (void *)&sink_address, sizeof(sink_address)) || listen(listener, 65535))
		die("cannot listen");
	event.data.fd = listener;
	epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
	__atomic_store_n(&shared->connections, 0, __ATOMIC_RELEASE);
	for (;;) {
		int n = epoll_wait(poller, ready, 256, -1);

		for (int i = 0; i < n; i++) {
			int fd = ready[i].data.fd;

			if (fd == listener) {
				while ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
					event.data.fd = fd;
					epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
					shared->connections++;
				}
				continue;
			}
			ssize_t got = recv(fd, data, sizeof(data), MSG_DONTWAIT);

			if (got > 0)
				shared->received += (uint64_t)got;
			else if (got == 0 || errno != EAGAIN)
				close(fd);
		}
	}
}

/* Reaps one process; false if none has ended (or none is left). */
static bool reap(bool wait)
{
	siginfo_t who = { 0 };
	struct rusage used;
	int status;

	if (waitid(P_ALL, 0, &who, WEXITED | WNOWAIT | (wait ? 0 : WNOHANG)) || !who.si_pid)
		return false;
	/* The CPU clock of a process by its id, see clock_getcpuclockid(3): the zombie's, in ns. */
	uint64_t ns = clock_ns((clockid_t)((~(unsigned int)who.si_pid << 3) | 2));

	if (wait4(who.si_pid, &status, 0, &used) != who.si_pid)
		die("wait4");
	total.clock_ns += ns;
	total.rusage_us += (uint64_t)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000ull +
			   (uint64_t)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
	total.ended++;
	total.failed += WIFEXITED(status) && WEXITSTATUS(status);
	return true;
}

static void births(long count, int rate)
{
	char burn[16], bytes[16], port[16];
	uint64_t next = clock_ns(CLOCK_MONOTONIC),
		 interval = rate ? 1000000000ull / (unsigned)rate : 0;
	long cpus = sysconf(_SC_NPROCESSORS_ONLN), running = 0;

	snprintf(burn, sizeof(burn), "%d", o.burn_us);
	snprintf(bytes, sizeof(bytes), "%d", o.send);
	snprintf(port, sizeof(port), "%d", o.port);
	for (long i = 0; i < count; i++, next += interval) {
		uint64_t now = clock_ns(CLOCK_MONOTONIC);

		if (interval && next > now) {
			struct timespec left = { .tv_nsec = (long)(next - now) };

			nanosleep(&left, NULL); /* an interval is less than a second */
		}
		pid_t pid = born();

		if (!pid) {
			if (o.job)
				execl(o.job, o.job, "--as-job", burn, bytes, o.to, port,
				      NULL);
			take_name("job");
			job(o.burn_us, o.send);
		}
		total.born++;
		running++;
		while (running && reap(!interval && running >= cpus))
			running--;
	}
	while (running && reap(true))
		running--;
}

static void tell(void)
{
	printf("{\"born\":%llu,\"ended\":%llu,\"failed\":%llu,\"rusage_us\":%llu,\"clock_ns\":%llu,"
	       "\"received\":%llu,\"connections\":%llu,\"failed_connects\":%llu}\n",
	       (unsigned long long)total.born, (unsigned long long)total.ended,
	       (unsigned long long)total.failed, (unsigned long long)total.rusage_us,
	       (unsigned long long)total.clock_ns, (unsigned long long)shared->received,
	       (unsigned long long)shared->connections,
	       (unsigned long long)shared->failed_connects);
	fflush(stdout);
}

static void parse(int argc, char **argv)
{
	enum { CGROUP = 256, NETNS, SINK_NETNS, TO, PORT, JOB, LIVE, WAKE, LIVE_BURN, BURN, SEND, NAME };
	static const struct option known[] = { { "cgroup", 1, 0, CGROUP },
					       { "netns", 1, 0, NETNS },
					       { "sink-netns", 1, 0, SINK_NETNS },
					       { "to", 1, 0, TO },
					       { "port", 1, 0, PORT },
					       { "job", 1, 0, JOB },
					       { "live", 1, 0, LIVE },
					       { "wake-ms", 1, 0, WAKE },
					       { "live-burn-us", 1, 0, LIVE_BURN },
					       { "burn-us", 1, 0, BURN },
					       { "send", 1, 0, SEND },
					       { "name", 1, 0, NAME },
					       { 0 } };
	int key;

	while ((key = getopt_long(argc, argv, "", known, NULL)) != -1) {
		switch (key) {
		case CGROUP:
			o.cgroup = optarg;
			break;
		case NAME:
			o.name = optarg;
			break;
		case NETNS:
			o.netns = optarg;
			break;
		case SINK_NETNS:
			o.sink_netns = optarg;
			break;
		case TO:
			o.to = optarg;
			break;
		case PORT:
			o.port = atoi(optarg);
			break;
		case JOB:
			o.job = optarg;
			break;
		case LIVE:
			o.live = atoi(optarg);
			break;
		case WAKE:
			o.wake_ms = atoi(optarg);
			break;
		case LIVE_BURN:
			o.live_burn_us = atoi(optarg);
			break;
		case BURN:
			o.burn_us = atoi(optarg);
			break;
		case SEND:
			o.send = atoi(optarg);
			break;
		default:
			fputs(usage, stderr);
			exit(2);
		}
	}
	if (!o.cgroup || optind != argc) {
		fputs(usage, stderr);
		exit(2);
	}
}

static void resolve(void)
{
	sink_address.sin_family = AF_INET;
	sink_address.sin_port = htons((uint16_t)o.port);
	if (inet_pton(AF_INET, o.to, &sink_address.sin_addr) != 1) {
		errno = EINVAL;
		die(o.to);
	}
}

int main(int argc, char **argv)
{
	struct rlimit files = { .rlim_cur = 65536, .rlim_max = 65536 };
	char line[128];
	pid_t *living;

	if (argc == 6 && !strcmp(argv[1], "--as-job")) {
		o.to = argv[4];
		o.port = atoi(argv[5]);
		resolve();
		job(atoi(argv[2]), atoi(argv[3]));
	}
	parse(argc, argv);
	resolve();
	setrlimit(RLIMIT_NOFILE, &files);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	living = calloc((size_t)o.live + 1, sizeof(*living));
	cgroup_fd = open(o.cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (cgroup_fd < 0 || shared == MAP_FAILED || !living)
		die(o.cgroup);
	if (o.send) {
		shared->connections = UINT64_MAX; /* until it listens */
		living[o.live] = fork();
		if (!living[o.live])
			sink();
		while (__atomic_load_n(&shared->connections, __ATOMIC_ACQUIRE) == UINT64_MAX) {
			if (waitpid(living[o.live], NULL, WNOHANG))
				return 1; /* it has said why */
			usleep(1000);
		}
	}
	if (o.netns)
		enter_netns(o.netns);
	for (int i = 0; i < o.live; i++) {
		living[i] = born();
		if (!living[i]) {
			take_name("live");
			stay(i);
		}
	}
	printf("READY\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		long count;
		int rate;

		if (sscanf(line, "births %ld %d", &count, &rate) == 2)
			births(count, rate);
		tell();
	}
	for (int i = 0; i < o.live; i++)
		kill(living[i], SIGKILL);
	for (int i = 0; i < o.live; i++)
		reap(true);
	tell();
	if (o.send)
		kill(living[o.live], SIGKILL);
	return 0;
}
