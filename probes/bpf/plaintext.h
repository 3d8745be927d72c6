// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// Applications that do TLS themselves, with a libssl of their own process: what they hand to SSL_write is remembered while the
// call runs, and the send that carries it out takes its prefix from there instead of from the ciphertext. So instants and
// sequence numbers stay those of the socket. A call that only fills memory (a memory BIO, as asyncio and Node have) sends
// nothing while it runs, and nothing is said of it.

#ifndef MESHDIFF_PLAINTEXT_H
#define MESHDIFF_PLAINTEXT_H

#include "record.h"

#define TLS_APPLICATION_DATA 23
#define TLS_MOST_PLAINTEXT (1 << 14) // bytes in one record (RFC 8446, section 5.1)

// The thread's call of SSL_write that runs.
struct tls_call {
	__u64 ssl;
	__u64 base; // of the plaintext
	__u64 len;
	__u64 cookie; // the socket that the plaintext went to; 0 before
	__u8 inside;
	__u8 unused[7];
};
// With the thread it goes, so that no other thread of its number inherits it.
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct tls_call);
} tls_calls SEC(".maps");

// Calls that failed for now (the socket is full) after their beginning was sent: libssl goes on where it stopped when it is
// called again with the same bytes, maybe by another thread. An entry that is forgotten or left over hides plaintext, or shows the
// beginning of a large write twice, and nothing worse.
struct tls_unfinished {
	__u64 ssl;
	__u64 tgid;
};
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct tls_unfinished);
	__type(value, __u64); // the socket's cookie
} tls_unfinished SEC(".maps");

// Where the registers of struct pt_regs are, which is ABI (asm/ptrace.h of x86-64 and arm64). Set before loading.
const volatile __u8 tls_arm64 = 0;
#define TLS_REGISTER(to, x86, arm)                                                                                    \
	do {                                                                                                          \
		if (tls_arm64)                                                                                        \
			asm volatile("%0 = *(u64 *)(%1 + %2)" : "=r"(to) : "r"(ctx), "i"(arm));                       \
		else                                                                                                  \
			asm volatile("%0 = *(u64 *)(%1 + %2)" : "=r"(to) : "r"(ctx), "i"(x86));                       \
	} while (0)

// SSL_write(ssl, buf, int num) and SSL_write_ex(ssl, buf, size_t num, written). A negative number of the former is refused by
// libssl before anything is sent.
SEC("uprobe")
int enter_tls_write(void *ctx)
{
	struct tls_unfinished key = {};
	struct tls_call *call;
	__u64 ssl, base, len, *cookie;

	call = bpf_task_storage_get(&tls_calls, bpf_get_current_task_btf(), 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!call)
		return 0;
	TLS_REGISTER(ssl, 112, 0);
	TLS_REGISTER(base, 104, 8);
	TLS_REGISTER(len, 96, 16);
	key.ssl = ssl;
	key.tgid = bpf_get_current_pid_tgid() >> 32;
	cookie = bpf_map_lookup_elem(&tls_unfinished, &key);
	call->ssl = ssl;
	call->base = base;
	call->len = len;
	call->cookie = cookie ? *cookie : 0;
	call->inside = 1;
	return 0;
}

// Their results: above 0 if all (or a part that the application knows of) was sent.
SEC("uretprobe")
int exit_tls_write(void *ctx)
{
	struct tls_unfinished key = {};
	struct tls_call *call;
	__u64 result;

	call = bpf_task_storage_get(&tls_calls, bpf_get_current_task_btf(), 0, 0);
	if (!call || !call->inside)
		return 0;
	call->inside = 0;
	if (!call->cookie)
		return 0;
	TLS_REGISTER(result, 80, 0);
	key.ssl = call->ssl;
	key.tgid = bpf_get_current_pid_tgid() >> 32;
	if ((__s32)result <= 0) {
		__u64 cookie = call->cookie;

		bpf_map_update_elem(&tls_unfinished, &key, &cookie, BPF_ANY);
	} else {
		bpf_map_delete_elem(&tls_unfinished, &key);
	}
	return 0;
}

// True if a record of `length` bytes can hold `plain` bytes of plaintext and nothing else: what the ciphers add is 17 or 9 bytes
// (TLS 1.3), 24, 16 (TLS 1.2, AEAD), or initialisation vector, digest and padding to whole blocks (CBC). Bytes of libssl's own,
// such as a Finished or a key update before the data, have another length.
static __always_inline int tls_holds(__u32 length, __u32 plain)
{
	__u32 more = length - plain;

	if (length < plain)
		return 0;
	return more == 17 || more == 24 || more == 16 || more == 9 || (!(length & 7) && more >= 21 && more <= 80);
}

// What is kept of a hello. Keys that withstand quantum computers take 1,100 to 1,600 bytes of one, and the names can be behind them.
#define TLS_LONG_HELLO 2048

// True if a send begins with a record that begins with a hello (RFC 8446, sections 4 and 5.1).
static __always_inline int tls_hello(const void *base)
{
	__u8 h[6];

	if (bpf_probe_read_user(h, sizeof(h), base))
		return 0;
	return h[0] == 22 && h[1] == 3 && (h[5] == 1 || h[5] == 2);
}

#define TLS_NONE 0	// ciphertext, or no TLS at all
#define TLS_BEGINS 1	// the plaintext of the thread's call begins to be sent
#define TLS_CONTINUES 2 // more of what the call has begun to send, on the same socket

// What a send of `left` bytes is, of which the first are at `base`, on a socket that speaks TLS. To be asked for those only: it costs
// a look at the thread.
static __always_inline int tls_plaintext(struct socket_state *st, const void *base, __u32 left, __u64 *from, __u64 *want)
{
	struct tls_call *call = bpf_task_storage_get(&tls_calls, bpf_get_current_task_btf(), 0, 0);
	__u8 header[TLS_HEADER];
	__u64 len;

	if (!call || !call->inside)
		return TLS_NONE;
	if (call->cookie) {
		if (call->cookie != st->cookie)
			return TLS_NONE;
		*want = 0;
		return TLS_CONTINUES;
	}
	if (left <= TLS_HEADER || bpf_probe_read_user(header, sizeof(header), base))
		return TLS_NONE;
	len = call->len;
	if (header[0] != TLS_APPLICATION_DATA || header[1] != 3 || !len)
		return TLS_NONE;
	if (!tls_holds(header[3] << 8 | header[4], len < TLS_MOST_PLAINTEXT ? len : TLS_MOST_PLAINTEXT))
		return TLS_NONE;
	call->cookie = st->cookie;
	*from = call->base;
	*want = len;
	return TLS_BEGINS;
}

#endif
