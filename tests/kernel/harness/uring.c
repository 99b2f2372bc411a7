// SPDX-License-Identifier: Apache-2.0
/*
 * Send BYTES over TCP by io_uring, then read the reply to its end; no library, two system calls.
 *
 *   uring HOST PORT BYTES HOW      HOW: plain, polled (the kernel's own thread submits), or
 *                                  zerocopy (IORING_OP_SEND_ZC)
 *
 * Prints what the reply had. Exit status 77: this kernel has no such io_uring.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CHUNK 65536

static void fail(const char *what, int error)
{
	fprintf(stderr, "%s: %s\n", what, strerror(error));
	exit(error == ENOSYS || error == EPERM || error == EINVAL ? 77 : 1);
}

struct ring {
	int fd;
	int polled;
	unsigned int *tail, *mask, *flags, *array, *done_head, *done_tail, *done_mask;
	struct io_uring_sqe *entries;
	struct io_uring_cqe *done;
};

static void *map(int fd, size_t size, off_t where)
{
	void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, where);

	if (at == MAP_FAILED)
		fail("mmap", errno);
	return at;
}

static void open_ring(struct ring *ring, int polled)
{
	struct io_uring_params how = { .flags = polled ? IORING_SETUP_SQPOLL : 0 };
	char *submit, *complete;

	ring->polled = polled;
	ring->fd = syscall(SYS_io_uring_setup, 8, &how);
	if (ring->fd < 0)
		fail("io_uring_setup", errno);
	submit = map(ring->fd, how.sq_off.array + how.sq_entries * 4, IORING_OFF_SQ_RING);
	complete = map(ring->fd, how.cq_off.cqes + how.cq_entries * sizeof(*ring->done),
		       IORING_OFF_CQ_RING);
	ring->entries = map(ring->fd, how.sq_entries * sizeof(*ring->entries), IORING_OFF_SQES);
	ring->tail = (void *)(submit + how.sq_off.tail);
	ring->mask = (void *)(submit + how.sq_off.ring_mask);
	ring->flags = (void *)(submit + how.sq_off.flags);
	ring->array = (void *)(submit + how.sq_off.array);
	ring->done_head = (void *)(complete + how.cq_off.head);
	ring->done_tail = (void *)(complete + how.cq_off.tail);
	ring->done_mask = (void *)(complete + how.cq_off.ring_mask);
	ring->done = (void *)(complete + how.cq_off.cqes);
}

static void submit(struct ring *ring, const struct io_uring_sqe *entry)
{
	unsigned int tail = *ring->tail, enter = 0, flags;

	ring->entries[tail & *ring->mask] = *entry;
	ring->array[tail & *ring->mask] = tail & *ring->mask;
	__atomic_store_n(ring->tail, tail + 1, __ATOMIC_SEQ_CST);
	flags = __atomic_load_n(ring->flags, __ATOMIC_SEQ_CST);
	if (ring->polled && flags & IORING_SQ_NEED_WAKEUP)
		enter = IORING_ENTER_SQ_WAKEUP;
	if ((!ring->polled || enter) &&
	    syscall(SYS_io_uring_enter, ring->fd, 1, 0, enter, NULL, 0) < 0)
		fail("io_uring_enter", errno);
}

/* The result of what was submitted; notices that pages are free again are passed over. */
static int next(struct ring *ring)
{
	unsigned int head = *ring->done_head;
	struct io_uring_cqe *found;
	int result, notice;

	while (head == __atomic_load_n(ring->done_tail, __ATOMIC_ACQUIRE))
		if (syscall(SYS_io_uring_enter, ring->fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0) <
			    0 &&
		    errno != EINTR)
			fail("io_uring_enter", errno);
	found = &ring->done[head & *ring->done_mask];
	result = found->res;
	notice = found->flags & IORING_CQE_F_NOTIF;
	__atomic_store_n(ring->done_head, head + 1, __ATOMIC_RELEASE);
	return notice ? next(ring) : result;
}

int main(int argc, char **argv)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	static char data[CHUNK];
	long left, total = 0;
	struct ring ring;
	int sock, zerocopy;

	if (argc != 5)
		return 2;
	to.sin_port = htons(atoi(argv[2]));
	inet_pton(AF_INET, argv[1], &to.sin_addr);
	left = atol(argv[3]);
	zerocopy = !strcmp(argv[4], "zerocopy");
	open_ring(&ring, !strcmp(argv[4], "polled"));
	sock = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(sock, (void *)&to, sizeof(to)))
		fail("connect", errno);
	while (left > 0) {
		struct io_uring_sqe entry = {
			.opcode = zerocopy ? IORING_OP_SEND_ZC : IORING_OP_SEND,
			.fd = sock,
			.addr = (unsigned long)data,
			.len = left < CHUNK ? left : CHUNK,
		};
		int result;

		submit(&ring, &entry);
		result = next(&ring);
		if (result < 0)
			fail("send", -result);
		left -= result;
	}
	shutdown(sock, SHUT_WR);
	for (;;) {
		struct io_uring_sqe entry = {
			.opcode = IORING_OP_RECV, .fd = sock, .addr = (unsigned long)data, .len = CHUNK
		};
		int result;

		submit(&ring, &entry);
		result = next(&ring);
		if (result < 0)
			fail("receive", -result);
		if (!result)
			break;
		total += result;
	}
	printf("%ld\n", total);
	return 0;
}
