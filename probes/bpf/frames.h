// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// Follows HTTP/2 frames (RFC 9113, section 4.1) through what a socket sends, from one send call to the next, over all
// buffers of a vector: of each frame the header is kept, and as much of the payload as user space reads.
//
// Nothing here is certain of what it sees: a header that no frame has ends the walk, and user space judges the rest.
// A walk's state is in memory, not in registers: all turns of the loop look alike to the verifier then. bpf_loop came with
// Linux 5.17; before that frames are not followed.

#ifndef FRAMES_H
#define FRAMES_H

#include "record.h"

#define FRAME_HEADER 9 // bytes
#define FRAMES_SIZE 28672 // bytes kept of one send; a value of a per-CPU map has at most 32 KiB
#define PAYLOAD_SIZE 20480 // from here on headers only: where they are is told to the end, what they say is not
#define MOST_AT_ONCE 512 // bytes copied at a time
#define STEPS 2048 // pieces of one send that are looked at
#define LONGEST_FRAME (1 << 20) // bytes; a header that says more is none. The default limit is 16 KiB, few raise it

enum chunk_kind {
	CHUNK_FRAME = 0, // a frame's header and the beginning of its payload
	CHUNK_REST = 1,	 // more of the payload of the frame before, from an earlier send
};
struct chunk {
	__s32 offset; // of its first byte from the send's first byte; below 0 if an earlier send held the header's beginning
	__u16 len;
	__u8 kind;
	__u8 unused;
};

struct walk {
	__u64 base; // what is left of the current buffer: address and length
	__u64 len;
	__u64 iov;  // address of the vector's next element; 0 if there is none
	__u32 at;   // bytes of the send that were passed
	__u32 left; // bytes of the send
	__u32 rest; // what comes next: payload that is kept,
	__u32 skip; // then payload that is not, then a frame's header,
	__u32 got;  // of which so many bytes are there
	__u32 plain; // keep the beginning of the send as it is
	__u32 used; // of data
	__u32 open; // where the last chunk's header is in data
	__u32 failed;
	__u32 unused;
	struct record head;
	__u8 data[FRAMES_SIZE + MOST_AT_ONCE];
};

// One at a time on a processor: the kernel does not enter a program again while it runs there, also where another thread has
// taken its place. What such a run would have told is missing; the kernel counts them, and user space tells how many.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct walk);
} walks SEC(".maps");

// True for a header that a frame can have, by RFC 9113, section 6: strict in what every sender keeps to.
static __always_inline int is_frame(const __u8 *h)
{
	__u32 len = h[0] << 16 | h[1] << 8 | h[2];
	__u32 stream = h[5] << 24 | h[6] << 16 | h[7] << 8 | h[8];

	if (len > LONGEST_FRAME || (stream & (1u << 31)))
		return 0;
	switch (h[3]) {
	case 0: // DATA
	case 1: // HEADERS
	case 5: // PUSH_PROMISE
	case 9: // CONTINUATION
		return stream != 0;
	case 2: // PRIORITY
		return stream != 0 && len == 5;
	case 3: // RST_STREAM
		return stream != 0 && len == 4;
	case 4: // SETTINGS
		return stream == 0 && len % 6 == 0 && len < 600;
	case 6: // PING
		return stream == 0 && len == 8;
	case 7: // GOAWAY
		return stream == 0 && len >= 8;
	case 8: // WINDOW_UPDATE
		return len == 4;
	default: // extensions: ALTSVC, ORIGIN, PRIORITY_UPDATE, and Envoy's METADATA
		return (h[3] >= 0x0a && h[3] <= 0x10) || h[3] == 0x4d;
	}
}

// How much of a frame's payload user space reads.
static __always_inline __u32 wanted(const __u8 *h)
{
	__u32 len = h[0] << 16 | h[1] << 8 | h[2], want = 0;

	switch (h[3]) {
	case 1:
	case 5:
	case 9:
		want = 16384;
		break;
	case 3:
	case 4:
	case 7:
	case 8:
		want = 64;
		break;
	}
	return len < want ? len : want;
}

static __always_inline void open_chunk(struct walk *w, __s32 offset, __u8 kind)
{
	__u64 used = w->used;
	struct chunk *c;

	asm volatile("" : "+r"(used));
	if (used > FRAMES_SIZE - 64) {
		w->failed = 1;
		return;
	}
	c = (struct chunk *)(w->data + used);
	c->offset = offset;
	c->len = 0;
	c->kind = kind;
	c->unused = 0;
	w->open = used;
	w->used = used + sizeof(*c);
}

