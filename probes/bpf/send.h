// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// Bytes are handed to TCP: which of them are told, and how. Included by socket.bpf.c behind the settings of how payload is read.

#ifndef SEND_H
#define SEND_H

#include "emit.h"
#include "frames.h"
#include "plaintext.h"

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
	int user, single, follows, scattered, hello = 0, tls = TLS_NONE;
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
		} else if (want > 512 && !text_payload && st->speaks == SPEAKS_UNKNOWN) {
			hello = tls_hello(base);
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
	if (hello)
		EMIT_SEND(TLS_LONG_HELLO);
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

#endif
