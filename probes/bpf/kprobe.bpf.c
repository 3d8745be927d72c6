// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// The same instants and records, by the code of socket.bpf.c, for kernels that have type information but refuse fentry (arm64 before
// Linux 6.4, kernels without the function tracer): tier kprobe. What is different here:
//
// - Kernel memory is read by bpf_probe_read_kernel, which lockdown=confidentiality forbids.
// - Sockets have no storage for these programs. What is remembered of a socket is in a hash map by its address, and goes when
//   the socket is destroyed. A new socket at the same address must not inherit it, also where the end of the old one was missed
//   (a kprobe that is hit while another one runs on the same processor is passed over): see `same`.
// - bpf_get_socket_cookie is not for these programs. A socket that has a cookie by the time it is first seen is known by that;
//   any other by a number of our own, whose highest bit is set (the kernel's are counted up from 1).
// - Reads are seen at the end of the copying (tcp_cleanup_rbuf) and not at the return of tcp_recvmsg. The kernel has a fixed
//   number of places for functions to return from, a few per processor: a few dozen threads that wait for data in
//   tcp_recvmsg would take them all, and the reads of others would be missed without a count.

// Kprobes run anywhere; kernels before 6.1 warn of maps that allocate there.
#define WATCHED_FLAGS 0

#define KPROBE
#define READ(pointer, member) BPF_CORE_READ(pointer, member)
#define READ2(pointer, member, its) BPF_CORE_READ(pointer, member, its)
#define READ_AT(type, address)                                                                                        \
	({                                                                                                            \
		type value = 0;                                                                                       \
		bpf_probe_read_kernel(&value, sizeof(value), address);                                                \
		value;                                                                                                \
	})
#define TCP_SOCK(sk) ((struct tcp_sock *)(sk))
#define TRACEPOINT(name) SEC("raw_tp/" name)
#include "socket.bpf.c"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
typedef struct {
	__s64 counter;
} atomic64_t;
struct sock_common___cookie {
	atomic64_t skc_cookie;
};
#pragma clang attribute pop

// Who a socket is, as far as it tells an incarnation from another one at the same address. A part that is 0 is not known
// (yet, or any more).
struct incarnation {
	__u64 cookie; // the kernel's
	__u32 remote;
	__u16 remote_port;
	__u16 local_port;
};

struct tracked {
	struct socket_state st; // first
	struct incarnation who;
	__u8 has_recv; // st.recv_seq is known
	__u8 closed;
	__u8 unused[6];
};
static const struct tracked blank;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64); // the socket's address
	__type(value, struct tracked);
} sockets SEC(".maps");

// How many they are: kept for tests, which ask whether any is left over.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} remembered SEC(".maps");

static __always_inline void remember(__s64 more)
{
	__u32 zero = 0;
	__u64 *value = bpf_map_lookup_elem(&remembered, &zero);

	if (value)
		__sync_fetch_and_add(value, more);
}

static __always_inline void remove(__u64 key)
{
	if (!bpf_map_delete_elem(&sockets, &key))
		remember(-1);
}

// Argument `n` of the function that is entered, from 0. `ctx` is struct pt_regs, whose layout is ABI (asm/ptrace.h); the
// verifier wants the offset in the instruction, which only assembly promises.
#define AT(offset) asm volatile("%0 = *(u64 *)(%1 + %2)" : "=r"(value) : "r"(ctx), "i"(offset))
static __always_inline __u64 argument(void *ctx, const int n)
{
	__u64 value = 0;

	if (tls_arm64) {
		switch (n) {
		case 0: AT(0); break;
		case 1: AT(8); break;
		case 2: AT(16); break;
		case 3: AT(24); break;
		}
	} else {
		switch (n) {
		case 0: AT(112); break;
		case 1: AT(104); break;
		case 2: AT(96); break;
		case 3: AT(88); break;
		}
	}
	return value;
}

static __always_inline void who_is(struct sock *sk, struct incarnation *who)
{
	struct sock_common___cookie *common = (void *)sk;

	who->cookie = READ(common, skc_cookie.counter);
	who->remote = READ(sk, __sk_common.skc_daddr);
	who->remote_port = READ(sk, __sk_common.skc_dport);
	who->local_port = READ(sk, __sk_common.skc_num);
}

// False if `now` cannot be the socket that `then` was. Within its life a socket gets a cookie and ports but does not
// change them; a closed one loses its ports.
static __always_inline int same(const struct incarnation *then, const struct incarnation *now)
{
	if (then->cookie && then->cookie != now->cookie)
		return 0;
	if (then->local_port && now->local_port && then->local_port != now->local_port)
		return 0;
	if (then->remote_port && now->remote_port &&
	    (then->remote_port != now->remote_port || then->remote != now->remote))
		return 0;
	return 1;
}

static __always_inline void learn(struct incarnation *known, const struct incarnation *now)
{
	if (now->cookie)
		known->cookie = now->cookie;
	if (now->local_port)
		known->local_port = now->local_port;
	if (now->remote_port) {
		known->remote_port = now->remote_port;
		known->remote = now->remote;
	}
}

// Unique from boot to shutdown, and never a number that the kernel gives: the time in units of 16 ns, in which no
// processor comes here twice, and the processor. Wraps after 4 years.
static __always_inline __u64 own_number(void)
{
	return 1ULL << 63 | (bpf_ktime_get_ns() >> 4) << 10 | (bpf_get_smp_processor_id() & 1023);
}