// Copies up to `most` bytes that come next; how many it were.
static __always_inline __u32 copy(struct walk *w, __u32 most)
{
	__u64 n = most, used = w->used, open = w->open;

	if (n > w->len)
		n = w->len;
	if (n > w->left - w->at)
		n = w->left - w->at;
	asm volatile("" : "+r"(n));
	if (n > MOST_AT_ONCE)
		n = MOST_AT_ONCE;
	asm volatile("" : "+r"(n));
	asm volatile("" : "+r"(used));
	if (used > FRAMES_SIZE)
		return 0;
	asm volatile("" : "+r"(used));
	if (bpf_probe_read_user(w->data + used, n, (void *)w->base)) {
		w->failed = 1;
		return 0;
	}
	w->used += n;
	w->base += n;
	w->len -= n;
	w->at += n;
	if (!w->plain) {
		asm volatile("" : "+r"(open));
		if (open > FRAMES_SIZE)
			return 0;
		asm volatile("" : "+r"(open));
		((struct chunk *)(w->data + open))->len += n;
	}
	return n;
}

// One piece of what is sent. False when there is no more.
static __always_inline int step(struct walk *w)
{
	__u64 open;
	__u32 n;
	__u8 *h;

	if (w->failed || w->at >= w->left)
		return 0;
	if (!w->len) {
		struct iovec v = {};

		if (!w->iov || bpf_probe_read_kernel(&v, sizeof(v), (void *)w->iov)) {
			w->failed = 1;
			return 0;
		}
		w->iov += sizeof(v);
		w->base = (__u64)v.iov_base;
		w->len = v.iov_len;
		if (!w->len)
			return 1;
	}
	if (w->rest) {
		if (w->used > PAYLOAD_SIZE) {
			// No room: user space sees that the payload is not all there.
			w->skip += w->rest;
			w->rest = 0;
			return !w->plain;
		}
		n = copy(w, w->rest);
		w->rest -= n;
		return n != 0 && !(w->plain && !w->rest);
	}
	if (w->plain)
		return 0;
	if (w->skip) {
		__u64 k = w->skip;

		if (k > w->len)
			k = w->len;
		if (k > w->left - w->at)
			k = w->left - w->at;
		w->base += k;
		w->len -= k;
		w->at += k;
		w->skip -= k;
		return 1;
	}
	if (!w->got)
		open_chunk(w, w->at, CHUNK_FRAME);
	if (w->failed || w->got >= FRAME_HEADER)
		return 0;
	n = copy(w, FRAME_HEADER - w->got);
	w->got += n;
	if (w->got < FRAME_HEADER)
		return n != 0;
	w->got = 0;
	open = w->open;
	asm volatile("" : "+r"(open));
	if (open > FRAMES_SIZE)
		return 0;
	h = w->data + open + sizeof(struct chunk);
	if (!is_frame(h)) {
		w->failed = 1;
		return 0;
	}
	w->rest = wanted(h);
	w->skip = (h[0] << 16 | h[1] << 8 | h[2]) - w->rest;
	return 1;
}

enum until {
	TO_THE_END,
	TO_THE_HEADER, // until what is to be skipped was
};

// One turn of the loop; 1 ends it.
static long turn(__u32 index, void *context)
{
	enum until *until = context;
	__u32 zero = 0;
	struct walk *w = bpf_map_lookup_elem(&walks, &zero);

	if (!w || (*until == TO_THE_HEADER && !w->skip))
		return 1;
	return !step(w);
}

static __always_inline void run(enum until until)
{
	bpf_loop(STEPS, turn, &until, 0);
}

// Takes up the walk as the last send left it.
static __always_inline void resume(struct walk *w, struct socket_state *st)
{
	int i;

	w->rest = st->h2_rest;
	w->skip = st->h2_skip;
	w->got = st->h2_got;
	if (w->got) {
		// The header's beginning is told again, so that user space has it in one piece.
		open_chunk(w, (__s32)w->at - (__s32)w->got, CHUNK_FRAME);
#pragma unroll
		for (i = 0; i < FRAME_HEADER; i++)
			w->data[sizeof(struct chunk) + i] = st->h2_part[i];
		((struct chunk *)w->data)->len = w->got;
		w->used = sizeof(struct chunk) + w->got;
	} else if (w->rest) {
		open_chunk(w, w->at, CHUNK_REST);
	}
}

// The HTTP/2 client preface (RFC 9113, section 3.4), as it lies in memory.
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define PREFACE_0 0x505249202a204854
#define PREFACE_1 0x54502f322e300d0a
#define PREFACE_2 0x0d0a534d0d0a0d0a
#else
#define PREFACE_0 0x5448202a20495250
#define PREFACE_1 0x0a0d302e322f5054
#define PREFACE_2 0x0a0d0a0d4d530a0d
#endif

#endif
