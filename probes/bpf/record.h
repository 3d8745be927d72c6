// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// What the objects of all tiers have in common: what is read of the kernel's structures, the records and their layout, the
// maps and the settings that user space knows by name. Each object includes it once; it is part of the source that the
// object's hash is made of. The records are decoded in src/event.rs: whoever changes them raises `ABI` and changes both.

#ifndef MESHDIFF_RECORD_H
#define MESHDIFF_RECORD_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define MSG_PEEK 2
#define TLS_HEADER 5 // bytes

// include/net/tcp_states.h; kernel ABI by way of the inet_sock_set_state tracepoint.
#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_SYN_RECV 3
#define TCP_FIN_WAIT1 4
#define TCP_CLOSE 7
#define TCP_CLOSE_WAIT 8
#define TCP_LAST_ACK 9
#define TCP_LISTEN 10

// Only what is read, relocated at load time to where the running kernel has it (CO-RE).
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct in6_addr {
	union {
		__u32 u6_addr32[4];
	} in6_u;
};
struct ns_common {
	unsigned int inum;
};
struct net {
	struct ns_common ns;
};
typedef struct {
	struct net *net;
} possible_net_t;
struct sock_common {
	union {
		struct {
			__be32 skc_daddr;
			__be32 skc_rcv_saddr;
		};
	};
	union {
		struct {
			__be16 skc_dport;
			__u16 skc_num;
		};
	};
	unsigned short skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	union {
		unsigned long skc_flags;
	};
};
struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
	int sk_err;
};
struct inet_sock {
	__be16 inet_sport;
};
struct inet_connection_sock {
	struct inet_sock icsk_inet;
};
struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u32 snd_nxt;
	__u32 copied_seq;
	__u32 write_seq;
	__u32 rcv_nxt;
	__u32 srtt_us;
};
struct iovec {
	void *iov_base;
	unsigned long iov_len;
};
struct iov_iter {
	__u8 iter_type;
	unsigned long iov_offset;
	union {
		struct {
			union {
				const struct iovec *__iov;
				void *ubuf;
			};
			unsigned long count;
		};
	};
};
// Before Linux 6.4, and before 5.14. What follows the three underscores is no part of the kernel's name.
struct iov_iter___before_6_4 {
	const struct iovec *iov;
};
struct iov_iter___before_5_14 {
	unsigned int type; // the kind, and whether it is written to (1)
};
struct msghdr {
	struct iov_iter msg_iter;
};
#pragma clang attribute pop

enum iter_type {
	ITER_UBUF,
	ITER_IOVEC,
};
enum sock_flags {
	SOCK_DONE = 1,
};

// A tier may need its maps filled from memory that is there already.
#ifndef WATCHED_FLAGS
#define WATCHED_FLAGS BPF_F_NO_PREALLOC
#endif

// Records. Every one begins with `struct record`; all integers are in the machine's byte order.
#define ABI 1
enum kind {
	KIND_ANNOUNCE = 1, // which socket a cookie is
	KIND_SEND = 2,	   // seq: write_seq, aux: bytes asked for
	KIND_READY = 3,	   // seq: rcv_nxt, aux: copied_seq
	KIND_RECV = 4,	   // seq: copied_seq, aux: bytes read
	KIND_STATE = 5,	   // seq: write_seq, aux: sk_err << 16 | old state << 8 | new state
	KIND_HELD = 6,	   // seq: snd_nxt at a write's end, aux: bytes behind it that have not left
	KIND_RETRANSMIT = 7, // seq: the segment's first, aux: its length
	KIND_RESET = 8,	   // a reset was sent, or received (FLAG_RECEIVED)
	KIND_DROP = 9,	   // aux: the kernel's reason
};
#define FLAG_FIN 1 // seq is one more than the data's end: the FIN's number is in it
#define FLAG_FRAMES 2 // of a send: what follows are chunks of HTTP/2 frames (frames.h), not the payload's beginning
#define FLAG_START 4 // frames are looked for from this send on: what came before was not followed
#define FLAG_PREFACE 8 // the send begins with the HTTP/2 client preface
#define FLAG_CUT 16 // frames could not be followed to the send's end, and are not from there on
#define FLAG_TLS 32 // of a send: what follows is the plaintext of what is sent, which begins here; or, without payload, it goes on
#define FLAG_RECEIVED 32

struct record {
	__u64 cookie;
	__u64 at;	 // CLOCK_MONOTONIC, ns
	__u32 counter;	 // place among the socket's records, announcements left out
	__u8 kind;
	__u8 flags;
	__u16 prefix_len; // bytes of the payload that follow
	__u32 tgid;	 // in whose context, of sends, reads and connects; 0 for what runs in anybody's
	__u32 seq;
	__u32 aux;
	__u32 srtt_us;	 // as the kernel keeps it: shifted left by 3
	__u32 write_ns;	 // how long the last write took, told once, with the record after its end; see span()
	__u32 read_ns;	 // of a read, how long it took; see span()
};

