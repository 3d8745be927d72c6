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

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct socket_state);
} sockets SEC(".maps");

static __always_inline int is_watched(struct sock *sk)
{
	__u32 netns;

	if (watch_all)
		return 1;
	netns = sk->__sk_common.skc_net.net->ns.inum;
	return bpf_map_lookup_elem(&watched, &netns) != NULL;
}

// The socket's state, or NULL if it is not to be recorded. `create` says whether a socket without one gets one.
static __always_inline struct socket_state *state_of(struct sock *sk, int create)
{
	struct socket_state *st;
	__u16 family = sk->__sk_common.skc_family;
	__u32 now = generation;

	if (family != AF_INET && family != AF_INET6)
		return NULL;
	st = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (st) {
		if (st->generation != now) {
			st->watched = is_watched(sk);
			st->generation = now;
		}
		return st->watched ? st : NULL;
	}
	if (!create || sk->sk_protocol != IPPROTO_TCP || sk->__sk_common.skc_state == TCP_LISTEN || !is_watched(sk))
		return NULL;
	st = bpf_sk_storage_get(&sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!st) {
		count(COUNT_UNTRACKED);
		return NULL;
	}
	// Two processors may come here at once; both write the same.
	st->cookie = bpf_get_socket_cookie(sk);
	st->generation = now;
	st->turned = 1;
	st->watched = 1;
	return st;
}

static __noinline void announce(struct sock *sk, struct socket_state *st, __u32 state)
{
	struct announcement *a;
	__u16 family = sk->__sk_common.skc_family;
	int i;

	if (!st)
		return;
	a = bpf_ringbuf_reserve(&ring, sizeof(*a), 0);
	if (!a) {
		count(COUNT_ANNOUNCE_LATE);
		return;
	}
	fill(&a->head, st, bpf_ktime_get_ns(), 0, KIND_ANNOUNCE);
	a->head.tgid = 0;
	a->head.seq = 0;
	a->head.aux = state;
	a->head.srtt_us = 0;
	a->netns = sk->__sk_common.skc_net.net->ns.inum;
	a->family = family;
	a->local_port = sk->__sk_common.skc_num;
	a->remote_port = __builtin_bswap16(sk->__sk_common.skc_dport);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	a->remote_port = sk->__sk_common.skc_dport;
#endif
	a->unused[0] = a->unused[1] = a->unused[2] = 0;
	if (family == AF_INET6 && bpf_core_field_exists(sk->__sk_common.skc_v6_daddr)) {
#pragma unroll
		for (i = 0; i < 4; i++) {
			a->local[i] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[i];
			a->remote[i] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[i];
		}
	} else {
		a->local[0] = sk->__sk_common.skc_rcv_saddr;
		a->remote[0] = sk->__sk_common.skc_daddr;
#pragma unroll
		for (i = 1; i < 4; i++)
			a->local[i] = a->remote[i] = 0;
	}
	bpf_ringbuf_submit(a, BPF_RB_NO_WAKEUP);
	count(COUNT_EMITTED);
	st->announced = 1;
}

// One record without payload.
static __always_inline void emit(struct socket_state *st, struct tcp_sock *tp, __u8 kind, __u8 flags, __u32 tgid,
				 __u32 seq, __u32 aux)
{
	__u64 at = bpf_ktime_get_ns();
	__u32 counter = __sync_fetch_and_add(&st->counter, 1);
	struct record *r = bpf_ringbuf_reserve(&ring, sizeof(*r), 0);

	if (!r) {
		count(COUNT_LOST);
		return;
	}
	fill(r, st, at, counter, kind);
	r->flags = flags;
	r->tgid = tgid;
	r->seq = seq;
	r->aux = aux;
	r->srtt_us = tp->srtt_us;
	bpf_ringbuf_submit(r, BPF_RB_NO_WAKEUP);
	count(COUNT_EMITTED);
}

// Reads payload as text, and says how many bytes are known. Text ends at a zero byte; in the header of a TLS record there
// can be two (of its length), and reading goes on behind them.
static __always_inline __u64 text_of(__u8 *to, const __u64 size, void *base)
{
	__u64 from = (__u64)base, end;
	long length = bpf_snprintf((char *)to, size, text_format, &from, sizeof(from)) - 1;
	int i;

	if (length <= 0)
		return 0;
	if (length >= (long)size - 1)
		return size - 1;
	end = length;
	for (i = 0; i < 2; i++) {
		if (end >= TLS_HEADER)
			break;
		// The zero byte that ended the text is in its place already.
		end++;
		asm volatile("" : "+r"(end));
		if (end >= TLS_HEADER)
			break;
		from = (__u64)base + end;
		length = bpf_snprintf((char *)to + end, size - TLS_HEADER, text_format, &from, sizeof(from)) - 1;
		if (length < 0)
			break;
		if (length > (long)size - TLS_HEADER - 1)
			length = (long)size - TLS_HEADER - 1;
		end += length;
	}
	return end;
}

