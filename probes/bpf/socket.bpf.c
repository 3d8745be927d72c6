// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// What happens on the TCP sockets of watched network namespaces, as records in one ring buffer.
//
// No system call is hooked, and there are four instants: bytes are handed to TCP, bytes are readable, a read returned, the
// state changed (connect, accept, close). Each is taken at a BTF tracepoint where the kernel has one (tier tp_btf, Linux
// 6.16), else at the entry or exit of the kernel function that has the tracepoint in later kernels (tier fentry); the
// loader loads one tier's programs only. Kernel memory is read by direct dereference only, so that both load under
// lockdown=confidentiality too. The layout of the records, and all that user space knows by name, is in record.h.

#include "record.h"

// Read payload as text, by way of bpf_snprintf. Set where the loader would not leave
// bpf_probe_read_user as it is (see text_payload in src/loader.rs).
const volatile __u8 text_payload = 0;
static const char text_format[] = "%pus";
// How the first element of a vector is read, which tells where its payload is: the loader takes the first that loads.
// Directly: before Linux 6.4, where the verifier knows what the iterator's pointer points to, and since 6.17, where it
// lets memory of unknown type be read. By bpf_probe_read_kernel in between; not at all where that is forbidden too.
#define VECTOR_DIRECTLY 0
#define VECTOR_BY_HELPER 1
#define VECTOR_NEVER 2
const volatile __u8 vector = VECTOR_DIRECTLY;
// Follow the frames of HTTP/2. Not set where payload can be read as text only, which ends at a zero byte.
const volatile __u8 frames = 1;

// How the kernel's memory is read, and where a socket's state is kept, differs for kprobes (kprobe.bpf.c includes this file).
#ifndef KPROBE
#define READ(pointer, member) ((pointer)->member)
#define READ2(pointer, member, its) ((pointer)->member->its)
#define READ_AT(type, address) (*(type *)(address))
#define TCP_SOCK(sk) bpf_skc_to_tcp_sock(sk)
#define TRACEPOINT(name) SEC("tp_btf/" name)

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct socket_state);
} sockets SEC(".maps");

#endif

static __always_inline int is_watched(struct sock *sk)
{
	__u32 netns;

	if (watch_all)
		return 1;
	netns = READ2(sk, __sk_common.skc_net.net, ns.inum);
	return bpf_map_lookup_elem(&watched, &netns) != NULL;
}

#ifdef KPROBE
static __always_inline struct socket_state *state_of(struct sock *sk, int create);
static __always_inline void turns(struct sock *sk, int old, int new);
#else
// The socket's state, or NULL if it is not to be recorded. `create` says whether a socket without one gets one.
static __always_inline struct socket_state *state_of(struct sock *sk, int create)
{
	struct socket_state *st;
	__u16 family = READ(sk, __sk_common.skc_family);
	__u32 now = generation;

	if (family != AF_INET && family != AF_INET6)
		return NULL;
	st = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (st) {
		// Another processor has made it this instant, and not filled it in yet. (Only where a socket without state gets
		// one, the verifier is sure to let its cookie be asked for.)
		if (!st->cookie) {
			if (!create)
				return NULL;
			st->turned = 1;
			st->cookie = bpf_get_socket_cookie(sk);
		}
		if (st->generation != now) {
			st->watched = is_watched(sk);
			st->generation = now;
		}
		return st->watched ? st : NULL;
	}
	if (!create || READ(sk, sk_protocol) != IPPROTO_TCP || READ(sk, __sk_common.skc_state) == TCP_LISTEN || !is_watched(sk))
		return NULL;
	st = bpf_sk_storage_get(&sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!st) {
		count(COUNT_UNTRACKED);
		return NULL;
	}
	// Two processors may come here at once; both write the same.
	st->turned = 1;
	st->cookie = bpf_get_socket_cookie(sk);
	st->watched = 1;
	st->generation = now;
	return st;
}
#endif

#include "emit.h"
#include "send.h"

#ifndef KPROBE
SEC("tp_btf/tcp_sendmsg_locked")
int on_send(__u64 *ctx)
{
	return sent((struct sock *)ctx[0], (struct msghdr *)ctx[1]);
}

// The function holds the socket's lock already, so write_seq is this call's.
SEC("fentry/tcp_sendmsg_locked")
int enter_send(__u64 *ctx)
{
	return sent((struct sock *)ctx[0], (struct msghdr *)ctx[1]);
}

SEC("fentry/do_tcp_sendpages")
int enter_page(__u64 *ctx)
{
	return sent_page((struct sock *)ctx[0], (__u32)ctx[3]);
}
#endif

// True once the peer's FIN is in rcv_nxt: tcp_fin() alone sets SOCK_DONE.
static __always_inline int fin_received(struct sock *sk)
{
	return (READ(sk, __sk_common.skc_flags) >> bpf_core_enum_value(enum sock_flags, SOCK_DONE)) & 1;
}

static __always_inline int readable(struct sock *sk)
{
	struct socket_state *st = state_of(sk, 1);
	struct tcp_sock *tp;
	__u32 nxt;

	if (!st)
		return 0;
	tp = TCP_SOCK(sk);
	if (!tp)
		return 0;
	nxt = READ(tp, rcv_nxt);
	if (st->has_ready && st->ready_nxt == nxt)
		return 0;
	st->ready_nxt = nxt;
	st->has_ready = 1;
	st->turned = 1;
	if (!st->announced)
		announce(sk, st, READ(sk, __sk_common.skc_state));
	emit(st, tp, KIND_READY, fin_received(sk) ? FLAG_FIN : 0, 0, nxt, READ(tp, copied_seq));
	return 0;
}

