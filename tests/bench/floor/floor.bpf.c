// SPDX-License-Identifier: Apache-2.0
/*
 * The least that any agent on these hooks costs: programs that decide nothing.
 * With -DTAG they also keep 120 bytes with each socket, made at connect and read by each packet,
 * as whoever wants to end open connections has to; they still decide nothing.
 */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "Apache-2.0";

#ifdef TAG
struct tag {
	__u64 words[15];
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct tag);
} tags SEC(".maps");

static __always_inline int made(struct bpf_sock *sk)
{
	struct tag *tag;

	tag = sk ? bpf_sk_storage_get(&tags, sk, 0, BPF_SK_STORAGE_GET_F_CREATE) : 0;
	if (tag)
		tag->words[0] = 1;
	return 1;
}

static __always_inline int met(struct bpf_sock *sk)
{
	struct tag *tag;

	sk = sk ? bpf_sk_fullsock(sk) : 0;
	tag = sk ? bpf_sk_storage_get(&tags, sk, 0, 0) : 0;
	if (tag)
		tag->words[1]++;
	return 1;
}

static __always_inline int ended(struct bpf_sock *sk)
{
	struct tag *tag = bpf_sk_storage_get(&tags, sk, 0, 0);

	return tag && tag->words[0] == 2 ? 0 : 1;
}
#else
#define made(sk) 1
#define met(sk) 1
#define ended(sk) 1
#endif

#define HOOK(section, name, context, result) \
	SEC(section) int name(struct context *ctx) \
	{ \
		return result; \
	}

HOOK("cgroup/connect4", cgroup_connect4, bpf_sock_addr, made(ctx->sk))
HOOK("cgroup/connect6", cgroup_connect6, bpf_sock_addr, made(ctx->sk))
HOOK("cgroup/sendmsg4", cgroup_sendmsg4, bpf_sock_addr, made(ctx->sk))
HOOK("cgroup/sendmsg6", cgroup_sendmsg6, bpf_sock_addr, made(ctx->sk))
HOOK("cgroup/bind4", cgroup_bind4, bpf_sock_addr, 1)
HOOK("cgroup/bind6", cgroup_bind6, bpf_sock_addr, 1)
HOOK("cgroup/post_bind4", cgroup_post_bind4, bpf_sock, 1)
HOOK("cgroup/post_bind6", cgroup_post_bind6, bpf_sock, 1)
HOOK("cgroup/sock_create", cgroup_sock_create, bpf_sock, 1)
HOOK("cgroup/sock_release", cgroup_sock_release, bpf_sock, ended(ctx))
HOOK("cgroup_skb/egress", cgroup_egress, __sk_buff, met(ctx->sk))
HOOK("cgroup_skb/ingress", cgroup_ingress, __sk_buff, met(ctx->sk))
