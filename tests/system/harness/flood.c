/* SPDX-License-Identifier: Apache-2.0 */
/*
 * flood PORT PORTS PROCESSES THREADS ROUNDS: every thread of every process connects a UDP socket
 * ROUNDS times to each of PORTS ports of 127.0.0.1 from PORT on. Prints how many calls failed
 * with ENOKEY. Exits with 1 if a call ended otherwise.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static int first, ports, processes, threads, rounds;
static struct {
	long denied, other;
} *total;

static void *work(void *unused)
{
	long denied = 0, other = 0;
	int sock = socket(AF_INET, SOCK_DGRAM, 0);

	for (int round = 0; round < rounds; round++)
		for (int port = 0; port < ports; port++) {
			struct sockaddr_in to = {
				.sin_family = AF_INET,
				.sin_port = htons(first + port),
				.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
			};

			if (connect(sock, (struct sockaddr *)&to, sizeof(to)) < 0 &&
			    errno == ENOKEY)
				denied++;
			else
				other++;
		}
	close(sock);
	__atomic_add_fetch(&total->denied, denied, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&total->other, other, __ATOMIC_SEQ_CST);
	return unused;
}

int main(int argc, char **argv)
{
	if (argc != 6)
		return 2;
	first = atoi(argv[1]);
	ports = atoi(argv[2]);
	processes = atoi(argv[3]);
	threads = atoi(argv[4]);
	rounds = atoi(argv[5]);
	total = mmap(0, sizeof(*total), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (int process = 0; process < processes; process++) {
		pthread_t workers[64];

		if (fork())
			continue;
		for (int thread = 0; thread < threads; thread++)
			pthread_create(&workers[thread], 0, work, 0);
		for (int thread = 0; thread < threads; thread++)
			pthread_join(workers[thread], 0);
		return 0;
	}
	while (wait(0) > 0)
		;
	printf("%ld\n", total->denied);
	return total->other != 0;
}