// The socket's state, or NULL if it is not to be recorded. `create` says whether a socket without one gets one.
static __always_inline struct socket_state *state_of(struct sock *sk, int create)
{
	__u64 key = (__u64)sk;
	__u16 family = READ(sk, __sk_common.skc_family);
	__u32 now = generation;
	struct incarnation who;
	struct tracked *t;

	if (family != AF_INET && family != AF_INET6)
		return NULL;
	t = bpf_map_lookup_elem(&sockets, &key);
	if (t) {
		who_is(sk, &who);
		if (same(&t->who, &who))
			goto known;
		// What was here before is gone.
		remove(key);
	}
	if (!create || READ(sk, sk_protocol) != IPPROTO_TCP || READ(sk, __sk_common.skc_state) == TCP_LISTEN ||
	    !is_watched(sk))
		return NULL;
	who_is(sk, &who);
	// Two processors may come here at once: the first one's is taken.
	if (!bpf_map_update_elem(&sockets, &key, &blank, BPF_NOEXIST))
		remember(1);
	t = bpf_map_lookup_elem(&sockets, &key);
	if (!t) {
		count(COUNT_UNTRACKED);
		return NULL;
	}
known:
	if (!t->st.cookie) {
		t->st.turned = 1;
		__sync_val_compare_and_swap(&t->st.cookie, 0, who.cookie ? who.cookie : own_number());
	}
	learn(&t->who, &who);
	if (t->st.generation != now) {
		t->st.watched = is_watched(sk);
		t->st.generation = now;
	}
	return t->st.watched ? &t->st : NULL;
}

// Where a socket's life begins, nothing that is remembered is its own, unless its cookie proves it. A child of a listener is
// only told from the one before it by that one's end: with TCP Fast Open it has had data before it is established.
static __always_inline void turns(struct sock *sk, int old, int new)
{
	__u64 key = (__u64)sk;
	struct tracked *t = bpf_map_lookup_elem(&sockets, &key);
	struct incarnation who;

	if (!t)
		return;
	if (new == TCP_CLOSE)
		t->closed = 1;
	if (new != TCP_SYN_SENT && !(old == TCP_SYN_RECV && new == TCP_ESTABLISHED && t->closed))
		return;
	who_is(sk, &who);
	if (!who.cookie || who.cookie != t->who.cookie) {
		remove(key);
		return;
	}
	// It connects again: to another address perhaps, and from another port.
	t->who.remote = 0;
	t->who.remote_port = 0;
	t->who.local_port = 0;
	t->has_recv = 0;
	t->closed = 0;
}

// The function holds the socket's lock already, so write_seq is this call's; and it is called once for each call.
SEC("kprobe/tcp_sendmsg_locked")
int kprobe_send(void *ctx)
{
	return sent((struct sock *)argument(ctx, 0), (struct msghdr *)argument(ctx, 1));
}

SEC("kprobe/do_tcp_sendpages")
int kprobe_page(void *ctx)
{
	return sent_page((struct sock *)argument(ctx, 0), (__u32)argument(ctx, 3));
}

SEC("kprobe/sock_def_readable")
int kprobe_ready(void *ctx)
{
	return readable((struct sock *)argument(ctx, 0));
}

// Reads are told from looks by what they move: without a beginning there is no telling.
static __always_inline int reads_begin(struct socket_state *st, __u32 copied)
{
	struct tracked *t = (struct tracked *)st;

	if (t->has_recv)
		return 0;
	st->recv_seq = copied;
	t->has_recv = 1;
	return 1;
}

SEC("kprobe/tcp_recvmsg")
int kprobe_recv_begins(void *ctx)
{
	struct sock *sk = (struct sock *)argument(ctx, 0);
	struct socket_state *st = state_of(sk, 1);

	if (!st)
		return 0;
	reads_begin(st, READ(TCP_SOCK(sk), copied_seq));
	read_begins(st);
	return 0;
}

// tcp_recvmsg_locked calls it when it has copied what it will, and when it is about to wait for more; so does whatever else
// takes data from a socket (splice, zero copy), whose first read of all is passed over.
SEC("kprobe/tcp_cleanup_rbuf")
int kprobe_recv(void *ctx)
{
	struct sock *sk = (struct sock *)argument(ctx, 0);
	struct tcp_sock *tp = TCP_SOCK(sk);
	struct socket_state *st = state_of(sk, 1);
	__u32 copied, fin;
	__u64 id;

	if (!st)
		return 0;
	copied = READ(tp, copied_seq);
	if (reads_begin(st, copied) || copied == st->recv_seq)
		return 0;
	// The FIN's number is no byte.
	fin = fin_received(sk) && copied == READ(tp, rcv_nxt);
	id = bpf_get_current_pid_tgid();
	return took(sk, st, tp, copied, copied - st->recv_seq - fin, id, read_began(st, id));
}

// The last that is heard of a TCP socket, of IPv6 too: its address can be another one's from here on.
SEC("kprobe/tcp_v4_destroy_sock")
int kprobe_destroy(void *ctx)
{
	remove(argument(ctx, 0));
	return 0;
}
