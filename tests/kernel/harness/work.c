// SPDX-License-Identifier: Apache-2.0
/*
 * Work whose amount is known: CPU time in processes and threads of every kind of life.
 *
 *   within CGROUP REPORT COMMAND...  run COMMAND in CGROUP from its first instruction on; REPORT
 *                                    gets what wait4 says: "status microseconds read written"
 *   burn NS                          use the CPU for NS of this thread's own time
 *   burn-for MS                      use the CPU until MS of wall-clock time have passed
 *   storm COUNT NS ABREAST           COUNT children that burn NS each, ABREAST at a time
 *   threads COUNT NS ABREAST         the same by threads; the leader sleeps
 *   leader NS                        the leader ends at once, a thread goes on and burns NS
 *   exec-by-thread NS COMMAND...     leader and a thread burn NS each, then the thread executes
 *   user UID NS                      burn NS, become UID, burn NS
 *   reuse NS TIMES                   TIMES children one after the other under one process id
 *   orphan NS                        a grandchild that nobody here waits for burns NS
 *   unreaped NS                      a child burns NS and stays a zombie until the next line
 *   ignored COUNT NS                 children that the kernel reaps (SIGCHLD ignored)
 *   killed NS                        a child that is killed after NS in the middle of its work
 *   hold BYTES                       resident memory, a little work; ends at end of input
 *   spawn COUNT COMMAND...           posix_spawn (vfork), one after the other
 *
 * Commands that burn beside others print the CPU time that their own clocks saw, one line.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	_exit(125);
}

static int64_t clock_ns(clockid_t which)
{
	struct timespec now;

	clock_gettime(which, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void burn(int64_t ns)
{
	int64_t end = clock_ns(CLOCK_THREAD_CPUTIME_ID) + ns;
	volatile unsigned int sum = 0;

	/* The clock costs a system call: most of the time is spent in user mode. */
	while (clock_ns(CLOCK_THREAD_CPUTIME_ID) < end)
		for (int i = 0; i < 2000; i++)
			sum += i;
}

/* A burning child whose exit the caller reaps. */
static pid_t child(int64_t ns)
{
	pid_t pid = fork();

	if (pid < 0)
		fail("fork");
	if (!pid) {
		burn(ns);
		_exit(0);
	}
	return pid;
}

static int within(char **argv)
{
	int cgroup = open(argv[0], O_RDONLY | O_DIRECTORY | O_CLOEXEC), status;
	struct clone_args how = {
		.flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = cgroup
	};
	struct rusage use;
	FILE *report;
	pid_t pid;

	if (cgroup < 0)
		fail(argv[0]);
	pid = syscall(SYS_clone3, &how, sizeof(how));
	if (pid < 0)
		fail("clone3");
	if (!pid) {
		execvp(argv[2], argv + 2);
		fail(argv[2]);
	}
	if (wait4(pid, &status, 0, &use) != pid)
		fail("wait4");
	report = fopen(argv[1], "w");
	if (!report)
		fail(argv[1]);
	fprintf(report, "%d %lld %ld %ld\n",
		WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
		(use.ru_utime.tv_sec + use.ru_stime.tv_sec) * 1000000LL + use.ru_utime.tv_usec +
			use.ru_stime.tv_usec,
		use.ru_inblock * 512, use.ru_oublock * 512);
	return fclose(report);
}

static int storm(long count, int64_t ns, long abreast)
{
	long running = 0;

	for (long i = 0; i < count; i++) {
		if (running == abreast && wait(NULL) > 0)
			running--;
		child(ns);
		running++;
	}
	while (wait(NULL) > 0)
		;
	return 0;
}

static void *burner(void *ns)
{
	burn(*(int64_t *)ns);
	return NULL;
}

static int threads(long count, int64_t ns, long abreast)
{
	pthread_t handles[64];

	if (abreast > 64)
		return 2;
	for (long done = 0; done < count; done += abreast) {
		for (long i = 0; i < abreast; i++)
			if ((errno = pthread_create(&handles[i], NULL, burner, &ns)))
				fail("pthread_create");
		for (long i = 0; i < abreast; i++)
			pthread_join(handles[i], NULL);
	}
	return 0;
}

static void *survivor(void *ns)
{
	burn(*(int64_t *)ns);
	printf("%lld\n", (long long)clock_ns(CLOCK_PROCESS_CPUTIME_ID));
	exit(0);
}

static int leader(int64_t ns)
{
	static int64_t wanted;
	pthread_t handle;

	wanted = ns;
	if ((errno = pthread_create(&handle, NULL, survivor, &wanted)))
		fail("pthread_create");
	syscall(SYS_exit, 0); /* this thread only */
	return 1;
}

struct execution {
	int64_t ns;
	char **argv;
};

static void *executor(void *data)
{
	struct execution *what = data;

	burn(what->ns);
	execvp(what->argv[0], what->argv);
	fail(what->argv[0]);
	return NULL;
}