#ifndef KPROBE
SEC("tp_btf/sk_data_ready")
int on_ready(__u64 *ctx)
{
	return readable((struct sock *)ctx[0]);
}

// What sk_data_ready points to on every TCP socket that nobody in the kernel reads from; later kernels have the tracepoint
// in it. Other protocols' sockets come by too.
SEC("fentry/sock_def_readable")
int enter_ready(__u64 *ctx)
{
	return readable((struct sock *)ctx[0]);
}
#endif

// When the read of this thread (`id`) began; 0 if that is not known: another thread has begun to read meanwhile.
static __always_inline __u64 read_began(struct socket_state *st, __u64 id)
{
	return st->recv_tid == (__u32)id ? st->recv_at : 0;
}

// What a read took, up to the number `copied`.
static __always_inline int took(struct sock *sk, struct socket_state *st, struct tcp_sock *tp, __u32 copied, __u32 len,
				__u64 id, __u64 began)
{
	__u64 at;

	st->recv_seq = copied;
	if (!st->announced)
		announce(sk, st, READ(sk, __sk_common.skc_state));
	at = bpf_ktime_get_ns();
	emit_timed(st, tp, KIND_RECV, fin_received(sk) && copied == READ(tp, rcv_nxt) ? FLAG_FIN : 0, id >> 32, copied, len,
		   at, began ? span(at - began) : 0);
	return 0;
}

#ifndef KPROBE
static __always_inline int was_read(struct sock *sk, int len, int flags)
{
	struct socket_state *st = state_of(sk, 1);
	struct tcp_sock *tp;
	__u64 id, began;
	__u32 copied;

	if (!st)
		return 0;
	id = bpf_get_current_pid_tgid();
	began = read_began(st, id);
	// However it ends: the next read is another one.
	if (began)
		st->recv_at = 0;
	if (len < 0 || (flags & MSG_PEEK))
		return 0;
	tp = TCP_SOCK(sk);
	if (!tp)
		return 0;
	copied = READ(tp, copied_seq);
	// A read of nothing counts once, when it takes the FIN's number.
	if (len == 0 && (copied == st->recv_seq || !fin_received(sk)))
		return 0;
	return took(sk, st, tp, copied, len, id, began);
}

SEC("tp_btf/sock_recv_length")
int on_recv(__u64 *ctx)
{
	return was_read((struct sock *)ctx[0], (int)ctx[1], (int)ctx[2]);
}

// tcp_recvmsg(sk, msg, len, flags, addr_len), and its result.
SEC("fexit/tcp_recvmsg")
int exit_recv(__u64 *ctx)
{
	return was_read((struct sock *)ctx[0], (int)ctx[5], (int)ctx[3]);
}

// Before Linux 5.19: tcp_recvmsg(sk, msg, len, nonblock, flags, addr_len), and its result. Later kernels refuse this one,
// because their function has no sixth argument: the loader tries it first.
SEC("fexit/tcp_recvmsg")
int exit_recv_6(__u64 *ctx)
{
	return was_read((struct sock *)ctx[0], (int)ctx[6], (int)ctx[4]);
}

#endif

// A socket connects, perhaps not for the first time (connect() after one that was refused): it has another local port now,
// and what it sent and received before was another connection's.
static __always_inline void starts_anew(struct socket_state *st)
{
	st->announced = 0;
	st->has_send = 0;
	st->has_ready = 0;
	st->tls = 0;
	st->speaks = SPEAKS_UNKNOWN;
	st->h2_got = 0;
	st->h2_at = 0;
	st->h2_skip = 0;
	st->h2_rest = 0;
	st->turned = 1;
}

TRACEPOINT("inet_sock_set_state")
int on_state(__u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];
	int old = (int)ctx[1], new = (int)ctx[2];
	struct socket_state *st;
	struct tcp_sock *tp;
	__u32 tgid = 0;
	int began;

	// SYN_RECV is a child that has no address yet, LISTEN carries no bytes; the others say nothing that is used.
	if (old == TCP_LISTEN || (new != TCP_SYN_SENT && new != TCP_ESTABLISHED && new != TCP_FIN_WAIT1 &&
				  new != TCP_CLOSE_WAIT && new != TCP_LAST_ACK && new != TCP_CLOSE))
		return 0;
	if (READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	// Also of a connection that was silent until it broke off.
#ifdef KPROBE
	turns(sk, old, new);
#endif
	began = old != TCP_SYN_SENT && old != TCP_SYN_RECV && old != TCP_CLOSE;
	st = state_of(sk, new != TCP_CLOSE || began);
	if (!st)
		return 0;
	tp = TCP_SOCK(sk);
	if (!tp)
		return 0;
	// A connecting socket has no local port yet (tcp_v4_connect binds after it sets the state).
	if (!st->announced && new != TCP_SYN_SENT)
		announce(sk, st, new);
	// tcp_v4_connect runs in the process that connects; the other changes run in anybody's.
	if (new == TCP_SYN_SENT) {
		tgid = bpf_get_current_pid_tgid() >> 32;
		starts_anew(st);
	}
	emit(st, tp, KIND_STATE, 0, tgid, READ(tp, write_seq), (__u32)READ(sk, sk_err) << 16 | old << 8 | new);
	return 0;
}

#include "metrics.h"
