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
#include "frames.h"
#include "plaintext.h"

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

static __noinline void announce(struct sock *sk, struct socket_state *st, __u32 state)
{
	struct announcement *a;
	struct tcp_sock *tp;
	__u16 family = READ(sk, __sk_common.skc_family);
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
	a->netns = READ2(sk, __sk_common.skc_net.net, ns.inum);
	a->family = family;
	a->local_port = READ(sk, __sk_common.skc_num);
	if (!a->local_port) {
		// A closed socket has given its port back, but remembers it in network byte order.
		tp = TCP_SOCK(sk);
		if (tp)
			a->local_port = __builtin_bswap16(READ(tp, inet_conn.icsk_inet.inet_sport));
	}
	a->remote_port = __builtin_bswap16(READ(sk, __sk_common.skc_dport));
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	a->remote_port = READ(sk, __sk_common.skc_dport);
#endif
	a->unused[0] = a->unused[1] = a->unused[2] = 0;
	if (family == AF_INET6 && bpf_core_field_exists(sk->__sk_common.skc_v6_daddr)) {
#pragma unroll
		for (i = 0; i < 4; i++) {
			a->local[i] = READ(sk, __sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[i]);
			a->remote[i] = READ(sk, __sk_common.skc_v6_daddr.in6_u.u6_addr32[i]);
		}
	} else {
		a->local[0] = READ(sk, __sk_common.skc_rcv_saddr);
		a->remote[0] = READ(sk, __sk_common.skc_daddr);
#pragma unroll
		for (i = 1; i < 4; i++)
			a->local[i] = a->remote[i] = 0;
	}
	bpf_ringbuf_submit(a, BPF_RB_NO_WAKEUP);
	count(COUNT_EMITTED);
	st->announced = 1;
}

// One record without payload. `read_ns` is of a read.
static __always_inline void emit_timed(struct socket_state *st, struct tcp_sock *tp, __u8 kind, __u8 flags, __u32 tgid,
				       __u32 seq, __u32 aux, __u64 at, __u32 read_ns)
{
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
	r->srtt_us = tp ? READ(tp, srtt_us) : 0;
	r->read_ns = read_ns;
	bpf_ringbuf_submit(r, BPF_RB_NO_WAKEUP);
	count(COUNT_EMITTED);
}

