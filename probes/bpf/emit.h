// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// Records without payload, and the announcement of a socket. Included by socket.bpf.c behind state_of().

#ifndef EMIT_H
#define EMIT_H

#include "record.h"

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

#endif