static int exec_by_thread(int64_t ns, char **argv)
{
	struct execution what = { ns, argv };
	pthread_t handle;

	burn(ns);
	if ((errno = pthread_create(&handle, NULL, executor, &what)))
		fail("pthread_create");
	pause();
	return 1;
}

static int become(uid_t uid, int64_t ns)
{
	burn(ns);
	if (setresgid(uid, uid, uid) || setresuid(uid, uid, uid))
		fail("setresuid");
	burn(ns);
	return 0;
}

static int reuse(int64_t ns, long times)
{
	pid_t wanted = fork(), made;

	if (!wanted)
		_exit(0);
	waitpid(wanted, NULL, 0);
	for (long i = 0; i < times; i++) {
		struct clone_args how = {
			.exit_signal = SIGCHLD, .set_tid = (uintptr_t)&wanted, .set_tid_size = 1
		};

		made = syscall(SYS_clone3, &how, sizeof(how));
		if (made < 0)
			fail("clone3");
		if (!made) {
			char name[32];

			snprintf(name, sizeof(name), "life-%ld", i);
			prctl(PR_SET_NAME, name);
			burn(ns);
			_exit(0);
		}
		if (waitpid(made, NULL, 0) != wanted)
			fail("waitpid");
	}
	printf("%d\n", wanted);
	return 0;
}

static int orphan(int64_t ns)
{
	pid_t pid = fork();

	if (!pid) {
		pid = fork();
		if (!pid) {
			burn(ns);
			printf("%lld\n", (long long)clock_ns(CLOCK_PROCESS_CPUTIME_ID));
			fflush(stdout);
		}
		_exit(0);
	}
	waitpid(pid, NULL, 0);
	return 0;
}

static int unreaped(int64_t ns)
{
	siginfo_t info;
	char byte;

	child(ns);
	waitid(P_ALL, 0, &info, WEXITED | WNOWAIT);
	puts("ended");
	fflush(stdout);
	return read(0, &byte, 1) < 0;
}

static int killed(int64_t ns)
{
	pid_t pid = child(ns * 1000);

	usleep(ns / 1000);
	kill(pid, SIGKILL);
	return waitpid(pid, NULL, 0) != pid;
}

static int ignored(long count, int64_t ns)
{
	signal(SIGCHLD, SIG_IGN);
	for (long i = 0; i < count; i++)
		child(ns);
	while (wait(NULL) > 0 || errno != ECHILD)
		;
	return 0;
}

static int hold(size_t size)
{
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct pollfd input = { .events = POLLIN };

	if (memory == MAP_FAILED)
		fail("mmap");
	memset(memory, 1, size);
	puts("held");
	fflush(stdout);
	while (!poll(&input, 1, 5)) /* never idle, never busy */
		burn(10000);
	return 0;
}

static int spawn(long count, char **argv)
{
	for (long i = 0; i < count; i++) {
		pid_t pid;

		errno = posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ);
		if (errno)
			fail(argv[0]);
		waitpid(pid, NULL, 0);
	}
	return 0;
}

static int burn_for(long ms)
{
	int64_t end = clock_ns(CLOCK_MONOTONIC) + ms * 1000000LL;

	while (clock_ns(CLOCK_MONOTONIC) < end)
		burn(1000000);
	printf("%lld\n", (long long)clock_ns(CLOCK_PROCESS_CPUTIME_ID));
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	int64_t first = argc > 2 ? atoll(argv[2]) : 0, second = argc > 3 ? atoll(argv[3]) : 0;

	if (!strcmp(what, "within") && argc > 4)
		return within(argv + 2);
	if (!strcmp(what, "burn") && argc == 3)
		return burn(first), 0;
	if (!strcmp(what, "burn-for") && argc == 3)
		return burn_for(first);
	if (!strcmp(what, "storm") && argc == 5)
		return storm(first, second, atol(argv[4]));
	if (!strcmp(what, "threads") && argc == 5)
		return threads(first, second, atol(argv[4]));
	if (!strcmp(what, "leader") && argc == 3)
		return leader(first);
	if (!strcmp(what, "exec-by-thread") && argc > 3)
		return exec_by_thread(first, argv + 3);
	if (!strcmp(what, "user") && argc == 4)
		return become(first, second);
	if (!strcmp(what, "reuse") && argc == 4)
		return reuse(first, second);
	if (!strcmp(what, "orphan") && argc == 3)
		return orphan(first);
	if (!strcmp(what, "unreaped") && argc == 3)
		return unreaped(first);
	if (!strcmp(what, "killed") && argc == 3)
		return killed(first);
	if (!strcmp(what, "ignored") && argc == 4)
		return ignored(first, second);
	if (!strcmp(what, "hold") && argc == 3)
		return hold(first);
	if (!strcmp(what, "spawn") && argc > 3)
		return spawn(first, argv + 3);
	fprintf(stderr, "unknown work: %s\n", what);
	return 2;
}