struct announcement {
	struct record head; // aux: the socket's state
	__u32 netns;
	__u16 family;
	__u16 local_port;  // host byte order, as skc_num is
	__u16 remote_port; // host byte order
	__u16 unused[3];
	__u32 local[4]; // network byte order; IPv4 in the first word
	__u32 remote[4];
};

// What is remembered of a socket. Members that run under different locks are apart, so that none is lost.
struct socket_state {
	__u64 cookie;
	__u64 send_at;	 // when the write that runs began, and in which thread; 0 if none runs
	__u64 recv_at;	 // when the read that runs began, and in which thread; 0 if that is not known
	__u32 send_tid;
	__u32 recv_tid;
	__u32 wrote;	 // how long the last write took, until it is told
	__u32 held_next; // snd_nxt and write_seq when bytes were held back last
	__u32 held_end;
	__u32 counter;
	__u32 generation; // of the watched set in which `watched` was decided
	__u32 send_start; // of the last send call
	__u32 send_end;
	__u32 ready_nxt; // rcv_nxt last reported
	__u32 recv_seq;	 // copied_seq last reported
	__u8 watched;
	__u8 announced;
	__u8 has_send;
	__u8 has_ready;
	__u8 turned; // the next send is the first after bytes came in
	__u8 tls;    // the last prefix was a TLS record: a large prefix tells nothing more
	__u8 speaks; // SPEAKS_*
	__u8 h2_got; // HTTP/2, of what is sent: bytes known of the frame header that is cut off at h2_at,
	__u32 h2_at; // up to which frames were followed,
	__u32 h2_skip; // payload bytes to come until the next header,
	__u16 h2_rest; // of which so many more are kept first
	__u8 h2_part[10];
};
#define SPEAKS_UNKNOWN 0
#define SPEAKS_TEXT 1 // HTTP/1 or another protocol that begins with a word: its bodies are not taken for frames
#define SPEAKS_HTTP2 2

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, WATCHED_FLAGS);
	__uint(max_entries, 65536);
	__type(key, __u32); // inode number of the network namespace
	__type(value, __u8);
} watched SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 24);
} ring SEC(".maps");

enum count {
	COUNT_EMITTED,		   // records in the ring, announcements among them
	COUNT_LOST,		   // records that found the ring full: each is a gap in its socket's counter
	COUNT_ANNOUNCE_LATE,	   // announcements that found it full: made up for at the socket's next record
	COUNT_UNTRACKED,	   // records for which the socket's state could not be allocated
	COUNTS,
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTS);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

// Watch every namespace. Set before loading.
const volatile __u8 watch_all = 0;
const volatile __u32 abi = ABI;
// Changed by user space after every change of the watched set, so that sockets decide anew. Begins at 1.
volatile __u32 generation = 1;

// The hash of this file and the one that includes it, as the build found them: a test compares.
#ifdef SOURCE_SHA256
const char source_sha256[] SEC("meshdiff.source") __attribute__((used)) = SOURCE_SHA256;
#endif
char _license[] SEC("license") = "GPL";

static __always_inline void count(__u32 slot)
{
	__u64 *value = bpf_map_lookup_elem(&counts, &slot);

	// Atomic although per CPU: a softirq can interrupt a probe that runs in a process.
	if (value)
		__sync_fetch_and_add(value, 1);
}

// A time in 32 bits: in ns, or in 1,024 ns with the highest bit. Never 0, which says that it is not known.
static __always_inline __u32 span(__u64 ns)
{
	if (ns < 1u << 31)
		return ns ? ns : 1;
	ns >>= 10;
	return 1u << 31 | (ns < 1u << 31 ? (__u32)ns : (1u << 31) - 1);
}

static __always_inline void fill(struct record *r, struct socket_state *st, __u64 at, __u32 counter, __u8 kind)
{
	r->cookie = st->cookie;
	r->at = at;
	r->counter = counter;
	r->kind = kind;
	r->flags = 0;
	r->prefix_len = 0;
	r->write_ns = 0;
	r->read_ns = 0;
	// An exchange: two processors may come here at once.
	if (kind != KIND_ANNOUNCE && st->wrote)
		r->write_ns = __sync_lock_test_and_set(&st->wrote, 0);
}

// The record is not told after all: the next one tells how long the write took, unless there is a later write by now.
static __always_inline void take_back(struct record *r, struct socket_state *st)
{
	if (r->write_ns && !st->wrote)
		st->wrote = r->write_ns;
}

#endif