// One send with up to SIZE bytes of its payload. The size must be a constant for the verifier: hence the classes.
#define EMIT_SEND(SIZE)                                                                                               \
	do {                                                                                                          \
		struct {                                                                                              \
			struct record head;                                                                           \
			__u8 prefix[SIZE];                                                                            \
		} *r = bpf_ringbuf_reserve(&ring, sizeof(*r), 0);                                                     \
		__u64 n = want;                                                                                       \
                                                                                                                      \
		if (!r) {                                                                                             \
			count(COUNT_LOST);                                                                            \
			return 0;                                                                                     \
		}                                                                                                     \
		/* clang 14 forgets the bound of a value that it keeps in another register. */                        \
		asm volatile("" : "+r"(n));                                                                           \
		if (n > SIZE)                                                                                         \
			n = SIZE;                                                                                     \
		asm volatile("" : "+r"(n));                                                                           \
		fill(&r->head, st, at, counter, KIND_SEND);                                                           \
		r->head.tgid = tgid;                                                                                  \
		r->head.seq = seq;                                                                                    \
		r->head.aux = left;                                                                                   \
		r->head.srtt_us = tp->srtt_us;                                                                        \
		if (text_payload) {                                                                                   \
			__u64 known = text_of(r->prefix, SIZE, base);                                                 \
                                                                                                                      \
			r->head.prefix_len = known < n ? known : n;                                                   \
		} else if (bpf_probe_read_user(r->prefix, n, base) == 0) {                                            \
			r->head.prefix_len = n;                                                                       \
		}                                                                                                     \
		st->tls = r->head.prefix_len >= 3 && r->prefix[0] >= 20 && r->prefix[0] <= 23 && r->prefix[1] == 3;   \
		bpf_ringbuf_submit(r, BPF_RB_NO_WAKEUP);                                                              \
		count(COUNT_EMITTED);                                                                                 \
		return 0;                                                                                             \
	} while (0)

static __always_inline __u32 kind_of(struct msghdr *msg)
{
	if (bpf_core_field_exists(msg->msg_iter.iter_type))
		return msg->msg_iter.iter_type;
	return ((struct iov_iter___before_5_14 *)&msg->msg_iter)->type & ~1;
}

static __always_inline const struct iovec *iovec_of(struct msghdr *msg)
{
	if (bpf_core_field_exists(msg->msg_iter.__iov))
		return msg->msg_iter.__iov;
	return ((struct iov_iter___before_6_4 *)&msg->msg_iter)->iov;
}

// The first buffer of a vector; without address or length if it cannot be read.
struct buffer {
	void *base;
	__u64 len;
};

static __always_inline void first_of(struct msghdr *msg, struct buffer *first)
{
	const struct iovec *iov = iovec_of(msg);

	first->base = NULL;
	first->len = 0;
	if (vector == VECTOR_DIRECTLY) {
		first->base = iov->iov_base;
		first->len = iov->iov_len;
	} else if (vector == VECTOR_BY_HELPER) {
		bpf_probe_read_kernel(first, sizeof(*first), iov);
	}
}

static __always_inline int sent(struct sock *sk, struct msghdr *msg)
{
	struct socket_state *st = state_of(sk, 1);
	__u32 seq, left, end, counter, tgid, type;
	__u64 at, want, offset;
	struct tcp_sock *tp;
	void *base = NULL;
	int user, single;

	if (!st)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	seq = tp->write_seq;
	left = (__u32)msg->msg_iter.count;
	end = seq + left;
	// A call without bytes: the function is entered, but the tracepoint in its loop is not reached.
	if (!left)
		return 0;
	type = kind_of(msg);
	offset = msg->msg_iter.iov_offset;
	// ITER_UBUF came with Linux 6.0; either can be 0.
	single = bpf_core_enum_value_exists(enum iter_type, ITER_UBUF) &&
		 type == bpf_core_enum_value(enum iter_type, ITER_UBUF);
	user = single || type == bpf_core_enum_value(enum iter_type, ITER_IOVEC);

	// The tracepoint fires for every piece that one call copies, and again after every wait for memory; only the first
	// marks the send. Within a call the end stays (what the number gains, the iterator loses). A second call can have
	// the same end too, when it offers the rest of a partial write: it begins at its iterator's beginning. (A call whose
	// piece ended exactly with one of its iovecs looks like that; it is then reported twice, which is no lie: bytes from
	// there on were handed over by then.) In-kernel iterators (sendfile) have page boundaries everywhere, so there the
	// end alone decides. A call that offers again what the last one could not place at all changes nothing.
	if (st->has_send && end == st->send_end && (seq == st->send_start || !user || offset))
		return 0;
	st->send_start = seq;
	st->send_end = end;
	st->has_send = 1;

	if (!st->announced)
		announce(sk, st, sk->__sk_common.skc_state);
	tgid = bpf_get_current_pid_tgid() >> 32;

	want = 0;
	if (user) {
		if (single) {
			base = msg->msg_iter.ubuf;
			want = left;
		} else {
			struct buffer first;

			first_of(msg, &first);
			base = first.base;
			want = first.len > offset ? first.len - offset : 0;
			if (want > left)
				want = left;
		}
		// Where the verifier takes the address for a pointer of the kernel's, what is added to it must have a bound.
		asm volatile("" : "+r"(offset));
		if (offset < 1 << 28)
			base += offset;
		else
			want = 0;
		if (!st->turned || st->tls) {
			if (want > 32)
				want = 32;
		}
	}
	st->turned = 0;
	if (!want) {
		emit(st, tp, KIND_SEND, 0, tgid, seq, left);
		return 0;
	}
	at = bpf_ktime_get_ns();
	counter = __sync_fetch_and_add(&st->counter, 1);
	if (want <= 32)
		EMIT_SEND(32);
	if (want <= 128)
		EMIT_SEND(128);
	if (want <= 256)
		EMIT_SEND(256);
	EMIT_SEND(512);
}

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

