// SPDX-License-Identifier: Apache-2.0
/*
 * A program that puts another content under its own identity, all within one tick of the clock.
 *
 *   swap PATH OTHER GOOD    write itself to PATH and become that, which calls itself OTHER, writes
 *                           what GOOD holds to PATH, and calls itself PATH again
 *
 * Then it prints the errno of a UDP connect to DIAL_TO for each line it reads, like dial.
 */
#include "become.h"
#include <arpa/inet.h>
#include <sys/socket.h>
#include <time.h>

extern char **environ;

static char bytes[8 << 20];

static long load(const char *path)
{
	int file = open(path, O_RDONLY);
	long length = read(file, bytes, sizeof(bytes));

	close(file);
	return length;
}

static void store(const char *path, long length)
{
	int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0755);

	if (file < 0 || write(file, bytes, length) != length)
		abort();
	close(file);
}

static void wait_for_tick(void)
{
	struct timespec first, now;

	clock_gettime(CLOCK_REALTIME_COARSE, &first);
	do
		clock_gettime(CLOCK_REALTIME_COARSE, &now);
	while (now.tv_nsec == first.tv_nsec);
}

static int dial(void)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	const char *where = getenv("DIAL_TO");
	int port, sock, failed;
	char host[64];

	if (!where || sscanf(where, "%63[0-9.]:%d", host, &port) != 2)
		return EINVAL;
	to.sin_port = htons(port);
	inet_pton(AF_INET, host, &to.sin_addr);
	sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	failed = connect(sock, (void *)&to, sizeof(to)) ? errno : 0;
	close(sock);
	return failed;
}

int main(int argc, char **argv)
{
	char line[64];
	long length;
	int failed;

	if (argc != 4)
		return 2;
	if (strcmp(argv[0], "swapped")) {
		length = load("/proc/self/exe");
		argv[0] = "swapped";
		wait_for_tick();
		store(argv[1], length);
		execve(argv[1], argv, environ);
		return 1;
	}
	failed = become(argv[2]);
	if (!failed) {
		store(argv[1], load(argv[3]));
		failed = become(argv[1]);
	}
	setvbuf(stdin, NULL, _IONBF, 0);
	setvbuf(stdout, NULL, _IONBF, 0);
	printf("%d\n", failed);
	while (fgets(line, sizeof(line), stdin))
		printf("%d\n", dial());
	return 0;
}