static __always_inline void emit(struct socket_state *st, struct tcp_sock *tp, __u8 kind, __u8 flags, __u32 tgid,
				 __u32 seq, __u32 aux)
{
	__u64 at = bpf_ktime_get_ns();

	if (kind == KIND_SEND)
		st->send_at = at;
	emit_timed(st, tp, kind, flags, tgid, seq, aux, at, 0);
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

// Begins to follow frames where a send begins like HTTP/2: with the client's preface, or with a frame.
static __always_inline int begins_frames(const __u8 *prefix, __u32 len)
{
	const __u64 *words = (const __u64 *)prefix;

	if (len < FRAME_HEADER)
		return 0;
	if (prefix[0] == 0)
		return is_frame(prefix) ? FLAG_START : 0;
	// "PRI * HTTP/2.0", two line ends, "SM", two line ends
	if (len >= 24 && prefix[0] == 'P' && words[0] == PREFACE_0 && words[1] == PREFACE_1 && words[2] == PREFACE_2)
		return FLAG_START | FLAG_PREFACE;
	return 0;
}

// A send as it stands: who, what and where its bytes are.
struct offer {
	__u64 at;
	__u64 base; // of the first buffer, with its length
	__u64 len;
	__u64 iov; // the vector's second element; 0 if there is no vector
	__u32 counter;
	__u32 tgid;
	__u32 seq;
	__u32 left;
};

static __always_inline void begin_walk(struct walk *w, const struct offer *o)
{
	w->base = o->base;
	w->len = o->len;
	w->iov = o->iov;
	w->at = 0;
	w->left = o->left;
	w->rest = 0;
	w->skip = 0;
	w->got = 0;
	w->plain = 0;
	w->used = 0;
	w->open = 0;
	w->failed = 0;
}

static __always_inline void emit_walk(struct walk *w, struct socket_state *st, struct tcp_sock *tp,
				      const struct offer *o, __u8 flags)
{
	__u64 used = w->used;

	fill(&w->head, st, o->at, o->counter, KIND_SEND);
	w->head.flags = flags;
	w->head.tgid = o->tgid;
	w->head.seq = o->seq;
	w->head.aux = o->left;
	w->head.srtt_us = READ(tp, srtt_us);
	asm volatile("" : "+r"(used));
	if (used > FRAMES_SIZE + MOST_AT_ONCE)
		used = 0;
	asm volatile("" : "+r"(used));
	w->head.prefix_len = used;
	if (bpf_ringbuf_output(&ring, &w->head, sizeof(w->head) + used, BPF_RB_NO_WAKEUP)) {
		take_back(&w->head, st);
		count(COUNT_LOST);
	} else {
		count(COUNT_EMITTED);
	}
}

// One send with its frames. `start` says that they are followed from here on, and whether behind a preface.
static __noinline int send_frames(struct socket_state *st, struct tcp_sock *tp, const struct offer *o, __u32 start)
{
	struct walk *w;
	__u32 zero = 0;
	__u8 flags = FLAG_FRAMES | start;
	__s32 ahead = 0;
	int i;

	if (!st || !tp || !o)
		return 0;
	w = bpf_map_lookup_elem(&walks, &zero);
	if (!w)
		return 0;
	begin_walk(w, o);
	if (start) {
		w->skip = start & FLAG_PREFACE ? 24 : 0;
	} else {
		ahead = st->h2_at - o->seq;
		if (ahead < 0)
			w->failed = 1;
		else if ((__u32)ahead >= o->left)
			goto known;
		else
			w->skip = ahead;
	}
	if (w->skip)
		run(TO_THE_HEADER);
	if (!start && !w->failed)
		resume(w, st);
	run(TO_THE_END);
	// Bytes that an earlier call offered and TCP did not take are offered again; the walk has passed them already.
	if (w->failed || w->at < w->left) {
		flags |= FLAG_CUT;
		st->speaks = SPEAKS_UNKNOWN;
	} else {
		__u64 open = w->open;

		st->speaks = SPEAKS_HTTP2;
		st->h2_at = o->seq + o->left;
		st->h2_skip = w->skip;
		st->h2_rest = w->rest;
		st->h2_got = w->got;
		asm volatile("" : "+r"(open));
		if (w->got && open <= FRAMES_SIZE) {
#pragma unroll
			for (i = 0; i < FRAME_HEADER; i++)
				st->h2_part[i] = w->data[open + sizeof(struct chunk) + i];
		}
	}
known:
	emit_walk(w, st, tp, o, flags);
	return 0;
}

// One send whose payload the probe cannot read (sendfile), on a socket whose frames are followed: they go on being so if it is
// the inside of one frame.
static __always_inline void send_unread(struct socket_state *st, struct tcp_sock *tp, __u32 tgid, __u32 seq, __u32 left)
{
	__u32 new = seq + left - st->h2_at;
	__u8 flags = FLAG_FRAMES;

	if ((__s32)new > 0) {
		if (new <= left && !st->h2_rest && !st->h2_got && new <= st->h2_skip) {
			st->h2_skip -= new;
			st->h2_at = seq + left;
		} else {
			st->speaks = SPEAKS_UNKNOWN;
			flags |= FLAG_CUT;
		}
	}
	emit(st, tp, KIND_SEND, flags, tgid, seq, left);
}

// One send of which the first buffer holds but a little: with the beginning of all of them.
static __noinline int send_gathered(struct socket_state *st, struct tcp_sock *tp, const struct offer *o)
{
	struct walk *w;
	__u32 zero = 0, start;

	if (!st || !tp || !o)
		return 0;
	w = bpf_map_lookup_elem(&walks, &zero);
	if (!w)
		return 0;
	begin_walk(w, o);
	w->plain = 1;
	w->rest = o->left < MOST_AT_ONCE ? o->left : MOST_AT_ONCE;
	run(TO_THE_END);
	if (st->speaks == SPEAKS_UNKNOWN) {
		start = begins_frames(w->data, w->used);
		if (start)
			return send_frames(st, tp, o, start);
		if (w->used && w->data[0] >= 'A' && w->data[0] <= 'Z')
			st->speaks = SPEAKS_TEXT;
	}
	st->tls = w->used >= 3 && w->data[0] >= 20 && w->data[0] <= 23 && w->data[1] == 3;
	emit_walk(w, st, tp, o, 0);
	return 0;
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
		r->head.flags = tls ? FLAG_TLS : 0;                                                                   \
		r->head.tgid = tgid;                                                                                  \
		r->head.seq = seq;                                                                                    \
		r->head.aux = left;                                                                                   \
		r->head.srtt_us = READ(tp, srtt_us);                                                                  \
		if (text_payload) {                                                                                   \
			__u64 known = text_of(r->prefix, SIZE, base);                                                 \
                                                                                                                      \
			r->head.prefix_len = known < n ? known : n;                                                   \
		} else if (bpf_probe_read_user(r->prefix, n, base) == 0) {                                            \
			r->head.prefix_len = n;                                                                       \
		}                                                                                                     \
		st->tls = tls ||                                                                                      \
			  (r->head.prefix_len >= 3 && r->prefix[0] >= 20 && r->prefix[0] <= 23 && r->prefix[1] == 3); \
		if (frames && !tls && st->speaks == SPEAKS_UNKNOWN && r->head.prefix_len) {                           \
			start = begins_frames(r->prefix, r->head.prefix_len);                                         \
			if (start) {                                                                                  \
				take_back(&r->head, st);                                                              \
				bpf_ringbuf_discard(r, BPF_RB_NO_WAKEUP);                                             \
				goto follow;                                                                          \
			}                                                                                             \
			if (r->prefix[0] >= 'A' && r->prefix[0] <= 'Z')                                               \
				st->speaks = SPEAKS_TEXT;                                                             \
		}                                                                                                     \
		bpf_ringbuf_submit(r, BPF_RB_NO_WAKEUP);                                                              \
		count(COUNT_EMITTED);                                                                                 \
		return 0;                                                                                             \
	} while (0)

static __always_inline __u32 kind_of(struct msghdr *msg)
{
	if (bpf_core_field_exists(msg->msg_iter.iter_type))
		return READ(msg, msg_iter.iter_type);
	return READ((struct iov_iter___before_5_14 *)&msg->msg_iter, type) & ~1;
}

static __always_inline const struct iovec *iovec_of(struct msghdr *msg)
{
	if (bpf_core_field_exists(msg->msg_iter.__iov))
		return READ(msg, msg_iter.__iov);
	return READ((struct iov_iter___before_6_4 *)&msg->msg_iter, iov);
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
		first->base = READ(iov, iov_base);
		first->len = READ(iov, iov_len);
	} else if (vector == VECTOR_BY_HELPER) {
		bpf_probe_read_kernel(first, sizeof(*first), iov);
	}
}

