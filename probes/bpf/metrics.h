// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// What is counted and timed of a socket beyond its instants: how long calls took, what was held back, sent again, reset or
// dropped. All of it is optional: where the kernel refuses one of these programs, the others and the instants remain.
// Included by socket.bpf.c behind state_of() and emit().

#ifndef MESHDIFF_METRICS_H
#define MESHDIFF_METRICS_H

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct sk_buff {
	struct sock *sk;
	char cb[48];
};
struct tcp_skb_cb {
	__u32 seq;
	__u32 end_seq;
};
#pragma clang attribute pop

enum skb_drop_reason {
	SKB_NOT_DROPPED_YET,
	SKB_CONSUMED,
	SKB_DROP_REASON_QUEUE_PURGE,
};

// The end of a write. Its time is not worth a record: the socket's next one brings it along (fill()), and at the latest that
// of its closing.
static __always_inline int was_sent(struct sock *sk, int result)
{
	struct socket_state *st = state_of(sk, 0);
	__u64 began;
	struct tcp_sock *tp;
	__u32 tid, next, end;

	if (!st)
		return 0;
	tid = (__u32)bpf_get_current_pid_tgid();
	began = st->send_at;
	// Another thread has begun a write meanwhile: the time of this one is not known.
	if (st->send_tid == tid && began) {
		st->send_at = 0;
		if (result > 0)
			st->wrote = span(bpf_ktime_get_ns() - began);
	}
	tp = TCP_SOCK(sk);
	if (!tp)
		return 0;
	next = READ(tp, snd_nxt);
	end = READ(tp, write_seq);
	if ((__s32)(end - next) <= 0 || (st->held_next == next && st->held_end == end))
		return 0;
	st->held_next = next;
	st->held_end = end;
	emit(st, tp, KIND_HELD, 0, 0, next, end - next);
	return 0;
}

#ifndef KPROBE
SEC("tp_btf/sock_send_length")
int on_sent(__u64 *ctx)
{
	return was_sent((struct sock *)ctx[0], (int)ctx[1]);
}

// tcp_sendmsg(sk, msg, size), and its result.
SEC("fexit/tcp_sendmsg")
int exit_send(__u64 *ctx)
{
	return was_sent((struct sock *)ctx[0], (int)ctx[3]);
}

#endif

static __always_inline void read_begins(struct socket_state *st)
{
	st->recv_tid = (__u32)bpf_get_current_pid_tgid();
	st->recv_at = bpf_ktime_get_ns();
}

#ifndef KPROBE
SEC("fentry/tcp_recvmsg")
int enter_recv(__u64 *ctx)
{
	struct socket_state *st = state_of((struct sock *)ctx[0], 1);

	if (st)
		read_begins(st);
	return 0;
}
#endif

// Keyed by the socket, so also right where a timer sends again.
static __always_inline int sent_again(struct sock *sk, struct sk_buff *skb)
{
	struct socket_state *st = state_of(sk, 1);
	struct tcp_sock *tp;
	__u32 seq, end;

	if (!st)
		return 0;
	tp = TCP_SOCK(sk);
	if (!tp)
		return 0;
	seq = READ_AT(__u32, (void *)skb->cb + bpf_core_field_offset(struct tcp_skb_cb, seq));
	end = READ_AT(__u32, (void *)skb->cb + bpf_core_field_offset(struct tcp_skb_cb, end_seq));
	if (!st->announced && READ(sk, __sk_common.skc_state) != TCP_SYN_SENT)
		announce(sk, st, READ(sk, __sk_common.skc_state));
	emit(st, tp, KIND_RETRANSMIT, 0, 0, seq, end - seq);
	return 0;
}

// Where the tracepoint has a third argument, it fires too when the segment could not be sent: that argument is the error.
TRACEPOINT("tcp_retransmit_skb")
int on_retransmit(__u64 *ctx)
{
	if ((int)ctx[2])
		return 0;
	return sent_again((struct sock *)ctx[0], (struct sk_buff *)ctx[1]);
}

// In earlier kernels it fires only for what was sent.
TRACEPOINT("tcp_retransmit_skb")
int on_retransmit_2(__u64 *ctx)
{
	return sent_again((struct sock *)ctx[0], (struct sk_buff *)ctx[1]);
}

static __always_inline int was_reset(struct sock *sk, __u8 flags)
{
	struct socket_state *st;
	struct tcp_sock *tp;

	// A reset can answer a segment that no socket wanted.
	if (!sk)
		return 0;
	st = state_of(sk, 0);
	if (!st)
		return 0;
	tp = TCP_SOCK(sk);
	if (tp)
		emit(st, tp, KIND_RESET, flags, 0, READ(tp, write_seq), 0);
	return 0;
}

TRACEPOINT("tcp_send_reset")
int on_reset_sent(__u64 *ctx)
{
	return was_reset((struct sock *)ctx[0], 0);
}

TRACEPOINT("tcp_receive_reset")
int on_reset_received(__u64 *ctx)
{
	return was_reset((struct sock *)ctx[0], FLAG_RECEIVED);
}

static __always_inline int was_dropped(struct sock *sk, __u32 reason)
{
	struct socket_state *st;

	if (!sk)
		return 0;
	st = state_of(sk, 0);
	// Of a packet's socket the verifier does not let the TCP half be read.
	if (st)
		emit_timed(st, NULL, KIND_DROP, 0, 0, 0, reason, bpf_ktime_get_ns(), 0);
	return 0;
}

#define IS(reason, name)                                                                                              \
	(bpf_core_enum_value_exists(enum skb_drop_reason, name) &&                                                    \
	 (reason) == bpf_core_enum_value(enum skb_drop_reason, name))

// What a socket's end leaves in its queues is cleared away rather than dropped: nearly always the peer's FIN.
static __always_inline int is_drop(__u32 reason)
{
	return !IS(reason, SKB_NOT_DROPPED_YET) && !IS(reason, SKB_CONSUMED) && !IS(reason, SKB_DROP_REASON_QUEUE_PURGE);
}

// Since Linux 6.11 the tracepoint names the receiving socket.
TRACEPOINT("kfree_skb")
int on_drop(__u64 *ctx)
{
	struct sk_buff *skb = (struct sk_buff *)ctx[0];
	__u32 reason = (__u32)ctx[2];
	struct sock *receiver = (struct sock *)ctx[3];

	if (!is_drop(reason))
		return 0;
	if (receiver)
		return was_dropped(receiver, reason);
	return was_dropped(READ(skb, sk), reason);
}

// Since Linux 5.17 it has the reason.
TRACEPOINT("kfree_skb")
int on_drop_3(__u64 *ctx)
{
	struct sk_buff *skb = (struct sk_buff *)ctx[0];
	__u32 reason = (__u32)ctx[2];

	if (!is_drop(reason))
		return 0;
	return was_dropped(READ(skb, sk), reason);
}

#endif
