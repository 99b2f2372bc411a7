// SPDX-License-Identifier: Apache-2.0
/*
 * dial: may this process connect? It says so each time it is asked, and can change what it is.
 *
 * connect(2) on a UDP socket sends nothing and needs no server, so the answer is the policy's.
 * Where to goes in the environment (DIAL_TO=127.0.0.1:9), so that the arguments are free.
 *
 *   dial           connect, and print the errno (0: allowed)
 *   fork           the same in a child process
 *   thread         the same in another thread
 *   exec PATH      become another program; prints the errno if that fails
 *   fexec PATH     the same by a descriptor (fexecve)
 *   memfd PATH     the same by a copy in memory
 *   move FOLDER    go into a cgroup
 *   use WHAT ADDRESS PORT
 *                  WHAT: connect-udp, connect-tcp, connect-icmp, bind-udp, bind-tcp; the address
 *                  is of IPv4 or IPv6, whichever the text is
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static int dial(void)
{
	const char *where = getenv("DIAL_TO");
	struct sockaddr_in to = { .sin_family = AF_INET };
	char host[64];
	int port, sock, result;

	if (!where || sscanf(where, "%63[0-9.]:%d", host, &port) != 2)
		return EINVAL;
	to.sin_port = htons(port);
	inet_pton(AF_INET, host, &to.sin_addr);
	sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (sock < 0)
		return errno;
	result = connect(sock, (struct sockaddr *)&to, sizeof(to)) ? errno : 0;
	close(sock);
	return result;
}

static void *dial_thread(void *result)
{
	*(int *)result = dial();
	return NULL;
}

static int copy_to_memory(const char *path)
{
	int from = open(path, O_RDONLY | O_CLOEXEC), to = memfd_create("dial", MFD_CLOEXEC);
	struct stat info;

	if (from < 0 || to < 0 || fstat(from, &info))
		return -1;
	if (sendfile(to, from, NULL, info.st_size) != info.st_size)
		return -1;
	close(from);
	return to;
}

static int move(const char *folder)
{
	char path[4096];
	int file, result = 0;

	snprintf(path, sizeof(path), "%s/cgroup.procs", folder);
	file = open(path, O_WRONLY | O_CLOEXEC);
	if (file < 0 || write(file, "0", 1) != 1)
		result = errno;
	if (file >= 0)
		close(file);
	return result;
}

static int use(const char *what, const char *host, int port)
{
	struct sockaddr_in four = { .sin_family = AF_INET, .sin_port = htons(port) };
	struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	int is_six = !!strchr(host, ':'), sock, result, binds, type, protocol = 0;
	struct sockaddr *address = is_six ? (void *)&six : (void *)&four;
	socklen_t length = is_six ? sizeof(six) : sizeof(four);

	if (inet_pton(is_six ? AF_INET6 : AF_INET, host,
		      is_six ? (void *)&six.sin6_addr : (void *)&four.sin_addr) != 1)
		return EINVAL;
	binds = !strncmp(what, "bind", 4);
	type = strstr(what, "-tcp") ? SOCK_STREAM : SOCK_DGRAM;
	if (strstr(what, "-icmp"))
		protocol = is_six ? IPPROTO_ICMPV6 : IPPROTO_ICMP;
	sock = socket(is_six ? AF_INET6 : AF_INET, type | SOCK_CLOEXEC, protocol);
	if (sock < 0)
		return errno;
	result = binds ? bind(sock, address, length) : connect(sock, address, length);
	result = result ? errno : 0;
	close(sock);
	return result;
}

static int obey(char *word, char *argument, char **argv)
{
	int result = 0, status, port;
	char what[32], host[64];
	pthread_t thread;
	pid_t child;

	if (!strcmp(word, "dial"))
		return dial();
	if (!strcmp(word, "fork")) {
		child = fork();
		if (!child)
			_exit(dial());
		waitpid(child, &status, 0);
		return WEXITSTATUS(status);
	}
	if (!strcmp(word, "thread")) {
		if (pthread_create(&thread, NULL, dial_thread, &result))
			return EINVAL;
		pthread_join(thread, NULL);
		return result;
	}
	if (!strcmp(word, "move"))
		return move(argument);
	if (!strcmp(word, "use")) {
		if (sscanf(argument, "%31s %63s %d", what, host, &port) != 3)
			return ENOSYS;
		return use(what, host, port);
	}
	if (!strcmp(word, "exec"))
		execv(argument, argv);
	else if (!strcmp(word, "fexec"))
		fexecve(open(argument, O_RDONLY | O_CLOEXEC), argv, environ);
	else if (!strcmp(word, "memfd"))
		fexecve(copy_to_memory(argument), argv, environ);
	else
		return ENOSYS;
	return errno;
}

int main(int argc, char **argv)
{
	char line[4096];

	(void)argc;
	/* Its readers wait for each line; nothing may stay behind in a buffer over exec. */
	setvbuf(stdin, NULL, _IONBF, 0);
	while (fgets(line, sizeof(line), stdin)) {
		char *word = strtok(line, " \n"), *argument = strtok(NULL, "\n");

		if (!word)
			continue;
		printf("%d\n", obey(word, argument ? argument : "", argv));
		fflush(stdout);
	}
	return 0;
}