static __always_inline int sent(struct sock *sk, struct msghdr *msg)
{
	struct socket_state *st = state_of(sk, 1);
	__u32 seq, left, end, counter, tgid, type, start = 0;
	__u64 at, want, offset, whole = 0;
	struct tcp_sock *tp;
	void *base = NULL;
	int user, single, follows, scattered, tls = TLS_NONE;
	struct offer o;

	if (!st)
		return 0;
	tp = TCP_SOCK(sk);
	if (!tp)
		return 0;
	seq = READ(tp, write_seq);
	left = (__u32)READ(msg, msg_iter.count);
	end = seq + left;
	// A call without bytes: the function is entered, but the tracepoint in its loop is not reached.
	if (!left)
		return 0;
	type = kind_of(msg);
	offset = READ(msg, msg_iter.iov_offset);
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
	if (st->has_send && end == st->send_end && (seq == st->send_start || !user || offset)) {
		// That other call takes its own time.
		if (!st->send_at) {
			st->send_tid = (__u32)bpf_get_current_pid_tgid();
			st->send_at = bpf_ktime_get_ns();
		}
		return 0;
	}
	st->send_start = seq;
	st->send_end = end;
	st->has_send = 1;

	if (!st->announced)
		announce(sk, st, READ(sk, __sk_common.skc_state));
	at = bpf_get_current_pid_tgid();
	tgid = at >> 32;
	st->send_tid = (__u32)at;

	want = 0;
	if (user) {
		if (single) {
			base = READ(msg, msg_iter.ubuf);
			want = left;
		} else {
			struct buffer first;

			first_of(msg, &first);
			base = first.base;
			want = first.len > offset ? first.len - offset : 0;
			whole = want;
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
		// The thread may have told what it encrypts.
		if (!text_payload && st->tls && want) {
			__u64 plain = (__u64)base;

			tls = tls_plaintext(st, base, left, &plain, &want);
			base = (void *)plain;
		}
	}
	follows = frames && st->speaks == SPEAKS_HTTP2;
	// The first buffer of a turn may hold but a little of what is wanted, and the others the rest.
	scattered = frames && user && !single && !follows && st->turned && !st->tls && whole < left && whole < 256;
	st->turned = 0;
	if (follows && !user) {
		send_unread(st, tp, tgid, seq, left);
		return 0;
	}
	if (!want && !follows && !scattered) {
		emit(st, tp, KIND_SEND, tls ? FLAG_TLS : 0, tgid, seq, left);
		return 0;
	}
	at = bpf_ktime_get_ns();
	st->send_at = at;
	counter = __sync_fetch_and_add(&st->counter, 1);
	if (follows || scattered)
		goto follow;
	if (want <= 32)
		EMIT_SEND(32);
	if (want <= 128)
		EMIT_SEND(128);
	if (want <= 256)
		EMIT_SEND(256);
	EMIT_SEND(512);
follow:
	o.at = at;
	o.base = (__u64)base;
	o.len = single ? left : whole;
	o.iov = single ? 0 : (__u64)iovec_of(msg) + sizeof(struct iovec);
	o.counter = counter;
	o.tgid = tgid;
	o.seq = seq;
	o.left = left;
	if (scattered)
		return send_gathered(st, tp, &o);
	return send_frames(st, tp, &o, start);
}

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

#endif

// sendfile and splice, page by page; since Linux 6.5 they come through tcp_sendmsg_locked. Without payload, which is in the
// kernel.
static __always_inline int sent_page(struct sock *sk, __u32 left)
{
	struct socket_state *st = state_of(sk, 1);
	struct tcp_sock *tp;
	__u32 seq;

	if (!st || !left)
		return 0;
	tp = TCP_SOCK(sk);
	if (!tp)
		return 0;
	seq = READ(tp, write_seq);
	// A page is offered again after every wait for room.
	if (st->has_send && seq + left == st->send_end)
		return 0;
	st->send_start = seq;
	st->send_end = seq + left;
	st->has_send = 1;
	st->turned = 0;
	if (!st->announced)
		announce(sk, st, READ(sk, __sk_common.skc_state));
	emit(st, tp, KIND_SEND, 0, bpf_get_current_pid_tgid() >> 32, seq, left);
	return 0;
}

#ifndef KPROBE
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