// sendfile and splice, page by page; since Linux 6.5 they come through tcp_sendmsg_locked. Without payload, which is in the
// kernel.
SEC("fentry/do_tcp_sendpages")
int enter_page(__u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];
	__u32 left = (__u32)ctx[3];
	struct socket_state *st = state_of(sk, 1);
	struct tcp_sock *tp;
	__u32 seq;

	if (!st || !left)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	seq = tp->write_seq;
	// A page is offered again after every wait for room.
	if (st->has_send && seq + left == st->send_end)
		return 0;
	st->send_start = seq;
	st->send_end = seq + left;
	st->has_send = 1;
	st->turned = 0;
	if (!st->announced)
		announce(sk, st, sk->__sk_common.skc_state);
	emit(st, tp, KIND_SEND, 0, bpf_get_current_pid_tgid() >> 32, seq, left);
	return 0;
}

// True once the peer's FIN is in rcv_nxt: tcp_fin() alone sets SOCK_DONE.
static __always_inline int fin_received(struct sock *sk)
{
	return (sk->__sk_common.skc_flags >> bpf_core_enum_value(enum sock_flags, SOCK_DONE)) & 1;
}

static __always_inline int readable(struct sock *sk)
{
	struct socket_state *st = state_of(sk, 1);
	struct tcp_sock *tp;
	__u32 nxt;

	if (!st)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	nxt = tp->rcv_nxt;
	if (st->has_ready && st->ready_nxt == nxt)
		return 0;
	st->ready_nxt = nxt;
	st->has_ready = 1;
	st->turned = 1;
	if (!st->announced)
		announce(sk, st, sk->__sk_common.skc_state);
	emit(st, tp, KIND_READY, fin_received(sk) ? FLAG_FIN : 0, 0, nxt, tp->copied_seq);
	return 0;
}

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

static __always_inline int was_read(struct sock *sk, int len, int flags)
{
	struct socket_state *st;
	struct tcp_sock *tp;
	__u32 copied, tgid;

	if (len < 0 || (flags & MSG_PEEK))
		return 0;
	st = state_of(sk, 1);
	if (!st)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	copied = tp->copied_seq;
	// A read of nothing counts once, when it takes the FIN's number.
	if (len == 0 && (copied == st->recv_seq || !fin_received(sk)))
		return 0;
	st->recv_seq = copied;
	if (!st->announced)
		announce(sk, st, sk->__sk_common.skc_state);
	tgid = bpf_get_current_pid_tgid() >> 32;
	emit(st, tp, KIND_RECV, fin_received(sk) && copied == tp->rcv_nxt ? FLAG_FIN : 0, tgid, copied, len);
	return 0;
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

SEC("tp_btf/inet_sock_set_state")
int on_state(__u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];
	int old = (int)ctx[1], new = (int)ctx[2];
	struct socket_state *st;
	struct tcp_sock *tp;

	// SYN_RECV is a child that has no address yet, LISTEN carries no bytes; the others say nothing that is used.
	if (old == TCP_LISTEN || (new != TCP_SYN_SENT && new != TCP_ESTABLISHED && new != TCP_FIN_WAIT1 &&
				  new != TCP_CLOSE_WAIT && new != TCP_LAST_ACK && new != TCP_CLOSE))
		return 0;
	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	st = state_of(sk, new != TCP_CLOSE);
	if (!st)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	// A connecting socket has no local port yet (tcp_v4_connect binds after it sets the state). A closed one has lost
	// its addresses.
	if (!st->announced && new != TCP_SYN_SENT && new != TCP_CLOSE)
		announce(sk, st, new);
	emit(st, tp, KIND_STATE, 0, 0, tp->write_seq, old << 8 | new);
	return 0;
}
